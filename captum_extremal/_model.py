"""Using the caller's model without leaving a trace in it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

_CHANGE_IN_TRAINING = ("BatchNorm", "Dropout", "InstanceNorm")


def training_layers(forward_func: Callable[..., Any]) -> list[str]:
    """Names of the layers in training mode that behave otherwise in evaluation mode."""
    if not isinstance(forward_func, nn.Module):
        return []
    return [
        name or type(module).__name__
        for name, module in forward_func.named_modules()
        if module.training and _changes_in_training(module)
    ]


def _changes_in_training(module: nn.Module) -> bool:
    """Told by the name of the class, which a scripted module keeps."""
    name = getattr(module, "original_name", type(module).__name__)
    if "InstanceNorm" in name:
        return bool(getattr(module, "track_running_stats", False))
    return any(kind in name for kind in _CHANGE_IN_TRAINING)


def made_in_inference_mode(forward_func: Callable[..., Any]) -> bool:
    """Whether a parameter or buffer can never take part in a gradient."""
    if not isinstance(forward_func, nn.Module):
        return False
    state = itertools.chain(forward_func.parameters(), forward_func.buffers())
    return any(tensor.is_inference() for tensor in state)


@contextmanager
def as_found(forward_func: Callable[..., Any], device: torch.device) -> Iterator[None]:
    """Put back what forwards may change: global RNGs and a training model's buffers.

    A model in training mode counts every forward into its running statistics, and
    its dropout draws from the global generators.
    """
    buffers: list[tuple[Tensor, Tensor]] = []
    if isinstance(forward_func, nn.Module) and any(
        module.training for module in forward_func.modules()
    ):
        buffers = [(buffer, buffer.clone()) for buffer in forward_func.buffers()]
    cuda = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        try:
            yield
        finally:
            with torch.no_grad():
                for buffer, before in buffers:
                    buffer.copy_(before)
