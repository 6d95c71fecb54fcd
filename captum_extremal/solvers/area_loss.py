r"""Masks -> a penalty that pins how much of them is one (Sec. 3.3).

.. math::
    R_a(m) = \| \operatorname{vecsort}(m) - r_a \|^2,
    \qquad r_a = (0, \dots, 0, \underbrace{1, \dots, 1}_{a |\Omega|})

The loss is zero where exactly the share ``a`` of the values is 1 and the rest is 0, and
nowhere else; it needs neither a bin width nor a temperature. Nothing here knows of
images: rows of gates, scores or attention weights in [0, 1] will do, for instance to
hold the share of active hidden units of a network or the fraction of a batch that is
selected, see `AreaLoss`.

No sort takes place. With n = a |Omega| ones, the n largest values face 1 and the others
0, so a partition suffices. Where values tie at the border between them, the loss does
not depend on which of them face 1, and all of them get the same gradient, the mean over
these choices: no position is preferred.

Convention:
    - area = fraction of a row's values in (0, 1]; a row has max(1, round(area * size))
      ones;
    - ``areas`` may be one number, or A numbers for K = N * A rows in image-major order:
      row k is held to ``areas[k % A]``. With A = K each row has its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from captum_extremal._base.checks import (
    check_areas,
    check_choice,
    check_positive,
)
from captum_extremal.masks.area import Areas, area_count, for_each_row, rows

Reduction = Literal["mean", "sum"]


def area_reference(num_pixels: int, area: float) -> Tensor:
    """The reference vector r_a: what a sorted mask of the right area looks like.

    Args:
        num_pixels: Number of values in the mask.
        area: Fraction of them that is to be one, in (0, 1].

    Returns:
        Zeros, then `area_count` ones, (num_pixels,), on the CPU.

    Raises:
        TypeError: If an argument is not a number.
        ValueError: If ``num_pixels`` is below 1 or ``area`` outside (0, 1].

    Example:
        >>> area_reference(5, 0.4)
        tensor([0., 0., 0., 1., 1.])
    """
    ones = area_count(num_pixels, area)
    reference = torch.zeros(num_pixels)
    reference[num_pixels - ones :] = 1
    return reference


def area_loss(masks: Tensor, areas: Areas, reduction: Reduction = "mean") -> Tensor:
    """R_a of each mask: how far its sorted values are from zeros followed by ones.

    A NaN in a mask makes the loss of its row NaN, and of no other row.

    Args:
        masks: K masks of any shape, whose values should lie in [0, 1].
        areas: A number, or A numbers that row k takes in turn, ``areas[k % A]``. A
            tensor on another device than the CPU is used there as it is: it is not
            checked to lie in (0, 1], since looking would wait for the device.
        reduction: ``"mean"`` over a mask's values, so that a weight means the same for
            any size (TorchRay's choice, and ours), or the paper's ``"sum"``.

    Returns:
        The loss of each mask; differentiable. For types shorter than float32 it is
        computed and returned in float32.

    Raises:
        TypeError: If ``masks`` is not a floating point tensor.
        ValueError: If an area lies outside (0, 1], ``masks`` is not a whole multiple of
            the areas or holds no values, or ``reduction`` is unknown.

    Shape:
        (K, ...) -> (K,)

    Example:
        >>> import torch
        >>> masks = torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.5, 0.5, 0.0, 0.0]])
        >>> area_loss(masks, 0.25)
        tensor([0.0000, 0.1250])
        >>> area_loss(masks, [0.25, 0.5], reduction="sum")
        tensor([0.0000, 0.5000])
    """
    check_choice("reduction", reduction, get_args(Reduction))
    values = rows(masks)
    with torch.no_grad():
        targets, spread = _targets(values, areas)
    squares = (values - targets).square()
    if reduction == "sum":
        return squares.sum(dim=1) + spread
    return squares.mean(dim=1) + spread / values.shape[1]


def _targets(values: Tensor, areas: Areas) -> tuple[Tensor, Tensor]:
    """What each value is pulled to, (K, num_pixels), and the loss that it leaves, (K,).

    Values above the n-th largest are pulled to 1, those below to 0. The E values equal
    to it take the mean q of their targets: sum_i (t - r_i)^2 over any choice of their
    0/1 targets r_i is E (t - q)^2 + E q (1 - q), with the gradient of the first term.
    """
    counts, thresholds = _partition(values, areas)
    above = values > thresholds
    ties = values == thresholds
    num_ties = ties.sum(dim=1, keepdim=True)
    share = (counts - above.sum(dim=1, keepdim=True)) / num_ties.to(values.dtype)
    targets = torch.where(ties, share, above.to(values.dtype))
    return targets, (num_ties * share * (1 - share)).squeeze(1)


def _partition(values: Tensor, areas: Areas) -> tuple[Tensor, Tensor]:
    """The number n of ones of each row, and its n-th largest value; both (K, 1)."""
    if isinstance(areas, Tensor) and areas.device.type != "cpu":
        return _partition_on_device(values, areas)
    num_masks, num_pixels = values.shape
    ones = [area_count(num_pixels, area) for area in check_areas(areas)]
    # Not blocking: the host must not wait for the device in a loop.
    counts = torch.tensor(ones).to(values.device, non_blocking=True)
    counts = for_each_row(counts, num_masks)
    columns = values.unflatten(0, (num_masks // len(ones), len(ones)))
    thresholds = [
        columns[:, column].kthvalue(num_pixels - n + 1, dim=1).values
        for column, n in enumerate(ones)
    ]
    return counts, torch.stack(thresholds, dim=1).view(-1, 1)


def _partition_on_device(values: Tensor, areas: Tensor) -> tuple[Tensor, Tensor]:
    """The same where the host does not know n, which a partition would need: sort."""
    num_masks, num_pixels = values.shape
    counts = (areas.flatten().double() * num_pixels).round().clamp(1, num_pixels)
    counts = for_each_row(counts.long(), num_masks)
    ordered = values.sort(dim=1, descending=True).values
    return counts, ordered.gather(1, counts - 1)


class AreaLoss(nn.Module):
    """`area_loss` with its areas: a module without parameters.

    Args:
        areas: A number, or A numbers for K = N * A masks in image-major order.
        reduction: ``"mean"`` over a mask's values or the paper's ``"sum"``.

    Raises:
        TypeError: If an area is not a number.
        ValueError: If an area lies outside (0, 1] or ``reduction`` is unknown.

    Shape:
        (K, ...) -> (K,)

    Example:
        Train the gates of six hidden units until a third of them, two, is open; the
        task's own loss would say which.

        >>> import torch
        >>> logits = torch.tensor([[0.3, -0.1, 0.2, 0.4, -0.3, 0.1]])
        >>> logits.requires_grad_()
        tensor([[ 0.3000, -0.1000,  0.2000,  0.4000, -0.3000,  0.1000]],
               requires_grad=True)
        >>> optimizer = torch.optim.SGD([logits], lr=10.0)
        >>> share_of_open_units = AreaLoss(1 / 3)
        >>> for _ in range(200):
        ...     optimizer.zero_grad()
        ...     share_of_open_units(logits.sigmoid()).sum().backward()
        ...     optimizer.step()
        >>> logits.sigmoid().round()
        tensor([[1., 0., 0., 1., 0., 0.]], grad_fn=<RoundBackward0>)
    """

    def __init__(self, areas: Areas, reduction: Reduction = "mean") -> None:
        super().__init__()
        check_choice("reduction", reduction, get_args(Reduction))
        self.areas = check_areas(areas)
        self.reduction: Reduction = reduction

    def forward(self, masks: Tensor) -> Tensor:
        """The loss of each mask, see `area_loss`."""
        return area_loss(masks, self.areas, self.reduction)

    def extra_repr(self) -> str:
        """The arguments."""
        return f"areas={self.areas}, reduction={self.reduction!r}"


@dataclass(frozen=True)
class AreaWeight:
    """The factor lambda of the area loss (eq. 4) as a search goes on.

    ``start * growth ** (iteration / iterations)``, doubled at every point of
    ``double_at`` reached.

    Args:
        start: The factor at iteration 0; 300 in the paper and in TorchRay.
        growth: Factor over the whole run. The default is TorchRay's over its 800
            iterations, 1.0035 each; 1 in the paper.
        double_at: Parts of the run, each in [0, 1], from which on the factor is twice
            as high; (1/3, 2/3) in the paper, with growth 1.

    Raises:
        TypeError: If a value is not a number.
        ValueError: If ``start`` or ``growth`` is not positive or a part lies outside
            [0, 1].

    Example:
        >>> paper = AreaWeight(growth=1.0, double_at=(1 / 3, 2 / 3))
        >>> [paper(iteration, 1600) for iteration in (0, 533, 534, 1599)]
        [300.0, 300.0, 600.0, 1200.0]
    """

    start: float = 300.0
    growth: float = 1.0035**800
    double_at: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        check_positive("start", self.start)
        check_positive("growth", self.growth)
        for part in self.double_at:
            if not 0 <= part <= 1:
                raise ValueError(f"double_at must lie in [0, 1], got {part}")

    def __call__(self, iteration: int, iterations: int) -> float:
        """The factor at ``iteration`` (from 0) of ``iterations``."""
        doublings = sum(iteration >= part * iterations for part in self.double_at)
        grown = float(self.growth ** (iteration / iterations))
        return self.start * grown * 2.0**doublings
