"""An input -> what it is when perturbed, by degrees, under a mask.

`levels` are the perturbations, `apply` chooses among their levels by a mask, `blur` is
the Gaussian blur beneath. `PERTURBATIONS` are those that have a name.
"""

from __future__ import annotations

from collections.abc import Callable

from captum_extremal.perturbations.levels import (
    BlurPerturbation,
    FadePerturbation,
    Perturbation,
)

PERTURBATIONS: dict[str, Callable[[], Perturbation]] = {
    "blur": BlurPerturbation,
    "fade": FadePerturbation,
}
"""Perturbations by name, the default first: for arguments and the command line."""

__all__ = ["PERTURBATIONS", "BlurPerturbation", "FadePerturbation", "Perturbation"]
