"""Which dimension of an activation its channels are.

Convolutions give (N, channels, *S), transformers (N, tokens, features) or (N, H, W,
features). It is told by the widths of layers: the numbers of channels or features that
those of the layer itself, or else of the model, take and give.
"""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from torch import nn

from captum_extremal._base.model import caller_level, module_of

_FIRST = ("in_channels", "num_features", "num_channels", "out_channels")
_LAST = (
    "in_features", "nx", "input_size", "normalized_shape",
    "embedding_dim", "hidden_size", "nf", "out_features",
)  # fmt: skip


class _Width(NamedTuple):
    size: int
    last: bool  # whether a layer of this kind has its features in the last dimension


def channel_dim_of(
    shape: Sequence[int],
    layer: nn.Module,
    forward_func: Callable[..., Any],
    at_input: bool = False,
) -> int | None:
    """The dimension of the channels, 1 or the last; None where nothing tells.

    Args:
        shape: Of the activation, with the examples first.
        layer: What gives it.
        forward_func: The model.
        at_input: Whether it is what the layer takes.

    Example:
        >>> block = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8))
        >>> channel_dim_of((1, 17, 8), block, block)
        2
        >>> channel_dim_of((1, 8, 17), nn.Conv1d(4, 8, 3), block)
        1
        >>> channel_dim_of((1, 17, 5), nn.ReLU(), block) is None
        True
    """
    if len(shape) < 3:
        return 1
    ends = [list(_widths(module)) for module in layer.modules()]
    ends = [widths for widths in ends if widths]
    own = [(ends[0][:1] if at_input else ends[-1][-1:])] if ends else []
    inside = [width for widths in ends for width in widths]
    for widths in (*own, inside, _widths_in(forward_func)):
        found = _matching(shape, widths)
        if found is not None:
            return found
    return None


def hint_at_features(
    shape: Sequence[int],
    layer: nn.Module,
    forward_func: Callable[..., Any],
    at_input: bool = False,
) -> bool:
    """Warn if ``channel_dim=1`` may not be meant of an activation; whether it did."""
    found = channel_dim_of(shape, layer, forward_func, at_input)
    if found == 1 or (found is None and len(shape) != 3):
        return False
    if found is None and not all(width.last for width in _widths_in(forward_func)):
        return False  # as likely a signal's
    sizes = ", ".join(map(str, shape[1:]))
    seems = "may be" if found is None else "seems to be"
    warnings.warn(
        f"channel_dim=1 takes the {shape[1]} of an activation (N, {sizes}) for its "
        f"channels, but it {seems} (N, {'tokens' if len(shape) == 3 else '...'}, "
        f"features): channel_dim={len(shape) - 1} or -1 takes the {shape[-1]} "
        f"features. channel_dim={1 - len(shape)} means dimension 1 without this "
        "warning",
        stacklevel=caller_level(),
    )
    return True


def _models_of(forward_func: Callable[..., Any]) -> list[nn.Module]:
    """The model, or those that a function has at hand."""
    model = module_of(forward_func)
    if model is not None:
        return [model]
    while isinstance(forward_func, functools.partial):
        forward_func = forward_func.func
    if not inspect.isfunction(forward_func):
        return []
    try:
        names = inspect.getclosurevars(forward_func)
    except ValueError:  # a variable that has no value yet
        return []
    defaults = forward_func.__defaults__ or ()
    values = (*names.nonlocals.values(), *names.globals.values(), *defaults)
    found = [
        module_of(value)
        for value in values
        if isinstance(value, nn.Module) or inspect.ismethod(value)
    ]
    return [model for model in found if model is not None]


def _widths_in(forward_func: Callable[..., Any]) -> list[_Width]:
    models = _models_of(forward_func)
    modules = [module for model in models for module in model.modules()]
    return [width for module in modules for width in _widths(module)]


def _widths(module: nn.Module) -> Iterator[_Width]:
    """What a layer takes and what it gives, in this order."""
    if any(True for child in module.children() for _ in child.parameters()):
        return
    for names in (_FIRST, _LAST):
        for name in names:
            width = getattr(module, name, None)
            if isinstance(width, tuple) and len(width) == 1:
                width = width[0]
            if isinstance(width, int) and not isinstance(width, bool):
                yield _Width(width, names is _LAST)


def _matching(shape: Sequence[int], widths: Iterable[_Width]) -> int | None:
    """The only dimension of such a width; of two the one that its layers mean."""
    widths = list(widths)
    last = len(shape) - 1
    fits = {dim: [w for w in widths if w.size == shape[dim]] for dim in (1, last)}
    if not fits[1] or not fits[last]:
        return 1 if fits[1] else last if fits[last] else None
    first_meant = any(not width.last for width in fits[1])
    last_meant = any(width.last for width in fits[last])
    if first_meant == last_meant:
        return None
    return 1 if first_meant else last
