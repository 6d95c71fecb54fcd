"""`pointing_game` over a data set: hits and misses of each class, on every rank.

The published number is the mean over classes of each class's share of hits, on all
pairs of image and class and on a subset of difficult ones (Table 1).
"""

from __future__ import annotations

import functools
import hashlib
import pickle
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from captum_extremal._base.checks import check_count, check_non_negative, check_shape
from captum_extremal.metrics.pointing import pointing_game


class Accumulator(Metric):
    """A metric with a state that tells its settings, for metrics to derive from.

    A `torchmetrics.MetricCollection` updates one for all of those whose states were
    equal after the first batch. Two metrics whose counts happen to agree by then, but
    that go on differently, must differ in their states. Settings are the class, the
    attributes and buffers that it sets, and which modules it holds.

    Args:
        **kwargs: Of `torchmetrics.Metric`.

    Example:
        >>> one, other, same = (PointingGame(1, tolerance=t) for t in (15, 0, 15))
        >>> attributions = torch.tensor([[[0.0, 1.0]]])
        >>> for metric in (one, other, same):
        ...     metric.update(attributions, attributions[0] > 0, torch.tensor([0]))
        >>> one.settings.equal(other.settings), one.settings.equal(same.settings)
        (False, True)
    """

    settings: Tensor

    def __init__(self, **kwargs: Any) -> None:  # noqa: ANN401
        super().__init__(**kwargs)
        self._of_every_metric = {*vars(self), "_of_every_metric"}
        # Bytes, which torchmetrics compares by `allclose` and takes the maximum of.
        self.add_state("settings", torch.zeros(_BYTES).long(), dist_reduce_fx="max")

    def __init_subclass__(cls, **kwargs: Any) -> None:  # noqa: ANN401
        super().__init_subclass__(**kwargs)
        if "update" in vars(cls):
            cls.update = _telling(cls.update)  # type: ignore[method-assign]

    def _digest(self) -> list[int]:
        """The same bytes for the same settings."""
        others = {*self._of_every_metric, *self._defaults}
        own = {name: it for name, it in vars(self).items() if name not in others}
        try:
            modules = {name: id(it) for name, it in self._modules.items()}
            content = pickle.dumps((type(self), own, self._buffers, modules))
        except (AttributeError, TypeError, pickle.PicklingError):  # such as a lambda
            content = str(id(self)).encode()
        return list(hashlib.sha256(content).digest()[:_BYTES])


_BYTES = 16


