"""What lies behind an error of a caller's model, where its own message does not say."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Score = Callable[[tuple[Tensor, ...], Tensor], Tensor]
"""Inputs and the example of each row (M,) -> what the model makes of each, M rows."""


def batches_explained(
    score: Score, option: str = "perturbations_per_eval", rows_of_outputs: bool = False
) -> Score:
    """The same, but an error that comes of the number of rows at once says so.

    Models that were exported for a batch of one (or of another number) take no other.
    Where a new number of rows fails, the same rows are tried one by one, and in batches
    of the numbers that have worked before.

    Args:
        score: Runs the model.
        option: The argument that bounds the rows of a forward.
        rows_of_outputs: Whether a result with another number of rows is an error; else
            ``score`` raises it.

    Returns:
        A function like ``score``.

    Example:
        >>> def first_row_only(inputs, examples):
        ...     return inputs[0].reshape(1, 2).sum(dim=1)
        >>> score = batches_explained(first_row_only)
        >>> score((torch.ones(2, 2),), torch.arange(2))
        Traceback (most recent call last):
        ...
        RuntimeError: forward_func takes batches of one alone: perturbations_per_eval=1; it failed on 2 rows: shape '[1, 2]' is invalid for input of size 4
    """  # noqa: E501
    worked: set[int] = set()

    def run(inputs: tuple[Tensor, ...], examples: Tensor) -> Tensor:
        found = score(inputs, examples)
        if rows_of_outputs and len(found) != len(examples):
            raise ValueError(f"it gave {len(found)} rows for {len(examples)}")
        return found

    def explained(inputs: tuple[Tensor, ...], examples: Tensor) -> Tensor:
        count = len(examples)
        try:
            found = run(inputs, examples)
        except Exception as error:
            if count in worked or not may_be_of_the_batch(error):
                raise
            for size in sorted({1, *worked}, reverse=True):
                if size < count and _runs_in_parts(run, inputs, examples, size):
                    kind = ValueError if isinstance(error, ValueError) else RuntimeError
                    name = "one" if size == 1 else str(size)
                    # The last line of a long one is the point of it.
                    text = str(error).strip().split("\n")[-1]
                    raise kind(
                        f"forward_func takes batches of {name} alone: {option}={size}; "
                        f"it failed on {count} rows: {text}"
                    ) from error
            raise
        worked.add(count)
        return found

    return explained


def may_be_of_the_batch(error: Exception) -> bool:
    """Whether another number of rows may help: not with arithmetic or memory.

    Example:
        >>> may_be_of_the_batch(RuntimeError()), may_be_of_the_batch(MemoryError())
        (True, False)
    """
    others = (ArithmeticError, MemoryError, torch.cuda.OutOfMemoryError)
    # PyTorch's own allocators raise a plain RuntimeError on a CPU.
    text = str(error).lower()
    out_of_memory = "allocate memory" in text or "out of memory" in text
    return not (isinstance(error, others) or out_of_memory or "alloc_failed" in text)


def _runs_in_parts(
    score: Score, inputs: tuple[Tensor, ...], examples: Tensor, size: int
) -> bool:
    """Whether all full batches of ``size`` of these rows work."""
    for start in range(0, len(examples) - size + 1, size):
        part = slice(start, start + size)
        try:
            score(tuple(tensor[part] for tensor in inputs), examples[part])
        except Exception:  # the model's own, of any kind
            return False
    return True


def gradients_of(
    total: Tensor, inputs: Sequence[Tensor], remedy: str
) -> Sequence[Tensor | None]:
    """`torch.autograd.grad`, None for what is not used; its error says what it means.

    Args:
        total: The sum of what is differentiated.
        inputs: By what.
        remedy: As of `of_gradients`.

    Example:
        >>> x, y = torch.ones(1, requires_grad=True), torch.ones(1, requires_grad=True)
        >>> gradients_of((2 * x).sum(), (x, y), "Do not.")
        (tensor([2.]), None)
    """
    try:
        found: Sequence[Tensor | None] = torch.autograd.grad(
            total, inputs, allow_unused=True
        )
    except RuntimeError as error:
        if not may_be_of_the_batch(error):
            raise
        raise of_gradients(error, remedy) from error
    return found


def of_gradients(error: Exception, remedy: str) -> RuntimeError:
    """The error for a model through which no gradient can be taken.

    Args:
        error: What was raised.
        remedy: What needs no gradients, as a sentence.

    Example:
        >>> of_gradients(RuntimeError("derivative is not implemented"), "Do not.")
        RuntimeError('no gradient can be taken through forward_func: derivative is not implemented. Do not.')
    """  # noqa: E501
    text = str(error).split("\n")[0].rstrip(".")
    if "heckpoint" in text:
        text = (
            "torch.utils.checkpoint must be called with use_reentrant=False, as its "
            "reentrant form does not work with torch.autograd.grad"
        )
    return RuntimeError(
        f"no gradient can be taken through forward_func: {text}. {remedy}"
    )
