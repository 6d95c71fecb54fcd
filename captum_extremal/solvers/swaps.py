r"""`SwapSolver`: masks of positions that are no neighbours, of exactly n each.

Such positions are the channels of a layer, groups of input features, the tokens of a
transformer. It looks for the n of K that score best:

1. ascent as `ascent` tells, on a field without smoothness: one parameter a
   position, whose n largest are the mask. The mask is soft while it is sought and its
   edge narrows; the count is exact at every step.
2. the n positions of the highest value times gradient take its place where they score
   higher;
3. swaps: by the gradient g of the score at the binary mask, position j in exchange for
   position i promises :math:`g_j - g_i`. The most promising exchanges are tried, one by
   one and the best 2, 4 and 8 at once, and the best of them is made if it is better.
   Where none is, the next in line are tried.
"""

from __future__ import annotations

import functools
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from captum_extremal._base.checks import check_count, check_positive
from captum_extremal.masks.edges import binary
from captum_extremal.masks.fields import FreeField
from captum_extremal.solvers.ascent import (
    SPREAD,
    Ascent,
    check_softness,
    delivered_masks,
    falling,
    geometric,
    or_random,
    portions,
    standardised,
)
from captum_extremal.solvers.driver import History, StepwiseSolver
from captum_extremal.solvers.problem import Masks, Problem, check_gradients
from captum_extremal.solvers.start import start

_EXCHANGES = (0.5, 0.75)  # parts of the ascent after which fields are compared
_TIE = 1e-4  # share of a reward within which rounding must not decide
_TRIED = 16  # exchanges of single positions a round
_TOGETHER = (2, 4, 8)  # positions that are exchanged at once
_SHORTLIST = 128  # positions on either side that an exchange is chosen from
_BETTER = 84  # units in the last place, within which rounding must not decide


@dataclass(frozen=True)
class SwapSolver(StepwiseSolver):
    """Ascent with an exact count, then swaps of single positions; masks are 0 or 1.

    A cell costs ``iterations`` forwards and backwards, and ``rounds`` times up to 19
    forwards and a backward; besides, the counts of an image share 5 for the start, and
    a cell takes 12 forwards to compare notes with its neighbours. The hybrid game
    doubles everything.

    Args:
        iterations: Gradients of each cell.
        learning_rate: Length of a first step relative to the parameters' spread.
        softness: The width of the mask's edge during the ascent, first and last: a
            share of the positions inside (outside, where these are fewer).
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
        >>> SwapSolver().solve(problem).masks
        (tensor([[[0., 1., 0., 1.]]]),)
    """

    iterations: int = 40
    learning_rate: float = 0.6
    softness: tuple[float, float] = (1.0, 0.1)
    rounds: int = 8
    time_limit: float | None = None

    def __post_init__(self) -> None:
        check_count("iterations", self.iterations)
        check_positive("learning_rate", self.learning_rate)
        check_softness(self.softness)
        check_count("rounds", self.rounds, minimum=0)
        if self.time_limit is not None:
            check_positive("time_limit", self.time_limit)

    @property
    def total_steps(self) -> int:
        """The iterations and the rounds."""
        return self.iterations + self.rounds

    def start(self, problem: Problem, seed: int) -> _Run:
        """Begin: the ascent."""
        return _Run(_Climb(self, problem, seed), self.rounds)


MasksOf = Callable[..., Masks]
"""Fields' parameters, whose rows take ``areas=`` in turn -> their masks."""


class _Run:
    """The ascent, then the swaps."""

    def __init__(self, ascent: _Climb, rounds: int) -> None:
        self._ascent = ascent
        self._swaps: _Swaps | None = None
        self._left = rounds

    @property
    def history(self) -> dict[str, Tensor]:
        """The rewards of the soft masks of the ascent."""
        return self._ascent.history

    def step(self) -> int:
        """A gradient of the ascent, or a round of swaps."""
        if self._swaps is None:
            if done := self._ascent.step():
                return done
            self._swaps = _Swaps(self._ascent.problem, self._ascent.masks())
        self._left -= 1
        return int(self._left >= 0 and self._swaps.improve())

    def masks(self) -> Masks:
        """Zeros and ones."""
        return (self._swaps or self._ascent).masks()


