"""Other attribution methods: those that the paper compares with and Captum lacks.

Attribution classes under Captum's contract, like `ExtremalPerturbation`.
"""

from __future__ import annotations

from captum_extremal.peers.excitation import ExcitationBackprop
from captum_extremal.peers.meaningful import MeaningfulPerturbation
from captum_extremal.peers.rise import RISE

__all__ = ["RISE", "ExcitationBackprop", "MeaningfulPerturbation"]