def _telling(update: Callable[..., None]) -> Callable[..., None]:
    """An ``update`` that leaves the settings in the state too."""

    @functools.wraps(update)
    def told(self: Accumulator, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        update(self, *args, **kwargs)
        self.settings = torch.tensor(self._digest(), device=self.settings.device)

    return told


class PointingGame(Accumulator):
    """Accuracy in the pointing game, by class: a `torchmetrics.Metric`.

    Needs the extra ``metrics``: ``pip install 'captum_extremal[metrics]'``. The state
    is four counts a class, summed over ranks by torchmetrics, and the settings as
    bytes, so that a `torchmetrics.MetricCollection` takes games of other tolerances for
    other metrics.

    Args:
        num_classes: Number of classes, 20 for VOC and 80 for COCO.
        tolerance: As in `pointing_game`.
        **kwargs: Of `torchmetrics.Metric`, such as ``sync_on_compute``.

    Raises:
        TypeError: If ``num_classes`` is not an int or ``tolerance`` not a number.
        ValueError: If ``num_classes`` is below 1 or ``tolerance`` negative or infinite.

    Example:
        >>> import torch
        >>> metric = PointingGame(num_classes=3, tolerance=0)
        >>> attributions = torch.tensor([[[0.0, 1.0]], [[0.0, 1.0]], [[1.0, 0.0]]])
        >>> object_masks = torch.tensor([[False, True], [True, False], [True, False]])
        >>> metric.update(attributions, object_masks, labels=torch.tensor([0, 0, 2]))
        >>> metric.compute()["accuracy"]
        tensor(0.7500)
        >>> metric.compute()["per_class"]
        tensor([0.5000,    nan, 1.0000])
    """

    full_state_update = False
    higher_is_better = True
    is_differentiable = False

    hits: Tensor
    misses: Tensor
    difficult_hits: Tensor
    difficult_misses: Tensor

    def __init__(
        self,
        num_classes: int,
        tolerance: float = 15,
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        super().__init__(**kwargs)
        self.num_classes = check_count("num_classes", num_classes)
        self.tolerance = check_non_negative("tolerance", tolerance)
        for name in ("hits", "misses", "difficult_hits", "difficult_misses"):
            counts = torch.zeros(num_classes, dtype=torch.long)
            self.add_state(name, counts, dist_reduce_fx="sum")

    def update(
        self,
        attributions: Tensor | tuple[Tensor, ...],
        object_masks: Tensor | tuple[Tensor, ...],
        labels: Tensor,
        difficult: Tensor | None = None,
    ) -> None:
        """Add N examples, each an image with one of its classes.

        Undefined examples (`pointing_game` is NaN) are not counted.

        Args:
            attributions: (N, C, *S) or a tuple, as in `pointing_game`.
            object_masks: The union of the class's instances, (N, *S) or (N, 1, *S).
            labels: (N,) class of each example, whole numbers from 0 to
                ``num_classes`` - 1; read on the host.
            difficult: (N,) bool, True for an example of the difficult subset. None:
                none of them.

        Raises:
            TypeError: If a tensor is of another type.
            ValueError: If shapes do not agree or a label is out of range.
        """
        hits = pointing_game(attributions, object_masks, self.tolerance)
        if difficult is None:
            difficult = torch.zeros(len(hits), dtype=torch.bool)
        self._check_labels(labels, len(hits))
        _check_flags(difficult, len(hits))
        labels, difficult = labels.to(hits.device), difficult.to(hits.device)
        hit, miss = hits == 1, hits == 0  # neither where NaN
        self._count("hits", labels[hit])
        self._count("misses", labels[miss])
        self._count("difficult_hits", labels[hit & difficult])
        self._count("difficult_misses", labels[miss & difficult])

    def compute(self) -> dict[str, Tensor]:
        """The accuracies of all examples so far.

        Returns:
            ``per_class``: share of hits of each class, (num_classes,), NaN for a class
            without a defined example. ``accuracy``: its mean over the other classes, a
            scalar, NaN if there are none. ``difficult_per_class`` and
            ``difficult_accuracy``: the same on the difficult subset.
        """
        per_class = _shares(self.hits, self.misses)
        difficult = _shares(self.difficult_hits, self.difficult_misses)
        return {
            "accuracy": per_class.nanmean(),
            "per_class": per_class,
            "difficult_accuracy": difficult.nanmean(),
            "difficult_per_class": difficult,
        }

    def _count(self, name: str, labels: Tensor) -> None:
        counts: Tensor = getattr(self, name)
        new = labels.to(counts.device).bincount(minlength=self.num_classes)
        setattr(self, name, counts + new)

    def _check_labels(self, labels: Tensor, num: int) -> None:
        came = labels.dtype if isinstance(labels, Tensor) else type(labels).__name__
        if came not in _WHOLE:
            raise TypeError(f"labels must be a tensor of whole numbers, got {came}")
        check_shape("labels", labels, "N", N=num)
        wrong = labels[(labels < 0) | (labels >= self.num_classes)].tolist()
        if wrong:
            raise ValueError(
                f"labels must lie in 0 to {self.num_classes - 1}, got {wrong[0]}"
            )


_WHOLE = {torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64}


def _check_flags(difficult: Tensor, num: int) -> None:
    came = (
        difficult.dtype if isinstance(difficult, Tensor) else type(difficult).__name__
    )
    if came != torch.bool:
        raise TypeError(f"difficult must be a bool tensor, got {came}")
    check_shape("difficult", difficult, "N", N=num)


def _shares(hits: Tensor, misses: Tensor) -> Tensor:
    """Hits among all; a class without an example is 0 / 0, NaN."""
    return hits / (hits + misses)
