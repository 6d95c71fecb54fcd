r"""Scores over sizes: the smallest sufficient size a*, and if evidence only adds up.

A size is an area or a number of channels; of several, any order will do. With Phi_0 the
score to reach, by default that of the untouched input,

.. math:: a^* = \min\{a : \Phi(m_a \otimes x) \ge \Phi_0\} \qquad (3, 10)

The paper tests for each image whether (Sec. 4.3)

.. math:: a_1 \le a_2 \Rightarrow \Phi(m_{a_1} \otimes x) \le \Phi(m_{a_2} \otimes x)
          \quad \text{for all } a_1, a_2 < a^* \qquad (8)

and reports the share of images where it holds: 98.45 % of ImageNet's validation images
with VGG16. An image with fewer than two areas below :math:`a^*` has nothing to compare
and holds; how many these are says how much the share is worth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from captum_extremal._base.checks import check_areas, check_shape

EVIDENCE_AREAS = (0.05, 0.1, 0.2, 0.4, 0.6, 0.8)
"""The areas of Sec. 4."""


@dataclass(frozen=True)
class Curve:
    """The scores of one image in order of growing size; `of` makes it.

    Attributes:
        sizes: Areas, or numbers of channels.
        scores: Of what each mask keeps.
        complement_scores: Of the rest.
        input_score: Of the untouched input.
        perturbed_score: Of the fully perturbed input.
        a_star: The place of the smallest sufficient size; None where none suffices.
        runs: Where the search was repeated: for each size the scores of all runs.
        overlaps: And how far the masks of two runs overlap, on average.

    Example:
        >>> import torch
        >>> scores = torch.tensor([3.0, 1.0])
        >>> curve = Curve.of([0.5, 0.1], scores, -scores, scores[0], scores[1])
        >>> curve.sizes, curve.scores, curve.a_star, curve.smallest_sufficient
        ((0.1, 0.5), (1.0, 3.0), 1, 0.5)
    """

    sizes: Sequence[float]
    scores: Sequence[float]
    complement_scores: Sequence[float]
    input_score: float
    perturbed_score: float
    a_star: int | None
    runs: Sequence[Sequence[float]] = ()
    overlaps: Sequence[float] = ()

    @classmethod
    def of(
        cls,
        sizes: Sequence[float],
        scores: Tensor,
        complement_scores: Tensor,
        input_score: Tensor,
        perturbed_score: Tensor,
        *,
        runs: tuple[Tensor, Tensor] | None = None,
    ) -> Curve:
        """From sizes in any order, two rows (A,) of scores and two single ones.

        Of R runs besides their scores (A, R) and overlaps (A,).
        """
        order = growing(sizes)
        enough = (scores[order] >= input_score.to(scores)).tolist()
        return cls(
            tuple(sizes[place] for place in order),
            tuple(scores[order].tolist()),
            tuple(complement_scores[order].tolist()),
            float(input_score),
            float(perturbed_score),
            enough.index(True) if True in enough else None,
            *([] if runs is None else [values[order].tolist() for values in runs]),
        )

    @property
    def smallest_sufficient(self) -> float | None:
        """The size a* itself (eq. 3 and 10)."""
        return None if self.a_star is None else self.sizes[self.a_star]


def told_of_overlap(curve: Curve, place: int) -> str:
    """How far the runs agree on the mask of a size, in words.

    Example:
        >>> curve = Curve([0.1], [3.0], [1.0], 2.0, 0.0, 0, [[3.0, 2.5]], [0.541])
        >>> told_of_overlap(curve, 0)
        '2 runs overlap by 54 %'
    """
    overlap, runs = curve.overlaps[place], len(curve.runs[place])
    return f"{runs} runs overlap by {100 * overlap:.0f} %" if runs > 1 else "1 run"


def growing(sizes: Sequence[float]) -> list[int]:
    """The places of sizes from the smallest to the largest.

    Example:
        >>> growing([0.4, 0.1, 0.2])
        [1, 2, 0]
    """
    return sorted(range(len(sizes)), key=sizes.__getitem__)


def smallest_sufficient(
    areas: Sequence[float], scores: Tensor, threshold: float | Tensor
) -> Tensor:
    """a* = min{a : Phi(m_a * x) >= Phi_0} (eq. 3 and 10), (N,); NaN where none is.

    Example:
        >>> scores = torch.tensor([[1.0, 3.0], [0.0, 0.5]])
        >>> smallest_sufficient([0.1, 0.5], scores, 2.5)
        tensor([0.5000,    nan])
    """
    if not isinstance(threshold, Tensor):
        threshold = torch.tensor(threshold, dtype=torch.float64)
    phi_0 = threshold.to(scores).reshape(-1, 1)
    sizes = torch.tensor(areas, dtype=torch.float64).to(scores)
    enough = torch.where(scores >= phi_0, sizes, torch.inf).amin(dim=1)
    return torch.where(enough.isinf(), torch.nan, enough)


def monotonic(areas: Sequence[float], scores: Tensor, a_star: Tensor) -> Tensor:
    """Whether the score never falls as the area grows below a* (eq. 8), (N,) bool.

    Example:
        >>> scores = torch.tensor([[1.0, 3.0, 2.0], [1.0, 2.0, 3.0]])
        >>> monotonic([0.1, 0.2, 0.3], scores, torch.tensor([torch.nan, 0.3]))
        tensor([False,  True])
    """
    sizes = torch.tensor(areas, dtype=torch.float64).to(scores)
    order = sizes.argsort()
    below = sizes[order] < a_star.nan_to_num(torch.inf).reshape(-1, 1)
    falls = scores[:, order].diff(dim=1) < 0
    return ~(falls & below[:, 1:]).any(dim=1)


class Monotonicity(NamedTuple):
    """How often the scores only rise below a*.

    Attributes:
        share: Of the images where eq. 8 holds, those with nothing to compare included:
            the paper's number.
        share_tested: Of the images with at least two areas below a*; NaN for none.
        images: Number of images.
        tested: Number of images with at least two areas below a*.

    Example:
        >>> Monotonicity(share=0.5, share_tested=0.0, images=2, tested=1).share
        0.5
    """

    share: float
    share_tested: float
    images: int
    tested: int


def monotonicity(
    areas: Sequence[float], scores: Tensor, input_score: Tensor
) -> Monotonicity:
    """The share of images whose evidence is integrated monotonically.

    Args:
        areas: A areas, for example `ExtremalResult.areas`.
        scores: Scores of what each mask keeps, (N, A), as `ExtremalResult.scores`.
        input_score: Phi(x), (N,), as `ExtremalResult.input_score`.

    Returns:
        The shares, and on how many images they stand.

    Raises:
        ValueError: If the shapes do not agree, there are no images, an area lies
            outside (0, 1] or a score is NaN.

    Example:
        >>> import torch
        >>> scores = torch.tensor([[1.0, 2.0, 9.0], [2.0, 1.0, 9.0], [9.0, 1.0, 1.0]])
        >>> monotonicity([0.1, 0.2, 0.4], scores, torch.tensor([5.0, 5.0, 5.0]))
        Monotonicity(share=0.6666666865348816, share_tested=0.5, images=3, tested=2)
    """
    areas = check_areas(areas)
    check_shape("scores", scores, "N A", filled=True, A=len(areas))
    check_shape("input_score", input_score, "N", N=len(scores))
    for name, values in (("scores", scores), ("input_score", input_score)):
        if values.isnan().any():
            raise ValueError(f"{name} must be numbers, got NaN")
    a_star = smallest_sufficient(areas, scores, input_score)
    holds = monotonic(areas, scores, a_star)
    sizes = scores.new_tensor(areas)
    below = sizes < a_star.nan_to_num(float("inf"))[:, None]
    tested = below.sum(dim=1) >= 2
    return Monotonicity(
        share=float(holds.float().mean()),
        share_tested=float(holds[tested].float().mean()),
        images=len(scores),
        tested=int(tested.sum()),
    )