class _Climb:
    """The ascent of free fields, in which the counts of an input compare notes."""

    def __init__(self, settings: SwapSolver, problem: Problem, seed: int) -> None:
        self.settings = settings
        self.problem = problem
        self.random = random.Random(seed)
        self.cells = torch.arange(problem.num_cells, device=problem.device)
        self.fields = [FreeField(size) for size in problem.sizes]
        begin = start(problem, self.fields, mirror=False)
        params = [
            or_random(standardised(values), seed).repeat_interleave(
                len(problem.areas), dim=0
            )
            for values in begin.gradients
        ]
        self.ascent = Ascent(problem, self.fields, params, self.cells)
        self.done = 0
        self._history = History(settings.iterations, problem)
        self._exchanges = {round(part * settings.iterations) for part in _EXCHANGES}

    @property
    def history(self) -> dict[str, Tensor]:
        """The rewards of each step."""
        return self._history.series

    def step(self) -> int:
        """Move all fields, and compare them at times; in the end compare them alone."""
        if self.done == self.settings.iterations:
            self.ascent.check_finite(self._history, self.done)
            self._exchange(self._binary_masks)
            return 0
        softness = self._softness(self.done)
        if self.done in self._exchanges - {0}:
            self.ascent.check_finite(self._history, self.done)
            self._exchange(functools.partial(self.ascent.soft_masks, softness=softness))
        drawn = min(1.0, softness * math.exp(self.random.uniform(-SPREAD, SPREAD)))
        rewards, directions = self.ascent.directions(self.problem.areas, drawn)
        self._history.write(self.done, slice(None), reward=rewards)
        rate, steps = self.settings.learning_rate, self.settings.iterations
        self.ascent.move(falling(rate, self.done, steps), directions)
        self.done += 1
        return 1

    def masks(self) -> Masks:
        """The largest values of each field as ones, the others as zeros."""
        self.ascent.check_finite(self._history, self.done)
        self.ascent.warn_of_blind_rows()
        return self._binary_masks(self.ascent.params, self.problem.areas)

    def _softness(self, step: int) -> float:
        first, last = self.settings.softness
        return geometric(first, last, step / max(1, self.settings.iterations - 1))

    def _binary_masks(self, params: Sequence[Tensor], areas: Sequence[float]) -> Masks:
        return delivered_masks(self.problem, self.fields, params, areas, edge=0.0)

    def _exchange(self, masks_of: MasksOf) -> None:
        """Let each cell have the best of its own field and its neighbours'."""
        areas = self.problem.areas
        # All fields are alike where the area is everything.
        order = sorted(
            (place for place, area in enumerate(areas) if area < 1),
            key=areas.__getitem__,
        )
        if len(order) < 2:
            return
        source = self.cells.clone()
        own = self._rewards(masks_of, order, order)
        best = own.new_full(source.shape, torch.nan)
        best[self._cells_of(order)] = own
        for places, others in ((order[1:], order[:-1]), (order[:-1], order[1:])):
            cells, candidates = self._cells_of(places), self._cells_of(others)
            rewards = self._rewards(masks_of, others, places)
            better = rewards > best[cells] + _TIE * best[cells].abs()
            best[cells] = torch.where(better, rewards, best[cells])
            source[cells] = torch.where(better, candidates, source[cells])
        self.ascent.params = [values[source] for values in self.ascent.params]
        self.ascent.momentum = [values[source] for values in self.ascent.momentum]

    def _rewards(
        self,
        masks_of: MasksOf,
        sources: Sequence[int],
        places: Sequence[int],
    ) -> Tensor:
        """What fields of some areas are worth at others, in the input as it is."""
        params = [params[self._cells_of(sources)] for params in self.ascent.params]
        areas = self.problem.areas
        cells, asked = self._cells_of(places), [areas[place] for place in places]
        rewards = [
            self.problem.rewards(
                masks_of([p[rows] for p in params], areas=few), cells[rows]
            )
            for rows, few in portions(self.problem, len(cells), asked)
        ]
        return torch.cat(rewards)

    def _cells_of(self, places: Sequence[int]) -> Tensor:
        """The cells of these areas, of all images, image-major."""
        firsts = self.cells[:: len(self.problem.areas), None]
        return (firsts + torch.tensor(list(places), device=firsts.device)).flatten()


