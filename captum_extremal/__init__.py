"""Extremal perturbations for Captum: the part of an input that a network needs.

Public names only; each module says what it turns into what.
"""

from __future__ import annotations

from importlib.metadata import version

from captum_extremal import presets
from captum_extremal._running import SearchInterrupted
from captum_extremal.area import AreaLoss, AreaWeight, area_loss, area_reference
from captum_extremal.blur import gaussian_blur
from captum_extremal.channel import ChannelExtremalPerturbation
from captum_extremal.channel_result import ChannelResult
from captum_extremal.class_channels import ClassChannels, ExcitingImages
from captum_extremal.extremal import ExtremalPerturbation
from captum_extremal.image_priors import ImagePrior
from captum_extremal.inversion import (
    ChannelComparison,
    FeatureInversion,
    Inversion,
    channel_saliency,
)
from captum_extremal.masks import MaskGenerator, smooth_max
from captum_extremal.perturbations import (
    BlurPerturbation,
    FadePerturbation,
    Perturbation,
    apply_mask,
)
from captum_extremal.result import Extremality, ExtremalResult
from captum_extremal.rewards import contrastive_reward, simple_reward
from captum_extremal.solvers import (
    ChannelDescent,
    ChannelSolver,
    GradientSolver,
    LevelSetSolver,
    Problem,
    SearchSolver,
    Solution,
    Solver,
)

__all__ = [
    "AreaLoss",
    "AreaWeight",
    "BlurPerturbation",
    "ChannelComparison",
    "ChannelDescent",
    "ChannelExtremalPerturbation",
    "ChannelResult",
    "ChannelSolver",
    "ClassChannels",
    "ExcitingImages",
    "ExtremalPerturbation",
    "ExtremalResult",
    "Extremality",
    "FadePerturbation",
    "FeatureInversion",
    "GradientSolver",
    "ImagePrior",
    "Inversion",
    "LevelSetSolver",
    "MaskGenerator",
    "Perturbation",
    "Problem",
    "SearchInterrupted",
    "SearchSolver",
    "Solution",
    "Solver",
    "apply_mask",
    "area_loss",
    "area_reference",
    "channel_saliency",
    "contrastive_reward",
    "gaussian_blur",
    "presets",
    "simple_reward",
    "smooth_max",
]

__version__ = version("captum_extremal")
