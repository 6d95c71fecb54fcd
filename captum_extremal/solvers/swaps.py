r"""Solvers for masks of values that are no neighbours, such as a layer's channels.

`ChannelSolver`, the default, looks for the n channels of K that score best:

1. ascent as in `LevelSetSolver`, on a field without smoothness: one parameter a
   channel, whose n largest are the mask. The mask is soft while it is sought and its
   edge narrows; the count is exact at every step.
2. the n channels of the highest activation times gradient take its place where they
   score higher;
3. swaps: by the gradient g of the score at the binary mask, channel j in exchange for
   channel i promises :math:`g_j - g_i`. The most promising exchanges are tried, one by
   one and the best 2, 4 and 8 at once, and the best of them is made if it is better.
   Where none is, the next in line are tried.

`ChannelDescent` is the paper's eq. 9: descent on the mask with the area loss.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from captum_extremal._base.checks import check_count
from captum_extremal.masks.area import area_count
from captum_extremal.masks.edges import largest
from captum_extremal.masks.fields import FreeField
from captum_extremal.solvers.driver import stopping
from captum_extremal.solvers.level_set import Ascent, LevelSetSolver
from captum_extremal.solvers.problem import Masks, Problem, Solution

_TRIED = 16  # exchanges of single channels a round
_TOGETHER = (2, 4, 8)  # channels that are exchanged at once
_SHORTLIST = 128  # channels on either side that an exchange is chosen from
_BETTER = 84  # units in the last place, within which rounding must not decide


@dataclass(frozen=True)
class ChannelSolver:
    """Ascent with an exact count, then swaps of single channels; masks are 0 or 1.

    A cell costs ``iterations`` forwards and backwards, and ``rounds`` times up to 19
    forwards and a backward; besides, the counts of an image share 5 for the start, and
    a cell takes 12 forwards to compare notes with its neighbours. The hybrid game
    doubles everything.

    Args:
        iterations: Gradients of each cell.
        learning_rate: Length of a first step relative to the parameters' spread.
        softness: The width of the mask's edge during the ascent, first and last: a
            share of the channels inside (outside, where these are fewer).
        rounds: Of swaps at most; a cell ends where no exchange is left.
        time_limit: Seconds after which no further step begins; None for no limit.

    Raises:
        TypeError: If a setting is of the wrong type.
        ValueError: If a setting is out of range.

    Example:
        >>> from captum_extremal import Problem
        >>> activation = torch.tensor([[[1.0, 5.0, 2.0, 4.0]]])  # one value a channel
        >>> levels = torch.stack([torch.zeros_like(activation), activation], dim=1)
        >>> problem = Problem(lambda x, _: x[0].sum((1, 2)), (levels,), [0.5])
        >>> ChannelSolver().solve(problem).masks
        (tensor([[[0., 1., 0., 1.]]]),)
    """

    iterations: int = 40
    learning_rate: float = 0.6
    softness: tuple[float, float] = (1.0, 0.1)
    rounds: int = 8
    time_limit: float | None = None

    def __post_init__(self) -> None:
        check_count("rounds", self.rounds, minimum=0)
        self._ascent()

    @property
    def total_steps(self) -> int:
        """The iterations and the rounds."""
        return self.iterations + self.rounds

    def solve(
        self,
        problem: Problem,
        seed: int = 0,
        on_step: Callable[[int], object] | None = None,
    ) -> Solution:
        """Find the channels of all cells at once.

        Args:
            problem: What a mask is worth.
            seed: Of the edges that are drawn.
            on_step: Told after every iteration and round that one step is done.

        Returns:
            Masks of zeros and ones with exactly the asked counts, and the series
            ``reward`` of the soft masks of the run.

        Raises:
            ValueError: If a mask has more than one axis.
            RuntimeError: If the model cuts the gradient or a score is not finite.
        """
        _check_axes(problem)
        start = time.monotonic()
        step = on_step or (lambda _: None)
        fields = [FreeField(size) for size in problem.sizes]
        with torch.no_grad():
            found = Ascent(self._ascent(), problem, seed, fields).run(step)
            left = self.time_limit and start + self.time_limit - time.monotonic()
            if found.ended != "budget" or (left is not None and left <= 0):
                ended = "time limit" if found.ended == "budget" else found.ended
                return dataclasses.replace(found, ended=ended)
            with stopping(left) as stop:
                swaps = _Swaps(problem, found.masks)
                for _ in range(self.rounds):
                    if stop() or not swaps.improve():
                        break
                    step(1)
        return Solution(swaps.masks, found.history, stop.ended)

    def _ascent(self) -> LevelSetSolver:
        return LevelSetSolver(
            iterations=self.iterations,
            learning_rate=self.learning_rate,
            edge=0.0,
            softness=self.softness,
            first_area=0.0,
            flat_background=False,
            jitter=0.0,
            time_limit=self.time_limit,
        )


def _check_axes(problem: Problem) -> None:
    if any(len(size) != 1 for size in problem.sizes):
        raise ValueError(
            "a solver of channels needs masks with one axis, got sizes "
            f"{', '.join(map(str, problem.sizes))}"
        )


class _Swaps:
    """Binary masks of all cells, and what they are worth, as exchanges improve them."""

    def __init__(self, problem: Problem, masks: Masks) -> None:
        self.problem = problem
        self.cells = torch.arange(problem.num_cells, device=problem.device)
        self.masks = masks
        self.best = self._rewards(masks, self.cells)
        # For each tensor how many of its exchanges each cell has tried in vain.
        self.tried = [torch.zeros_like(self.cells) for _ in masks]
        self._consider_gradients()

    def _consider_gradients(self) -> None:
        """The channels of the highest activation times gradient, where better."""
        num_areas = len(self.problem.areas)
        ones = tuple(torch.ones_like(mask[::num_areas]) for mask in self.masks)
        _, gradients = self.problem.gradients(ones, self.cells[::num_areas])
        masks = []
        for gradient in gradients:
            channels = gradient.shape[2]
            counts = [area_count(channels, area) for area in self.problem.areas]
            rows = gradient.squeeze(1).repeat_interleave(num_areas, dim=0)
            masks.append(largest(rows, counts).to(gradient).unsqueeze(1))
        rewards = self._rewards(tuple(masks), self.cells)
        better = rewards > self.best
        self.best = torch.where(better, rewards, self.best)
        self.masks = tuple(
            torch.where(better[:, None, None], new, old)
            for new, old in zip(masks, self.masks, strict=True)
        )

    def improve(self) -> bool:
        """One round for each tensor; whether there was anything to try."""
        rounds = [self._improve(which) for which in range(len(self.masks))]
        return any(rounds)

    def _improve(self, which: int) -> bool:
        """Try exchanges in the masks of one tensor."""
        mask = self.masks[which]
        inside = mask.squeeze(1).sum(dim=1).long()
        outside = mask.shape[2] - inside
        pairs = inside.clamp_max(_SHORTLIST) * outside.clamp_max(_SHORTLIST)
        cells = self.cells[self.tried[which] < pairs]
        if not len(cells):
            return False
        masks = tuple(mask[cells] for mask in self.masks)
        _, gradients = self.problem.gradients(masks, cells)
        offers, valid = _exchanges(
            masks[which].squeeze(1),
            gradients[which].squeeze(1),
            self.tried[which][cells],
        )
        rows, columns = valid.nonzero(as_tuple=True)
        candidates = [mask[rows] for mask in masks]
        candidates[which] = offers[rows, columns].unsqueeze(1)
        rewards = self.best.new_full(valid.shape, -torch.inf)
        rewards[rows, columns] = self._rewards(tuple(candidates), cells[rows])
        top, place = rewards.max(dim=1)
        before = self.best[cells]
        better = top > before + _BETTER * torch.finfo(before.dtype).eps * before.abs()
        self.best[cells] = torch.where(better, top, before)
        chosen = offers[torch.arange(len(cells), device=cells.device), place]
        updated = torch.where(better[:, None], chosen, masks[which].squeeze(1))
        self.masks = tuple(
            old.index_copy(0, cells, updated.unsqueeze(1)) if i == which else old
            for i, old in enumerate(self.masks)
        )
        self.tried[which][cells] += _TRIED
        for tried in self.tried:  # a better mask changes what other tensors promise
            tried[cells] = torch.where(better, 0, tried[cells])
        return True

    def _rewards(self, masks: Masks, cells: Tensor) -> Tensor:
        rewards = self.problem.rewards(masks, cells)
        bad = torch.nonzero(~rewards.isfinite())
        if len(bad):
            score, cell = float(rewards[bad[0]]), int(cells[bad[0]])
            raise self.problem.not_finite(score, cell, " for a swap of channels")
        return rewards


def _exchanges(
    masks: Tensor, gradients: Tensor, tried: Tensor
) -> tuple[Tensor, Tensor]:
    """Masks with channels exchanged, the most promising first.

    Args:
        masks: (M, K), of zeros and ones.
        gradients: (M, K).
        tried: How many single exchanges of each to leave out, (M,).

    Returns:
        (M, E, K) masks and, (M, E), which of them are exchanges at all.
    """
    kept = masks > 0.5
    short = min(_SHORTLIST, masks.shape[1])
    weak, leaving = gradients.masked_fill(~kept, torch.inf).sort(dim=1)
    strong, entering = gradients.masked_fill(kept, -torch.inf).sort(1, descending=True)
    weak, leaving = weak[:, :short], leaving[:, :short]
    strong, entering = strong[:, :short], entering[:, :short]
    gains, order = (
        (strong[:, None] - weak[:, :, None]).flatten(1).sort(dim=1, descending=True)
    )
    window = tried[:, None] + torch.arange(_TRIED, device=tried.device)
    window_in = window.clamp_max(gains.shape[1] - 1)
    valid = [gains.gather(1, window_in).isfinite() & (window == window_in)]
    pairs = order.gather(1, window_in)
    single = masks[:, None].repeat(1, _TRIED, 1)
    out = leaving.gather(1, pairs // short).unsqueeze(2)
    new = entering.gather(1, pairs % short).unsqueeze(2)
    offers = [single.scatter(2, out, 0.0).scatter(2, new, 1.0)]
    for number in (n for n in _TOGETHER if n <= short):
        several = masks.scatter(1, leaving[:, :number], 0.0)
        offers.append(several.scatter(1, entering[:, :number], 1.0)[:, None])
        ends = weak[:, number - 1].isfinite() & strong[:, number - 1].isfinite()
        valid.append((ends & (tried == 0))[:, None])
    return torch.cat(offers, dim=1), torch.cat(valid, dim=1)
