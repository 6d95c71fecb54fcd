"""
Channels, and what they stand for
=================================

The same question of a layer instead of the picture: which of its channels does the
network need, and how few are enough? Feature inversion then shows as images what
these channels keep.
"""

# %%
# Which channels?
# ---------------
#
# The sixth stage of EfficientNet-Lite0 has 192 channels. For each number of channels
# the method looks for the set that, with all other channels at zero, leaves the score
# highest. The picture has 160 x 160 pixels instead of the network's own 224 x 224,
# which halves the work.

from PIL import Image
from skimage import data
from torch.nn import functional as F

from captum_extremal import (
    ChannelExtremalPerturbation,
    FeatureInversion,
    channel_saliency,
)
from captum_extremal.models import load_model
from captum_extremal.visualization import (
    overlay_saliency,
    plot_channels,
    plot_class_channels,
    plot_comparison,
)

model, preprocess, labels = load_model("demo").with_size(160)
image, inputs = preprocess(Image.fromarray(data.coffee()))
inputs = inputs[None]
outputs = model(inputs)
target = int(outputs.argmax())
print(f"{labels[target]}, probability {float(outputs.softmax(dim=1)[0, target]):.2f}")

layer = model.blocks[5]
method = ChannelExtremalPerturbation(model, layer)
result = method.optimize(inputs, target=target, areas=[1, 2, 5, 10, 20])
for count, score in zip(result.counts, result.scores[0], strict=True):
    print(f"{count:3} channels: {float(score):6.2f}")
print(f"all 192:      {float(result.input_score[0]):6.2f}")

# %%
# The smallest set that scores as high as all channels is the smallest sufficient one,
# a*. Larger sets may score far higher than all channels do: what speaks against the
# class is left out. The map in the second picture shows where the channels of a* see
# something (the sum of their activations); beside it are four single channels.

plot_channels(image, result, title=f"coffee: {labels[target]}, channels of blocks.5")

# %%
# What the channels keep
# ----------------------
#
# An inversion is an image that excites the layer as the picture does. Made with all
# channels it shows what the layer keeps of the picture, made with the channels of the
# mask alone what these keep. It starts grey and takes 96 steps here; the default of 256
# gives more detail.

inversion = FeatureInversion(
    model, layer, mean=preprocess.mean, std=preprocess.std, iterations=96
)
mask = result.smallest_sufficient_mask()  # NaN if no set of channels sufficed
found = inversion.compare(inputs, mask)
plot_comparison(
    found.images,
    found.saliency,
    found.original.images,
    found.masked.images,
    captions=[f"{int(mask.sum())} of {mask.shape[1]} channels"],
)

# %%
# What does the network make of them? The masked inversion need not be of the class: it
# is made to excite the channels of the mask, and nothing keeps the others from speaking
# against the class, as the mask does.

for name, made in (("all channels", found.original), ("the mask", found.masked)):
    probability = model(made.inputs).softmax(dim=1)[0]
    print(
        f"{name:13} {labels[target]} {float(probability[target]):.2f}, "
        f"highest: {labels[int(probability.argmax())]} {float(probability.max()):.2f}"
    )

# %%
# What a single channel looks for
# -------------------------------
#
# ``channel`` makes an image that raises the mean of a channel. Here are the two that
# most of the masks keep, and where they are active in the picture. The blocks of this
# network end without a ReLU: a channel may also be needed because it is negative, and
# then the image, which shows what raises it, tells less.

kept_by = result.masks[0].sum(dim=0)
channels = kept_by.argsort(descending=True, stable=True)[:2]
alone = F.one_hot(channels, mask.shape[1]).float()
activations = result.activations.expand(2, -1, -1, -1)
where = channel_saliency(activations, alone, size=(160, 160))
plot_class_channels(
    inversion.channel(channels).images,
    [overlay_saliency(image, one)[None] for one in where],
    captions=[
        f"channel {k}, in {int(kept_by[k])} of 5 masks" for k in channels.tolist()
    ],
    example_captions=[["where it is active"]] * 2,
)
