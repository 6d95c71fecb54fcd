"""Using the caller's model without leaving a trace in it."""

from __future__ import annotations

import itertools
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

_CHANGE_IN_TRAINING = ("BatchNorm", "Dropout", "InstanceNorm")


def warn_of_training(forward_func: Callable[..., Any]) -> bool:
    """Whether the model is in training mode and that matters; if so, a warning."""
    layers = training_layers(forward_func)
    if layers:
        warnings.warn(
            f"forward_func is in training mode (layers {', '.join(layers[:3])}"
            f"{', ...' if len(layers) > 3 else ''}): its scores depend on the "
            "batch or on chance. Call forward_func.eval() for meaningful masks",
            stacklevel=_caller_level(),
        )
    return bool(layers)


def _caller_level() -> int:
    """The ``stacklevel``, seen from the caller, of the first frame that is theirs."""
    frame, level = sys._getframe(1), 1  # noqa: SLF001
    inside = ("captum", "captum_extremal", "contextlib")
    while frame.f_back and frame.f_globals.get("__name__", "").split(".")[0] in inside:
        frame, level = frame.f_back, level + 1
    return level


def training_layers(forward_func: Callable[..., Any]) -> list[str]:
    """Names of the layers in training mode that behave otherwise in evaluation mode."""
    model = _module_of(forward_func)
    if model is None:
        return []
    return [
        name or type(module).__name__
        for name, module in model.named_modules()
        # A frozen scripted module has no mode.
        if getattr(module, "training", False) and _changes_in_training(module)
    ]


def _module_of(forward_func: Callable[..., Any]) -> nn.Module | None:
    """The model itself, or the one whose method it is."""
    owner = getattr(forward_func, "__self__", forward_func)
    return owner if isinstance(owner, nn.Module) else None


def _changes_in_training(module: nn.Module) -> bool:
    """Told by the name of the class, which a scripted module keeps."""
    name = getattr(module, "original_name", type(module).__name__)
    if "InstanceNorm" in name:
        return bool(getattr(module, "track_running_stats", False))
    return any(kind in name for kind in _CHANGE_IN_TRAINING)


def made_in_inference_mode(forward_func: Callable[..., Any]) -> bool:
    """Whether a parameter or buffer can never take part in a gradient."""
    model = _module_of(forward_func)
    if model is None:
        return False
    state = itertools.chain(model.parameters(), model.buffers())
    return any(tensor.is_inference() for tensor in state)


@contextmanager
def as_found(forward_func: Callable[..., Any], device: torch.device) -> Iterator[None]:
    """Put back what forwards may change: the global RNGs and the model's buffers.

    A model in training mode counts every forward into its running statistics, and
    its dropout draws from the global generators. Of a function that merely calls a
    model nothing is known, and nothing of that model is put back.
    """
    model = _module_of(forward_func)
    held = [] if model is None else list(model.buffers())
    buffers = [(buffer, buffer.clone()) for buffer in held]
    cuda = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        try:
            yield
        finally:
            with torch.no_grad():
                for buffer, before in buffers:
                    # Not touched where nothing was: other threads may be using it.
                    if not torch.equal(buffer, before):
                        buffer.copy_(before)
