"""torchrun's environment -> which of how many processes this one is.

Images are independent, so that the processes need each other only twice: the first
tells the others what is missing, and prints when all are done. Nothing else goes over
the network (gloo, also where the models run on GPUs; NCCL would end a process that
waits for long). The results meet in the folder.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import NamedTuple, TypeVar, cast

import torch
from torch import distributed

T = TypeVar("T")

_PATIENCE = timedelta(days=30)  # a rank may wait for a slower one as long as this


class Rank(NamedTuple):
    """One process among several.

    Attributes:
        number: From 0.
        total: How many there are.

    Example:
        >>> Rank(1, 3).share(["a", "b", "c", "d", "e"])
        ['b', 'e']
        >>> Rank().share(["a", "b"])
        ['a', 'b']
    """

    number: int = 0
    total: int = 1

    def share(self, items: Sequence[T]) -> list[T]:
        """Every ``total``-th of the items: over all ranks each item once."""
        return list(items[self.number :: self.total])

    def told(self, found: Callable[[], T]) -> T:
        """What ``found`` returns in the first process, in every process."""
        if self.total == 1:
            return found()
        said = [found() if self.number == 0 else None]
        distributed.broadcast_object_list(said, src=0)
        return cast("T", said[0])

    def wait(self) -> None:
        """Return once every process has come here."""
        if self.total > 1:
            distributed.barrier()


@contextmanager
def processes() -> Iterator[Rank]:
    """The rank that torchrun gave this process; 0 of 1 without torchrun.

    Yields:
        The rank. Inside the block its `Rank.wait` works.

    Raises:
        ValueError: If ``RANK`` and ``WORLD_SIZE`` are set and make no sense.

    Example:
        >>> with processes() as rank:
        ...     rank
        Rank(number=0, total=1)
    """
    rank = _from_environment()
    if rank.total == 1:
        yield rank
        return
    distributed.init_process_group("gloo", timeout=_PATIENCE)
    try:
        yield rank
    finally:
        distributed.destroy_process_group()


def local_device(name: str) -> torch.device:
    """The device of this process: ``"cuda"`` means a GPU of its own on each machine.

    Args:
        name: As for `torch.device`.

    Returns:
        With torchrun ``cuda:LOCAL_RANK`` for ``cuda``, else the device of that name.

    Example:
        >>> local_device("cpu")
        device(type='cpu')
    """
    device = torch.device(name)
    local = os.environ.get("LOCAL_RANK")
    if device.type == "cuda" and device.index is None and local is not None:
        return torch.device("cuda", int(local) % max(1, torch.cuda.device_count()))
    return device


def _from_environment() -> Rank:
    found = [os.environ.get(name) for name in ("RANK", "WORLD_SIZE")]
    if found == [None, None]:
        return Rank()
    try:
        rank = Rank(*(int(value or "") for value in found))
    except ValueError:
        rank = Rank(0, 0)
    if not 0 <= rank.number < rank.total:
        raise ValueError(
            "RANK and WORLD_SIZE must be set together, as torchrun does, with RANK in "
            f"0..WORLD_SIZE-1, got {found[0]} and {found[1]}"
        )
    return rank
