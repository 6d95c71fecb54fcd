"""Using the caller's model without leaving a trace in it."""

from __future__ import annotations

import itertools
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

_CHANGE_IN_TRAINING = ("BatchNorm", "Dropout", "InstanceNorm")


def warn_of_training(
    forward_func: Callable[..., Any], outputs: str = "scores", found: str = "masks"
) -> bool:
    """Warn of a model whose scores depend on the batch or on chance; whether it is.

    Args:
        forward_func: The caller's model.
        outputs: What is taken from the model, as the warning names it.
        found: What is made with it.
    """
    layers = training_layers(forward_func)
    if layers:
        warnings.warn(
            f"forward_func is in training mode (layers {', '.join(layers[:3])}"
            f"{', ...' if len(layers) > 3 else ''}): its {outputs} depend on the "
            f"batch or on chance. Call forward_func.eval() for meaningful {found}",
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
    model = module_of(forward_func)
    if model is None:
        return []
    return [
        name or type(module).__name__
        for name, module in model.named_modules()
        # A frozen scripted module has no mode.
        if getattr(module, "training", False) and _changes_in_training(module)
    ]


def module_of(forward_func: Callable[..., Any]) -> nn.Module | None:
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
    model = module_of(forward_func)
    if model is None:
        return False
    state = itertools.chain(model.parameters(), model.buffers())
    return any(tensor.is_inference() for tensor in state)


def check_differentiable(forward_func: Callable[..., Any]) -> None:
    """Refuse a model through which no gradient can ever pass."""
    if made_in_inference_mode(forward_func):
        raise RuntimeError(
            "forward_func was made inside torch.inference_mode(), so no gradient "
            "can pass through it; create or load the model outside of it"
        )


@contextmanager
def as_found(forward_func: Callable[..., Any], device: torch.device) -> Iterator[None]:
    """Put back what forwards may change: the global RNGs and the model's buffers.

    A model in training mode counts every forward into its running statistics, and
    its dropout draws from the global generators. Of a function that merely calls a
    model nothing is known, and nothing of that model is put back.
    """
    model = module_of(forward_func)
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


class _Reached(BaseException):
    """Ends a forward at the layer asked for, unseen by ``except Exception``."""


def layer_output(
    forward_func: Callable[..., Any],
    layer: nn.Module,
    inputs: Tensor,
    go_on: bool = True,
) -> Tensor:
    """What a layer gives for some inputs, with its graph; a copy.

    Args:
        forward_func: The caller's model.
        layer: A module that it runs.
        inputs: Passed to ``forward_func``.
        go_on: Whether the rest of the model runs too, so that a second run of the layer
            is noticed. If not, its first run ends the forward.

    Returns:
        The layer's output, safe from what later layers do to it in place.

    Raises:
        TypeError: If the layer does not give one tensor, alone or in a tuple.
        ValueError: If the layer does not run exactly once.
    """
    outputs: list[Any] = []

    def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:  # noqa: ANN401
        single = isinstance(output, tuple) and len(output) == 1
        output = output[0] if single else output
        outputs.append(output.clone() if isinstance(output, Tensor) else output)
        if not go_on:
            raise _Reached

    handle = layer.register_forward_hook(keep)
    try:
        forward_func(inputs)
    except _Reached:
        pass
    finally:
        handle.remove()
    if len(outputs) != 1:
        raise ValueError(
            "layer must run once in each call of forward_func, but ran "
            f"{len(outputs)} times"
        )
    if not isinstance(outputs[0], Tensor):
        raise TypeError(
            f"layer must give one tensor, got {type(outputs[0]).__name__}; choose a "
            "module inside it"
        )
    return outputs[0]
