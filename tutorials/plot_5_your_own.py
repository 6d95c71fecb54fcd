"""
Your own model, reward and perturbation
=======================================

Three places are open: what the model returns, what of it is to be kept high, and what
happens to the pixels outside the mask.
"""

# %%
# A model that returns an object
# ------------------------------
#
# The models of Hugging Face return an object with ``logits``. Wrap such a model in a
# function that returns the scores. Put the model in evaluation mode before: the wrapper
# hides it, so that nobody can warn you.

from types import SimpleNamespace

import torch
from PIL import Image
from skimage import data
from torch import Tensor, nn
from torch.nn import functional as F

from captum_extremal import ExtremalPerturbation, LevelSetSolver
from captum_extremal.models import load_model
from captum_extremal.visualization import plot_result

network, preprocess, labels = load_model("demo")


class ImageClassifier(nn.Module):
    """Stands for a model of another library."""

    def __init__(self) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixel_values: Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=self.network(pixel_values), hidden_states=None)


model = ImageClassifier().eval()


def forward(pixels: Tensor) -> Tensor:
    """Pixels -> logits (N, classes)."""
    return model(pixel_values=pixels).logits


image, inputs = preprocess(Image.fromarray(data.chelsea()))
inputs = inputs[None]
probabilities = forward(inputs).softmax(dim=1)[0]
for index in probabilities.topk(3).indices.tolist():
    print(f"{labels[index]:14} {float(probabilities[index]):.2f}")

# %%
# A reward
# --------
#
# The network hesitates between kinds of cats. Which kind does not matter here, so let
# the reward be the logit of "any cat": the logarithm of the summed exponentials of the
# five cats of ImageNet. A reward takes the outputs and the target and returns one
# number an example; this one needs no target.

CATS = [labels.index(name) for name in ("tabby", "tiger cat", "Persian cat")]
CATS += [labels.index(name) for name in ("Siamese cat", "Egyptian cat")]


def any_cat(outputs: Tensor, target: object) -> Tensor:
    """Outputs (K, classes) -> rewards (K,)."""
    del target
    return outputs[:, CATS].logsumexp(dim=1)


# %%
# A perturbation
# --------------
#
# A perturbation is any object with a method ``levels``: inputs (N, C, H, W) -> their
# versions (N, L, C, H, W), the most perturbed one first and the input itself last. This
# one makes pixels coarser and coarser. The masks choose between the levels at each
# pixel.


class Pixelate:
    """Blocks of 32, 16, 8, 4 and 2 pixels, and the input."""

    def levels(self, inputs: Tensor) -> Tensor:
        """Mean of each block, repeated over the block."""
        coarse = []
        for size in (32, 16, 8, 4, 2):
            small = F.avg_pool2d(inputs, size)
            coarse.append(F.interpolate(small, inputs.shape[2:]))
        return torch.stack([*coarse, inputs], dim=1)


# %%
# All together
# ------------
#
# 40 steps instead of 80, as this is only to show how it is done.

method = ExtremalPerturbation(
    forward, Pixelate(), LevelSetSolver(iterations=40), reward=any_cat
)
result = method.optimize(inputs, areas=[0.05, 0.1, 0.2])
plot_result(image, result, title="chelsea: any cat, the rest in blocks")

# %%
# Without what a mask keeps the score does not fall: the cat fills the picture, and the
# rest of it is enough as well. ``game="deletion"`` or ``"hybrid"`` ask for masks whose
# loss matters.

# %%
# Does the perturbation matter?
# -----------------------------
#
# The masks were found with blocks around them. ``evaluate`` judges them under other
# perturbations. The masks are the same, and yet the scores differ: what surrounds a
# mask speaks too, blocks and blur in their own way. Compare scores under one
# perturbation only, and do not call a mask right before it has stood a second one.

for name, other in (("blocks", Pixelate()), ("blur", "blur"), ("mean colour", "fade")):
    judge = ExtremalPerturbation(forward, other, reward=any_cat)
    scores = judge.evaluate(inputs, result.masks)[0]
    values = "  ".join(
        f"{area:.0%}: {float(score):5.2f}"
        for area, score in zip(result.areas, scores, strict=True)
    )
    print(f"{name:12} {values}")
print(f"{'whole input':12} {float(result.input_score[0]):.2f}")
