"""Using the caller's model without leaving a trace in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

_CHANGES_IN_TRAINING = (_BatchNorm, _DropoutNd)


def training_layers(forward_func: Callable[..., Any]) -> list[str]:
    """Names of the BatchNorm and Dropout layers that are in training mode."""
    if not isinstance(forward_func, nn.Module):
        return []
    return [
        name or type(module).__name__
        for name, module in forward_func.named_modules()
        if module.training and isinstance(module, _CHANGES_IN_TRAINING)
    ]


def made_in_inference_mode(forward_func: Callable[..., Any]) -> bool:
    """Whether the model's parameters can never take part in a gradient."""
    if not isinstance(forward_func, nn.Module):
        return False
    return any(parameter.is_inference() for parameter in forward_func.parameters())


@contextmanager
def as_found(forward_func: Callable[..., Any], device: torch.device) -> Iterator[None]:
    """Put back what forwards may change: global RNGs and a training model's buffers.

    A model in training mode counts every forward into its running statistics, and
    its dropout draws from the global generators.
    """
    buffers: list[tuple[Tensor, Tensor]] = []
    if isinstance(forward_func, nn.Module) and training_layers(forward_func):
        buffers = [(buffer, buffer.clone()) for buffer in forward_func.buffers()]
    cuda = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        try:
            yield
        finally:
            with torch.no_grad():
                for buffer, before in buffers:
                    buffer.copy_(before)
