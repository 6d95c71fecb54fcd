"""
The first mask
==============

A network calls a photograph an espresso. How much of the photograph does it need for
that, and which part? This tutorial finds masks of several areas, reads the scores, and
looks at the result.
"""

# %%
# A network and a picture
# -----------------------
#
# Any classifier will do. This one comes with its preprocessing and the names of its
# classes; ``image`` is the picture in [0, 1], to be shown, and ``inputs`` the same
# normalised, as the network takes it.

from PIL import Image
from skimage import data

from captum_extremal import ExtremalPerturbation
from captum_extremal.models import load_model
from captum_extremal.visualization import plot_area_growth, plot_result

model, preprocess, labels = load_model("demo")
image, inputs = preprocess(Image.fromarray(data.coffee()))
inputs = inputs[None]  # a batch of one

outputs = model(inputs)
target = int(outputs.argmax())
print(f"{labels[target]}, probability {float(outputs.softmax(dim=1)[0, target]):.2f}")

# %%
# Masks
# -----
#
# An area is a fraction of the picture's pixels. For each of the three areas below the
# method looks for the mask that keeps the score of the target highest while everything
# outside the mask is blurred. This is the default solver with its default settings: 80
# steps, of which the areas share 32.

areas = [0.05, 0.1, 0.2]
method = ExtremalPerturbation(model)
result = method.optimize(inputs, target=target, areas=areas)

print("masks:", tuple(result.masks.shape), "= pictures, areas, 1, height, width")
print("pixels kept:", (result.masks[0] >= 0.5).sum(dim=(1, 2, 3)).tolist())
print("asked for:  ", [round(area * 224 * 224) for area in areas])

# %%
# How much is enough?
# -------------------
#
# A score is the network's output for the target, here a logit. ``scores`` are those of
# what each mask keeps, ``complement_scores`` those of the picture without it. The
# smallest area that scores at least as high as the whole picture is the *smallest
# sufficient area*, a*; it is NaN where none of the asked areas does.

for area, kept, left in zip(
    areas, result.scores[0], result.complement_scores[0], strict=True
):
    print(f"{area:4.0%} of the picture: {kept:6.2f} alone, {left:6.2f} without it")
print(f"the whole picture: {float(result.input_score[0]):6.2f}")
print(f"fully blurred:     {float(result.perturbed_score[0]):6.2f}")
print(f"a*: {float(result.smallest_sufficient_area()[0]):.2g}")

# %%
# A mask can score higher than the whole picture, because it leaves out what speaks for
# other classes. Other questions take other thresholds, for example the area that is
# enough for half of the score:

half = result.smallest_sufficient_area(threshold=result.input_score / 2)
print(f"enough for half of the score: {float(half[0]):.2g}")

# %%
# A figure
# --------
#
# Above: what each mask keeps; the rest is drawn as a dark ghost, but the network saw it
# blurred. Below: the masks and their mean. At the right: the two scores over the area.

plot_result(image, result, title=f"coffee: {labels[target]}")

# %%
# Only what the masks keep, one row for each picture, with the score as a fraction of
# that of the whole picture:

plot_area_growth(image[None], result, captions=[labels[target]])

# %%
# An attribution as Captum's
# --------------------------
#
# ``attribute`` takes the same arguments and returns one tensor like the input, as any
# method of Captum does: the mean of the masks, repeated over the colours. We have the
# masks already, so here it is without a second search:

attribution = result.masks.mean(dim=1).expand_as(inputs)
lowest, highest = float(attribution.min()), float(attribution.max())
print(f"{tuple(attribution.shape)}, from {lowest:.2f} to {highest:.2f}")

# %%
# A page
# ------
#
# ``to_html`` makes a page with a slider over the areas: one file without links, to be
# mailed or published. With a name, ``result.to_html("page.html", ...)``, it is written;
# the text of the page comes back in any case. ``images`` are all images of the result,
# (N, 3, H, W).

page = result.to_html(images=image[None], title="coffee", label=labels[target])
print(f"{len(page) / 1e6:.1f} MB")

# %%
# In a notebook a result shows itself where it is the last line of a cell, with its
# masks and scores alone, since it does not hold the picture:

result
