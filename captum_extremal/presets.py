"""Named settings: how the paper and TorchRay look for masks.

Each function returns keyword arguments, `paper_channels` for
`ChannelExtremalPerturbation` and the others for `ExtremalPerturbation`. `smooth` is the
default's search among masks as smooth as theirs:

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

from collections.abc import Sequence
from typing import TypedDict

from captum_extremal._base.axes import scaled
from captum_extremal._base.checks import check_count
from captum_extremal.perturbations.levels import BlurPerturbation
from captum_extremal.solvers import ChannelDescent, GradientSolver, LevelSetSolver
from captum_extremal.solvers.area_loss import AreaWeight

_PAPER_RADIUS = 23  # at 224, where a disk has half of its height
PAPER_CHANNELS = (
    *(1, 5, 10, 20, 25, 35, 40, 50, 60, 70, 80, 90, 100),
    *(150, 200, 250, 300, 350, 400, 450, 528),
)
"""The 21 ``areas`` of the paper's Sec. 5, of the 528 channels of inception4d."""


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
        score_weight=None,
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
        score_weight=None,
        profile="torchray",
        area_scope="canvas",
        mirror=True,
        tolerance=0.0,
    )
    return Preset(perturbation=BlurPerturbation(border="fade"), solver=solver)


class SmoothPreset(TypedDict):
    """Keyword arguments of `ExtremalPerturbation`."""

    solver: LevelSetSolver


def smooth(size: Sequence[int] = (224, 224)) -> SmoothPreset:
    """The default's search among masks that are as smooth as the paper's.

    The paper's masks are made of disks of about 23 pixels at 224, up to half of their
    height (kernel of eq. 6 with sigma = 21).

    Args:
        size: Spatial size of the inputs.

    Returns:
        Keyword arguments of `ExtremalPerturbation`.

    Raises:
        ValueError: If these are not 1 to 3 numbers of pixels.
        TypeError: If one is no whole number.

    Example:
        >>> smooth((448, 448))["solver"].smoothness
        46.0
    """
    if isinstance(size, int) or not 1 <= len(size) <= 3:
        raise ValueError(f"size must hold 1 to 3 spatial sizes, got {size!r}")
    for side in size:
        check_count("size", side)
    radius = max(scaled(_PAPER_RADIUS, size))
    return SmoothPreset(solver=LevelSetSolver(smoothness=radius))


class ChannelPreset(TypedDict):
    """Keyword arguments of `ChannelExtremalPerturbation`."""

    solver: ChannelDescent


def paper_channels() -> ChannelPreset:
    """The settings that the paper states in its Sec. 5; `PAPER_CHANNELS` are its areas.

    The paper leaves open the optimiser and whether its loss is a sum of squares or
    their mean; here they are Adam and, as in `paper`, the mean.

    Returns:
        Keyword arguments of `ChannelExtremalPerturbation`.
    """
    solver = ChannelDescent(
        iterations=300, learning_rate=0.01, area_weight=1500.0, ramp=0.5
    )
    return ChannelPreset(solver=solver)
