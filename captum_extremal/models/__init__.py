"""Networks by name, with weights from a file, and what their outputs mean.

`networks` builds a model and its preprocessing, `checkpoints` reads weights of many
formats without running what is in the file, `probabilities` turns outputs into
probabilities. Nothing is downloaded.
"""

from __future__ import annotations

from captum_extremal.models.networks import (
    LoadedModel,
    Preprocess,
    load_demo,
    load_model,
    named_layer,
)

__all__ = ["LoadedModel", "Preprocess", "load_demo", "load_model", "named_layer"]
