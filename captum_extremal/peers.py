"""Other attribution methods: those that the paper compares with and Captum lacks.

Attribution classes under Captum's contract, like `ExtremalPerturbation`.
"""

from __future__ import annotations

from captum_extremal.methods.excitation import ExcitationBackprop
from captum_extremal.methods.meaningful import MeaningfulPerturbation
from captum_extremal.methods.rise import RISE

__all__ = ["RISE", "ExcitationBackprop", "MeaningfulPerturbation"]
