"""`Stability`: how far several searches for the same masks agree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from captum_extremal._base import files
from captum_extremal.curve import smallest_sufficient

_NAMES = ("scores", "overlap", "a_star")


@dataclass(frozen=True, eq=False)
class Stability:
    """What R runs from other seeds found, see `captum_extremal.Restarts`.

    Attributes:
        scores: Of what each run's masks keep, (R, N, A).
        overlap: Intersection over union of the binarised masks of two runs, the mean
            over all pairs, (N, A); NaN of one run.
        a_star: The smallest sufficient area of each run, as a fraction, (R, N); NaN
            where none suffices.

    Example:
        >>> scores = torch.tensor([[[1.0, 4.0]], [[2.0, 4.0]]])
        >>> found = Stability(scores, torch.tensor([[0.2, 0.9]]), torch.ones(2, 1))
        >>> found.deviation(), found.same_a_star()
        (tensor([[0.7071, 0.0000]]), tensor([1.]))
    """

    scores: Tensor
    overlap: Tensor
    a_star: Tensor

    @classmethod
    def of(
        cls,
        masks: Sequence[tuple[Tensor, ...]],
        areas: Sequence[float],
        scores: Tensor,
        input_score: Tensor,
    ) -> Stability:
        """From the masks of R runs, each tensor (N, A, 1, *S), and their scores."""
        overlaps = [_overlap(*pair, scores) for pair in combinations(masks, 2)]
        overlap = torch.full_like(scores[0], torch.nan)
        if overlaps:
            overlap = torch.stack(overlaps).mean(dim=0)
        a_star = [smallest_sufficient(areas, run, input_score) for run in scores]
        return cls(scores, overlap, torch.stack(a_star))

    def of_image(self, index: int) -> tuple[Tensor, Tensor]:
        """The scores (A, R) and overlaps (A,) of one image."""
        return self.scores[:, index].T, self.overlap[index]

    def packed(self) -> dict[str, Tensor]:
        """What `from_file` takes."""
        return {f"stability.{name}": getattr(self, name) for name in _NAMES}

    @classmethod
    def from_file(cls, tensors: dict[str, Tensor]) -> Stability | None:
        """What was `packed`; None where nothing was."""
        found = files.named("stability.", tensors)
        return cls(**{name: found[name] for name in _NAMES}) if found else None

    def deviation(self) -> Tensor:
        """The standard deviation of the scores over the runs, (N, A); NaN of one."""
        if len(self.scores) == 1:
            return torch.full_like(self.scores[0], torch.nan)
        return self.scores.std(dim=0)

    def same_a_star(self) -> Tensor:
        """The share of the pairs of runs with the same a*, (N,); NaN of one run."""
        values = self.a_star.nan_to_num(torch.inf)
        same = [(one == other).float() for one, other in combinations(values, 2)]
        if not same:
            return torch.full_like(self.a_star[0], torch.nan)
        return torch.stack(same).mean(dim=0)


def _overlap(
    one: tuple[Tensor, ...], other: tuple[Tensor, ...], like: Tensor
) -> Tensor:
    """Intersection over union, of all tensors of an input together, (N, A)."""
    first, second = (
        torch.cat([mask.flatten(2) for mask in masks], dim=2) >= 0.5
        for masks in (one, other)
    )
    both, either = (first & second).sum(dim=2), (first | second).sum(dim=2)
    return (both / either).to(like)
