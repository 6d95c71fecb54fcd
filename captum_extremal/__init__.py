"""Extremal perturbations for Captum: the part of an input that a network needs.

Public names only; each module says what it turns into what.
"""

from __future__ import annotations

from importlib.metadata import version

from captum_extremal import presets
from captum_extremal.attribution.running import SearchInterrupted
from captum_extremal.channel import ChannelExtremalPerturbation
from captum_extremal.channels.class_channels import ClassChannels
from captum_extremal.channels.exciting_images import ExcitingImages
from captum_extremal.channels.image_priors import ImagePrior
from captum_extremal.channels.inversion import (
    ChannelComparison,
    FeatureInversion,
    Inversion,
    channel_saliency,
)
from captum_extremal.extremal import ExtremalPerturbation
from captum_extremal.extremality import Extremality
from captum_extremal.layer import LayerExtremalPerturbation
from captum_extremal.masks.max_convolution import MaskGenerator, smooth_max
from captum_extremal.perturbations.apply import apply_mask
from captum_extremal.perturbations.blur import gaussian_blur
from captum_extremal.perturbations.levels import (
    BlurPerturbation,
    FadePerturbation,
    Perturbation,
)
from captum_extremal.results.channels import ChannelResult
from captum_extremal.results.extremal import ExtremalResult
from captum_extremal.results.stability import Stability
from captum_extremal.solvers import (
    ChannelDescent,
    ChannelSolver,
    GradientSolver,
    LevelSetSolver,
    Problem,
    Restarts,
    Run,
    SearchSolver,
    Solution,
    Solver,
    StepwiseSolver,
    SwapSolver,
)
from captum_extremal.solvers.area_loss import (
    AreaLoss,
    AreaWeight,
    area_loss,
    area_reference,
)
from captum_extremal.solvers.rewards import contrastive_reward, simple_reward

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
    "LayerExtremalPerturbation",
    "LevelSetSolver",
    "MaskGenerator",
    "Perturbation",
    "Problem",
    "Restarts",
    "Run",
    "SearchInterrupted",
    "SearchSolver",
    "Solution",
    "Solver",
    "Stability",
    "StepwiseSolver",
    "SwapSolver",
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
