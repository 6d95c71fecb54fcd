r"""Scores of masks over their areas -> how often evidence only adds up (Sec. 4.3).

The paper tests for each image whether

.. math:: a_1 \le a_2 \Rightarrow \Phi(m_{a_1} \otimes x) \le \Phi(m_{a_2} \otimes x)
          \quad \text{for all } a_1, a_2 < a^* \qquad (8)

with :math:`a^*` the smallest area whose score reaches :math:`\Phi(x)`, and reports the
share of images where it holds: 98.45 % of ImageNet's validation images with VGG16. An
image with fewer than two areas below :math:`a^*` has nothing to compare and holds; how
many these are says how much the share is worth.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from captum_extremal._base.checks import check_areas
from captum_extremal.curve import monotonic, smallest_sufficient

EVIDENCE_AREAS = (0.05, 0.1, 0.2, 0.4, 0.6, 0.8)
"""The areas of Sec. 4."""


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
    if scores.dim() != 2 or 0 in scores.shape or scores.shape[1] != len(areas):
        raise ValueError(
            f"scores must be of shape (N, {len(areas)}) with N > 0, got "
            f"{tuple(scores.shape)}"
        )
    if input_score.shape != scores.shape[:1]:
        raise ValueError(
            f"input_score must be of shape ({len(scores)},), got "
            f"{tuple(input_score.shape)}"
        )
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
