"""Named settings: how the paper and TorchRay look for masks.

Each function returns keyword arguments for `ExtremalPerturbation`:

    >>> from captum_extremal import ExtremalPerturbation, presets
    >>> method = ExtremalPerturbation(lambda x: x.mean((1, 2, 3)), **presets.paper())
    >>> method.solver.iterations
    1600

The published settings are for 224 pixels; lengths in pixels scale with the input. The
two differ from each other:

===================  ==============================  =================================
setting              `paper`                         `torchray`
===================  ==============================  =================================
iterations           1600                            800
area weight          300, doubled at 1/3 and 2/3     300, times 1.0035 each iteration
radial profile       exp(-max(0, z - 1)^2 / 4)       exp(-2 max(0, z - 0.5)^2)
area loss over       the image                       the image and a margin around it
SGD                  momentum 0.9                    momentum 0.9, dampening 0.9
blur at the border   normalised                      faded (zero padding)
mirrored views       not mentioned                   on every even iteration
===================  ==============================  =================================

The paper names no learning rate, and its loss is a sum of squares: with a weight of
300 such a sum outweighs any score by the number of pixels, so `paper` takes their mean
and the rate of TorchRay, as the authors' own code does.
"""

from __future__ import annotations

from typing import TypedDict

from captum_extremal.area import AreaWeight
from captum_extremal.perturbations import BlurPerturbation
from captum_extremal.solvers import GradientSolver


class Preset(TypedDict):
    """Keyword arguments of `ExtremalPerturbation`."""

    perturbation: BlurPerturbation
    solver: GradientSolver


def paper() -> Preset:
    """The settings that the paper states in its Sec. 4.

    Returns:
        Keyword arguments of `ExtremalPerturbation`.
    """
    solver = GradientSolver(
        iterations=1600,
        learning_rate=0.01,
        momentum=0.9,
        dampening=0.0,
        area_weight=AreaWeight(start=300.0, growth=1.0, double_at=(1 / 3, 2 / 3)),
        profile="paper",
        mirror=False,
        tolerance=0.0,
    )
    return Preset(perturbation=BlurPerturbation(), solver=solver)


def torchray() -> Preset:
    """The settings of TorchRay's published code (version 1.0.0.2).

    What is delivered differs on purpose: TorchRay returns the mask of the parameters
    before the last step, whatever its area; here it is that of the last parameters, at
    exactly the asked area.

    Returns:
        Keyword arguments of `ExtremalPerturbation`.
    """
    solver = GradientSolver(
        iterations=800,
        learning_rate=0.01,
        momentum=0.9,
        dampening=0.9,
        area_weight=AreaWeight(start=300.0, growth=1.0035**800),
        profile="torchray",
        area_scope="canvas",
        mirror=True,
        tolerance=0.0,
    )
    return Preset(perturbation=BlurPerturbation(border="fade"), solver=solver)
