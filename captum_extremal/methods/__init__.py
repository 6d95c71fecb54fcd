"""Other attribution methods: as attribution classes, and all of them by name.

`rise`, `meaningful` and `excitation` are classes under Captum's contract, `adapters`
and `registry` turn these and Captum's own into maps by name, `sanity` asks whether maps
depend on the model's weights.
"""

from __future__ import annotations

from captum_extremal.methods.adapters import Explained, Method, Options
from captum_extremal.methods.registry import METHODS, compare, explainer

__all__ = ["METHODS", "Explained", "Method", "Options", "compare", "explainer"]