class _Swaps:
    """Binary masks of all cells, and what they are worth, as exchanges improve them.

    They are kept flat, (K, positions): where a position lies makes no difference.
    """

    def __init__(self, problem: Problem, masks: Masks) -> None:
        self.problem = problem
        self.cells = torch.arange(problem.num_cells, device=problem.device)
        self.flat = [mask.flatten(1) for mask in masks]
        self.best = self._rewards(self.flat, self.cells)
        # For each tensor how many of its exchanges each cell has tried in vain.
        self.tried = [torch.zeros_like(self.cells) for _ in masks]
        self._consider_gradients()

    def masks(self) -> Masks:
        """The masks, (K, 1, *S)."""
        return self._shaped(self.flat)

    def improve(self) -> bool:
        """One round for each tensor; whether there was anything to try."""
        rounds = [self._improve(which) for which in range(len(self.flat))]
        return any(rounds)

    def _consider_gradients(self) -> None:
        """The positions of the highest value times gradient, where better."""
        areas = self.problem.areas
        ones = [torch.ones_like(mask[:: len(areas)]) for mask in self.flat]
        gradients = self._gradients(ones, self.cells[:: len(areas)])
        rows = [each.repeat_interleave(len(areas), dim=0) for each in gradients]
        masks = [binary(each.unsqueeze(1), areas).squeeze(1) for each in rows]
        rewards = self._rewards(masks, self.cells)
        better = rewards > self.best
        self.best = torch.where(better, rewards, self.best)
        self.flat = [
            torch.where(better[:, None], new, old)
            for new, old in zip(masks, self.flat, strict=True)
        ]

    def _improve(self, which: int) -> bool:
        """Try exchanges in the masks of one tensor."""
        mask = self.flat[which]
        inside = mask.sum(dim=1).long()
        outside = mask.shape[1] - inside
        pairs = inside.clamp_max(_SHORTLIST) * outside.clamp_max(_SHORTLIST)
        cells = self.cells[self.tried[which] < pairs]
        if not len(cells):
            return False
        masks = [mask[cells] for mask in self.flat]
        gradients = self._gradients(masks, cells)
        offers, valid = _exchanges(
            masks[which], gradients[which], self.tried[which][cells]
        )
        rows, columns = valid.nonzero(as_tuple=True)
        candidates = [mask[rows] for mask in masks]
        candidates[which] = offers[rows, columns]
        rewards = self.best.new_full(valid.shape, -torch.inf)
        rewards[rows, columns] = self._rewards(candidates, cells[rows])
        top, place = rewards.max(dim=1)
        before = self.best[cells]
        better = top > before + _BETTER * torch.finfo(before.dtype).eps * before.abs()
        self.best[cells] = torch.where(better, top, before)
        chosen = offers[torch.arange(len(cells), device=cells.device), place]
        updated = torch.where(better[:, None], chosen, masks[which])
        self.flat[which] = mask.index_copy(0, cells, updated)
        self.tried[which][cells] += _TRIED
        for tried in self.tried:  # a better mask changes what other tensors promise
            tried[cells] = torch.where(better, 0, tried[cells])
        return True

    def _shaped(self, flat: Sequence[Tensor]) -> Masks:
        return tuple(
            mask.view(len(mask), 1, *size)
            for mask, size in zip(flat, self.problem.sizes, strict=True)
        )

    def _gradients(self, flat: Sequence[Tensor], cells: Tensor) -> list[Tensor]:
        _, gradients = self.problem.gradients(self._shaped(flat), cells)
        if any(gradient.isnan().any() for gradient in gradients):
            check_gradients(gradients, "for a swap of positions")
        # An infinite slope promises most; a difference of two must stay finite.
        most = torch.finfo(gradients[0].dtype).max / 4
        return [gradient.flatten(1).clamp(-most, most) for gradient in gradients]

    def _rewards(self, flat: Sequence[Tensor], cells: Tensor) -> Tensor:
        rewards = self.problem.rewards(self._shaped(flat), cells)
        self.problem.check_finite(rewards, cells, " for a swap of positions")
        return rewards


def _exchanges(
    masks: Tensor, gradients: Tensor, tried: Tensor
) -> tuple[Tensor, Tensor]:
    """Masks with positions exchanged, the most promising first.

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
