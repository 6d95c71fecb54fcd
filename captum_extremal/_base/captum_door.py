"""The only door to Captum's underscored helpers (Captum 0.8 and 0.9).

Everything that Captum keeps private and that a drop-in method needs is imported
here and nowhere else, so that a new Captum version changes one file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, cast

import torch
from captum._utils.common import (
    _format_additional_forward_args,
    _format_output,
    _format_tensor_into_tuples,
    _run_forward,
    _select_targets,
    _validate_target,
)
from captum._utils.progress import NullProgress, progress
from torch import Tensor

from captum_extremal._base.causes import batches_explained

Target = int | tuple[int, ...] | Tensor | list[int] | list[tuple[int, ...]] | None


class ProgressBar(Protocol):
    """What is needed of a progress bar, whichever Captum version makes it."""

    def update(self, n: int = 1) -> object:
        """Advance by ``n`` steps."""

    def close(self) -> object:
        """Take the bar off the screen; safe to call twice."""


def progress_bar(show: bool, desc: str, total: int | None) -> ProgressBar:
    """Captum's progress bar (tqdm on stderr), or one that shows nothing."""
    bar = progress(desc=desc, total=total) if show else NullProgress()
    return cast(ProgressBar, bar)


def as_tuple(inputs: Any) -> tuple[Tensor, ...]:  # noqa: ANN401
    """A tensor or a tuple of tensors as a tuple; a list is Captum's AssertionError."""
    return cast("tuple[Tensor, ...]", _format_tensor_into_tuples(inputs))


def like_inputs(is_tuple: bool, outputs: tuple[Tensor, ...]) -> Any:  # noqa: ANN401
    """Undo `as_tuple`: a tuple if the caller gave one, else the only tensor."""
    return _format_output(is_tuple, outputs)


def as_arguments(additional_forward_args: Any) -> tuple[Any, ...]:  # noqa: ANN401
    """Captum's ``additional_forward_args`` as a tuple, empty for None.

    Tensors made in inference mode are copied: a gradient may have to pass beside them.
    """
    args = _format_additional_forward_args(additional_forward_args) or ()
    return tuple(
        arg.clone() if isinstance(arg, Tensor) and arg.is_inference() else arg
        for arg in args
    )


def as_target(target: Target, device: torch.device) -> Target:
    """The same target in the form that costs nothing inside a loop.

    A one-element tensor becomes an int and a list of ints a tensor on ``device``, so
    that no later selection has to wait for the device.
    """
    if isinstance(target, Tensor):
        single = target.numel() == 1 and not target.is_floating_point()
        return int(target) if single else target.to(device)
    if not isinstance(target, list) or len(target) == 1:
        return target
    whole = all(type(index) is int for index in target)
    return torch.tensor(target, device=device) if whole else target


def check_target(target: Target, num_examples: int) -> None:
    """Captum's AssertionError unless a list or tensor has one entry an example."""
    _validate_target(num_examples, target)


def take_rows(value: Any, rows: Tensor, num_examples: int) -> Any:  # noqa: ANN401
    """The entries ``rows`` of a target or forward argument with one entry an example.

    What does not hold one entry an example (a number, a tuple, a 0-d tensor, any
    other object) is for all of them and passes through.
    """
    if isinstance(value, Tensor) and value.dim() > 0 and len(value) == num_examples:
        return value[rows.to(value.device)]
    if isinstance(value, list) and len(value) == num_examples:
        return [value[row] for row in rows.tolist()]
    return value


def select_targets(outputs: Tensor, target: Target) -> Tensor:
    """Captum's selection: the entry of ``outputs`` that ``target`` names, (K,).

    Captum's errors keep their type; where it leaves them to PyTorch, the message names
    the argument.
    """
    if not isinstance(outputs, Tensor):
        raise TypeError(
            f"forward_func must return a tensor, got {type(outputs).__name__}; wrap "
            f"the model{_unwrapped(outputs)}, or pass a reward that takes what it "
            "returns"
        )
    if isinstance(target, Tensor) and target.is_inference():
        target = target.clone()  # which a gradient may have to remember
    try:
        return _select_targets(outputs, target)
    except (IndexError, RuntimeError) as error:
        raise type(error)(
            f"target must name one output of each example in {tuple(outputs.shape)}, "
            f"got {target}: {error}"
        ) from error


def _unwrapped(outputs: Any) -> str:  # noqa: ANN401
    """How the first tensor is taken out of what a model returns."""
    if isinstance(outputs, Mapping):
        entries = list(outputs.items())
    else:
        entries = list(enumerate(outputs)) if isinstance(outputs, tuple | list) else []
    keys = [key for key, value in entries if isinstance(value, Tensor)]
    return f", as in lambda x: model(x)[{keys[0]!r}]" if keys else ""


def run_forward(
    forward_func: Callable[..., Tensor],
    inputs: tuple[Tensor, ...],
    additional_forward_args: tuple[Any, ...],
) -> Tensor:
    """The model's whole output, before any target is selected."""
    return cast(
        Tensor, _run_forward(forward_func, inputs, None, additional_forward_args)
    )


def forward_of_rows(
    forward_func: Callable[..., Tensor],
    target: Target,
    additional_forward_args: object,
    num_examples: int,
    device: torch.device,
) -> Callable[[tuple[Tensor, ...], Tensor], tuple[Tensor, Target]]:
    """Perturbed inputs and the example of each row -> outputs, and their targets."""
    arguments = as_arguments(additional_forward_args)
    fast_target = as_target(target, device)

    def forward(inputs: tuple[Tensor, ...], examples: Tensor) -> tuple[Tensor, Target]:
        extra = tuple(
            take_rows(arg, examples, num_examples) if isinstance(arg, Tensor) else arg
            for arg in arguments
        )
        outputs = run_forward(forward_func, inputs, extra)
        return outputs, take_rows(fast_target, examples, num_examples)

    return forward


def score_of_rows(
    forward_func: Callable[..., Tensor],
    num_examples: int,
    target: Target,
    additional_forward_args: object,
    device: torch.device,
) -> Callable[[tuple[Tensor, ...], Tensor], Tensor]:
    """Perturbed inputs and the example of each row -> the target's score of each row.

    The scores are of the outputs' dtype, at least float32.
    """
    check_target(target, num_examples)
    forward = forward_of_rows(
        forward_func, target, additional_forward_args, num_examples, device
    )

    def score(inputs: tuple[Tensor, ...], images: Tensor) -> Tensor:
        outputs, chosen = forward(inputs, images)
        return one_score_each(select_targets(outputs, chosen), len(images))

    return batches_explained(score)


def one_score_each(scores: Tensor, count: int) -> Tensor:
    """The same as (count,), as precise as they came and at least float32.

    Raises:
        ValueError: If there is another number of scores.
        TypeError: If they are complex.
    """
    if not isinstance(scores, Tensor) or scores.numel() != count:
        shape = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores)
        raise ValueError(
            "forward_func and target must give one score per example: expected shape "
            f"({count},), got {shape}. Name one output with target, or reduce the "
            "output in a function around the model, or in a reward"
        )
    if scores.is_complex():
        raise TypeError(f"forward_func must give real scores, got {scores.dtype}")
    scores = scores.reshape(count)
    return scores.to(torch.promote_types(scores.dtype, torch.float32))
