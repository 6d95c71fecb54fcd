r"""`SearchSolver`: level sets of smooth fields, found by forward evaluations alone.

The masks are those of `LevelSetSolver`: the pixels where a smooth field is largest. A
Gaussian process over the masks seen so far says which random changes of the best fields
are worth a forward:

1. Score random smooth masks of an image, once for all areas. Their mean, weighted by
   what each earns beyond the usual of its area, is a first field.
2. Score its level set at each area, and smoother ones.
3. Repeat: add random fields, coarse and fine, to the best ones, keep the changes that
   the process rates highest (mean + exploration * standard deviation), score these.
4. Deliver the best mask that was seen; or, as a ranking, the level sets of the sum of
   the areas' best fields.

No gradient is needed, so any callable that returns scores will do.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from captum_extremal._base.axes import is_short
from captum_extremal._base.checks import (
    check_bool,
    check_count,
    check_non_negative,
    check_positive,
)
from captum_extremal.masks.area import area_count
from captum_extremal.masks.edges import (
    EDGE,
    edge_widths,
    largest,
    places,
    smooth_edges,
)
from captum_extremal.masks.fields import Field, FreeField
from captum_extremal.solvers.ascent import blurred, standardised
from captum_extremal.solvers.driver import StepwiseSolver
from captum_extremal.solvers.problem import Masks, Problem
from captum_extremal.solvers.surrogate import upper_bound

Candidate = tuple[Tensor, ...]
"""For each input tensor the parameters of its field, (M, *points)."""

_LEARNING = 0.35  # part of the evaluations that goes to random masks
_MOST_LEARNT = 64  # of them for each area
_LEARNT_AREAS = (0.15, 0.5)
_SMOOTH = (0.06, 0.16)  # widths of their fields, of the length of an axis
_FIRST = (0.04, 0.08, 0.12)  # of what is learnt, and of the level sets tried first
_CHANGES = (0.04, 0.08, 0.16)  # of what is added to a field, in turn
_STRENGTH = (0.15, 1.0)  # of a change, relative to the field; in the end
_FINE = 0.4  # times as much
_ALIKE = 0.5  # of the changes along an axis, where axes are not alike
_ATTEMPTS = 8  # rounds of changes, where few give another mask
_SAMPLES = 3136  # pixels that the process compares masks at, about
_FEWEST = 8  # of them along an axis
_ROUNDING = 1e-13  # of sums of rewards, in double precision
_RANKED = (0.05, 0.1, 0.2)  # areas whose best fields make a ranking together


@dataclass(frozen=True)
class SearchSolver(StepwiseSolver):
    """Search over level sets of smooth fields, guided by a Gaussian process.

    Args:
        evaluations: Forwards that each area of each image may cost, all in; in the
            hybrid game two count as one. The random masks of step 1, about a third, are
            paid by all areas of an image together, so the masks of an area depend a
            little on which others are asked for with it.
        batch: Candidates of one cell that are scored in one round.
        edge: Half the width of a mask's edge, as of `LevelSetSolver`.
        proposals: Random changes among which the process chooses a round's batch.
        elites: Best fields that are changed.
        exploration: Standard deviations that are added to the expected score.
        nested: Deliver level sets of the ranking. An image then costs three times
            ``evaluations``, however many areas are asked for.
        time_limit: Seconds after which no further round begins; None for no limit. The
            random masks and a first level set are scored in any case. A run that ends
            early, also by Ctrl-C, delivers the best masks seen.

    Raises:
        TypeError: If a setting is of the wrong type.
        ValueError: If a setting is out of range.

    Example:
        A model without gradients will do.

        >>> from captum_extremal import ExtremalPerturbation
        >>> def black_box(x):
        ...     return torch.from_numpy(x.numpy()[:, 0, :8, :8].mean(axis=(1, 2)))
        >>> method = ExtremalPerturbation(black_box, "fade", SearchSolver(64))
        >>> mask = method.attribute(torch.ones(1, 1, 32, 32), areas=1 / 16)[0, 0]
        >>> float((mask[:8, :8] >= 0.5).float().mean()) > 0.5
        True
    """

    needs_gradient = False
    budget = "evaluations"

    evaluations: int = 128
    batch: int = 16
    edge: float = EDGE
    proposals: int = 192
    elites: int = 8
    exploration: float = 0.5
    nested: bool = False
    time_limit: float | None = None

    def __post_init__(self) -> None:
        for name in ("evaluations", "batch", "proposals", "elites"):
            check_count(name, getattr(self, name))
        for name in ("edge", "exploration"):
            check_non_negative(name, getattr(self, name))
        check_bool("nested", self.nested)
        if self.time_limit is not None:
            check_positive("time_limit", self.time_limit)

    def for_ranking(self) -> SearchSolver:
        """The same for `Solution.ranking` alone.

        Example:
            >>> SearchSolver().for_ranking().nested
            True
        """
        return dataclasses.replace(self, nested=True)

    def start(self, problem: Problem, seed: int) -> _Search:
        """Begin: nothing is known."""
        return _Search(self, problem, seed)


class _Search:
    """One run: every cell proposes, the model scores all proposals at once."""

    def __init__(self, settings: SearchSolver, problem: Problem, seed: int) -> None:
        self.settings = settings
        self.problem = problem
        self.dtype = torch.float32  # of the rewards
        self.shapes = [_Shape(size, problem, settings.edge) for size in problem.sizes]
        self.areas = _RANKED if settings.nested else problem.areas
        self.generators = [
            torch.Generator().manual_seed(seed % 2**63) for _ in range(self.num_images)
        ]
        # A cell draws the same numbers whatever other images and areas run beside it.
        self.cells = [
            _Cell(settings, self.shapes, area, _generator(seed, area))
            for _ in range(self.num_images)
            for area in self.areas
        ]
        self._best: list[Tensor] = []  # of each round
        self.used = self.learnt = 0  # evaluations

    @property
    def num_images(self) -> int:
        """How many have masks of their own."""
        return self.problem.num_images

    @property
    def history(self) -> dict[str, Tensor]:
        """The best seen after each round; of nested masks the mean over its fields."""
        best = torch.stack(self._best)
        if self.settings.nested:
            means = best.unflatten(1, (self.num_images, -1)).mean(dim=2)
            best = means.repeat_interleave(len(self.problem.areas), dim=1)
        return {"reward": best.to(self.dtype).to(self.problem.device)}

    def step(self) -> int:
        """Score a round; the first are level sets of what random masks have taught."""
        before = self.used
        if not self._best:
            self.learnt = self._learn()
        # Where one cell is through, others that found fewer masks to try go on.
        while self.used == before and self._score_round():
            best = [cell.best_reward for cell in self.cells]
            self._best.append(torch.tensor(best, dtype=torch.double))
            self.used = self.learnt + max(len(cell.rewards) for cell in self.cells)
        return self.used - before

    def masks(self) -> Masks:
        """Those of the best candidates, or level sets of the rankings."""
        if not self.settings.nested:
            found = [cell.masks(cell.best) for cell in self.cells]
            return tuple(map(torch.cat, zip(*found, strict=True)))
        number = len(self.problem.areas)
        return tuple(
            shape.masks(params.repeat_interleave(number, dim=0), self.problem.areas)
            for shape, params in zip(self.shapes, self._ranked(), strict=True)
        )

    def ranking(self) -> Masks:
        """The order in which the mean of the areas' best fields lets pixels in."""
        return tuple(
            places(shape.field(params)).unsqueeze(1)
            for shape, params in zip(self.shapes, self._ranked(), strict=True)
        )

    def _ranked(self) -> list[Tensor]:
        """For each input tensor the sum of the areas' best fields, (N, *points)."""
        best = [cell.best for cell in self.cells]
        return [
            torch.cat(fields).unflatten(0, (self.num_images, -1)).sum(dim=1)
            for fields in zip(*best, strict=True)
        ]

    def _learn(self) -> int:
        """Tell the cells what random masks are worth; the evaluations of a cell."""
        spare = self.settings.evaluations - 1
        used = min(math.floor(_LEARNING * spare), _MOST_LEARNT)
        number = len(self.areas)
        for image, generator in enumerate(self.generators):
            average = _Average(self.shapes)
            candidates, areas = average.draw(used * number, generator)
            for start in range(0, len(areas), self._at_once):
                rows = range(start, min(start + self._at_once, len(areas)))
                masks = self._random_masks(candidates, areas, rows)
                indices = [image * number] * len(rows)
                rewards = self._rewards(masks, indices, " at a random mask")
                average.add(masks, rewards)
            first = average.field(areas, generator)
            for cell in self.cells[image * number : (image + 1) * number]:
                cell.first = first
        return used

    def _random_masks(
        self, candidates: Candidate, areas: Sequence[float], rows: Sequence[int]
    ) -> Masks:
        """Some of the candidates' masks, each of an area of its own."""
        return tuple(
            torch.cat(
                [shape.masks(params[row : row + 1], [areas[row]]) for row in rows]
            )
            for shape, params in zip(self.shapes, candidates, strict=True)
        )

    def _score_round(self) -> bool:
        """Let each cell choose its candidates, and tell it what they are worth."""
        left = self.settings.evaluations - self.learnt
        proposed = [
            cell.propose(min(self.settings.batch, left - len(cell.rewards)))
            for cell in self.cells
        ]
        jobs = [
            (index, row)
            for index, candidates in enumerate(proposed)
            for row in range(len(candidates[0]))
        ]
        rewards: list[float] = []
        for start in range(0, len(jobs), self._at_once):
            piece = jobs[start : start + self._at_once]
            parts = [
                self.cells[index].masks(_rows(proposed[index], [row for _, row in job]))
                for index, job in _grouped(piece)
            ]
            masks = tuple(map(torch.cat, zip(*parts, strict=True)))
            rewards += self._rewards(masks, [index for index, _ in piece])
        scored = iter(rewards)
        for cell, candidates in zip(self.cells, proposed, strict=True):
            cell.learn(candidates, list(itertools.islice(scored, len(candidates[0]))))
        return bool(jobs)

    @property
    def _at_once(self) -> int:
        """Masks that are made and scored together."""
        return 1 if self.problem.is_large else self.problem.perturbations_per_eval

    def _rewards(
        self, masks: Masks, indices: Sequence[int], when: str = ""
    ) -> list[float]:
        """What masks of some cells are worth, once sure that these are numbers."""
        cells = torch.tensor(indices, device=self.problem.device)
        if self.settings.nested:  # its cells are not those of the problem
            images = cells.div(len(self.areas), rounding_mode="floor")
            cells = images * len(self.problem.areas)
            when = when or " at a mask of the ranking"
        rewards = self.problem.rewards(masks, cells)
        self.problem.check_finite(rewards, cells, when)
        self.dtype = rewards.dtype
        values: list[float] = rewards.tolist()
        return values


class _Shape:
    """The fields of one input tensor: random ones, their masks, their coarse masks."""

    def __init__(self, size: Sequence[int], problem: Problem, edge: float) -> None:
        free = problem.spread is not None  # groups of features are no neighbours
        device = problem.device
        self.field = FreeField(size) if free else Field(size, None, device)
        self.device = device
        self.pixels = math.prod(size)
        self.widths = edge_widths(0.0 if free else edge, size)
        short = is_short(size)
        self.unlike = [axis for axis, _ in enumerate(size)] if any(short) else []
        self.coarse = self.field
        if isinstance(self.field, Field):
            self.coarse = self.field.thinned(_strides(self.field))

    def random(self, count: int, share: float, generator: torch.Generator) -> Tensor:
        """Random fields that vary over this share of the length of each axis."""
        points = self.field.points
        params = torch.randn((count, *points), generator=generator)
        if self.unlike:
            # The same part of all leads, or a few bands at all times.
            draws = torch.rand(count, generator=generator) / _ALIKE * len(self.unlike)
            for axis in self.unlike:
                alike = draws.floor() == axis
                first = params[alike].narrow(axis + 1, 0, 1)
                params[alike] = first.expand_as(params[alike])
        return standardised(self.smoothed(params.to(self.device), share))

    def smoothed(self, params: Tensor, share: float) -> Tensor:
        """Parameters as smooth as this share of the length of each axis."""
        if isinstance(self.field, FreeField):
            return params
        return blurred(self.field, params, share)

    def masks(self, params: Tensor, areas: Sequence[float]) -> Tensor:
        """(M, *points), which take the areas in turn -> masks (M, 1, *S)."""
        counts = [area_count(self.pixels, area) for area in areas]
        return smooth_edges(largest(self.field(params), counts), self.widths)

    def samples(self, params: Tensor, area: float) -> Tensor:
        """Coarse masks on the CPU, (M, F) bool."""
        values = self.coarse(params).cpu()
        count = max(1, round(area * values[0].numel()))
        return largest(values, [count]).flatten(1)


class _Average:
    """Random masks and their rewards -> what each pixel is worth."""

    def __init__(self, shapes: Sequence[_Shape]) -> None:
        self.shapes = shapes
        self.rewards: list[float] = []
        self.seen: list[list[Tensor]] = [[] for _ in shapes]  # masks as parameters

    def draw(
        self, count: int, generator: torch.Generator
    ) -> tuple[Candidate, list[float]]:
        """Random smooth fields and areas."""
        draws = torch.rand(count, 2, generator=generator).tolist()
        low, high = _LEARNT_AREAS
        areas = [low * (high / low) ** draw for draw, _ in draws]
        shares = [_SMOOTH[0] + (_SMOOTH[1] - _SMOOTH[0]) * draw for _, draw in draws]
        fields = tuple(
            torch.cat(
                [shape.random(0, 0.0, generator)]
                + [shape.random(1, share, generator) for share in shares]
            )
            for shape in self.shapes
        )
        return fields, areas

    def add(self, masks: Masks, rewards: Sequence[float]) -> None:
        """Note what masks are worth."""
        for shape, seen, mask in zip(self.shapes, self.seen, masks, strict=True):
            values = mask.squeeze(1)
            axes = tuple(range(1, values.dim()))
            seen.append(shape.field.adjoint(values - values.mean(axes, keepdim=True)))
        self.rewards += rewards

    def field(self, areas: Sequence[float], generator: torch.Generator) -> Candidate:
        """What the pixels are worth, (1, *points); a random field if nothing is known.

        Large masks score higher for their size: of each reward that is taken off first.
        """
        fields = [shape.random(1, _SMOOTH[1], generator) for shape in self.shapes]
        weights = _beyond_trend(self.rewards, areas)
        if weights is None:
            return tuple(fields)
        for which, shape in enumerate(self.shapes):
            masks = torch.cat(self.seen[which])
            values = torch.tensordot(weights.to(shape.device), masks, dims=1)[None]
            if values.any():  # not of a single pixel
                fields[which] = standardised(shape.smoothed(values, _FIRST[0]))
        return tuple(fields)


def _beyond_trend(rewards: Sequence[float], areas: Sequence[float]) -> Tensor | None:
    """What rewards have beyond the usual of their area, at most 1; None if nothing."""
    if len(rewards) <= 2:  # two fit a line
        return None
    values = torch.tensor(rewards, dtype=torch.double)
    logs = torch.tensor(areas, dtype=torch.double).log()
    terms = torch.stack([torch.ones_like(logs), logs], dim=1)
    trend = torch.linalg.lstsq(terms, values[:, None]).solution
    left = values - (terms @ trend)[:, 0]
    if left.abs().max() <= _ROUNDING * values.abs().max():
        return None
    weights: Tensor = left / left.abs().max()
    return weights.float()


class _Cell:
    """The candidates of one image and area: what is known and what to try next."""

    def __init__(
        self,
        settings: SearchSolver,
        shapes: Sequence[_Shape],
        area: float,
        generator: torch.Generator,
    ) -> None:
        self.settings = settings
        self.shapes = shapes
        self.area = area
        self.generator = generator
        self.first: Candidate = ()
        self.known: Candidate = ()
        self.rewards: list[float] = []
        self.features = torch.empty(0)
        self.seen: set[bytes] = set()  # coarse masks

    @property
    def best(self) -> Candidate:
        return _rows(self.known, [self.rewards.index(self.best_reward)])

    @property
    def best_reward(self) -> float:
        return max(self.rewards)

    def masks(self, candidates: Candidate) -> Masks:
        return tuple(
            shape.masks(params, [self.area])
            for shape, params in zip(self.shapes, candidates, strict=True)
        )

    def learn(self, candidates: Candidate, rewards: Sequence[float]) -> None:
        self.rewards += rewards
        known = self.known or tuple(params[:0] for params in candidates)
        pairs = zip(known, candidates, strict=True)
        self.known = tuple(torch.cat(pair) for pair in pairs)

    def propose(self, most: int) -> Candidate:
        """The next candidates to score, at most so many."""
        if most == 0:
            return _rows(self.known, [])
        if self.rewards:
            candidates, features = self._new_changes(most)
        else:
            candidates, features = self._new(self._first_ones(), set())
        chosen = list(range(len(features)))[:most]
        if len(features) > most and len(self.rewards) > 1:
            chosen = self._promising(features, most)
        features = features[chosen]
        self.seen |= set(_keys(features > 0))
        known = self.features.view(-1, features.shape[1])
        self.features = torch.cat([known, features])
        return _rows(candidates, chosen)

    def _first_ones(self) -> Candidate:
        """What was learnt, and the same smoother."""
        several = [
            [params, *(shape.smoothed(params, share) for share in _FIRST[1:])]
            for shape, params in zip(self.shapes, self.first, strict=True)
        ]
        return tuple(standardised(torch.cat(params)) for params in several)

    def _promising(self, features: Tensor, most: int) -> list[int]:
        """So many of the candidates: those that the process rates highest."""
        rewards = torch.tensor(self.rewards, dtype=torch.double)
        ratings = upper_bound(
            self.features, rewards, features, self.settings.exploration
        )
        rows: list[int] = ratings.topk(most).indices.tolist()
        return rows

    def _new_changes(self, most: int) -> tuple[Candidate, Tensor]:
        """Random changes, so many at least, unless they give few other masks."""
        found: list[Candidate] = []
        features: list[Tensor] = []
        seen = set(self.seen)
        for _ in range(_ATTEMPTS):
            candidates, described = self._new(self._changed(), seen)
            found.append(candidates)
            features.append(described)
            if sum(map(len, features)) >= most:
                break
        return tuple(map(torch.cat, zip(*found, strict=True))), torch.cat(features)

    def _changed(self) -> Candidate:
        """Random changes of the best fields: the better one is, the more often."""
        number, draw = self.settings.proposals, self.generator
        order = sorted(range(len(self.rewards)), key=lambda i: -self.rewards[i])
        elites = torch.tensor(order[: self.settings.elites])
        parents = elites[(torch.rand(number, generator=draw) ** 2 * len(elites)).long()]
        low, high = map(math.log, _STRENGTH)
        part = len(self.rewards) / self.settings.evaluations
        strength = (low + (high - low) * torch.rand(number, generator=draw)).exp()
        strength = strength * (1 - (1 - _FINE) * min(1.0, part))
        which = torch.randint(2 * len(self.shapes), (number,), generator=draw)
        changed = []
        for place, (shape, known) in enumerate(
            zip(self.shapes, self.known, strict=True)
        ):
            noise = torch.cat(
                [
                    shape.random(len(range(turn, number, len(_CHANGES))), share, draw)
                    for turn, share in enumerate(_CHANGES)
                ]
            )
            # Of several tensors all are changed, or one.
            alone = (which < len(self.shapes)) & (which != place)
            here = strength.where(~alone, 0.0).to(known)
            here = here.view(-1, *[1] * (known.dim() - 1))
            changed.append(standardised(known[parents.to(known.device)] + here * noise))
        return tuple(changed)

    def _new(self, candidates: Candidate, seen: set[bytes]) -> tuple[Candidate, Tensor]:
        """Those whose mask is none that was seen, and their features (M, F)."""
        parts = [
            shape.samples(params, self.area)
            for shape, params in zip(self.shapes, candidates, strict=True)
        ]
        scales = [int(part[0].sum()) * len(parts) for part in parts]
        kept = []
        for row, key in enumerate(_keys(torch.cat(parts, dim=1))):
            if key not in seen:
                seen.add(key)
                kept.append(row)
        features = torch.cat(
            [
                part[kept] / scale**0.5
                for part, scale in zip(parts, scales, strict=True)
            ],
            dim=1,
        )
        return _rows(candidates, kept), features


def _generator(seed: int, area: float) -> torch.Generator:
    mixed = random.Random(f"{seed} {area}").getrandbits(63)
    return torch.Generator().manual_seed(mixed)


def _strides(field: Field) -> list[int]:
    """Every how many pixels of each axis are enough to compare masks."""
    strides = [1] * len(field.size)

    def left(axis: int) -> int:
        return 0 if field.bases[axis] is None else field.size[axis] // strides[axis]

    while math.prod(field.thinned(strides).size) > _SAMPLES:
        longest = max(range(len(strides)), key=left)
        if left(longest) <= _FEWEST:
            break
        strides[longest] += 1
    return strides


def _rows(candidates: Candidate, rows: Sequence[int]) -> Candidate:
    return tuple(params[list(rows)] for params in candidates)


def _keys(masks: Tensor) -> Iterator[bytes]:
    """Each row in a form that a set takes."""
    return (row.tobytes() for row in masks.numpy())


def _grouped(
    jobs: Sequence[tuple[int, int]],
) -> Iterator[tuple[int, list[tuple[int, int]]]]:
    """Pairs that follow each other with the same first number."""
    return (
        (index, list(group))
        for index, group in itertools.groupby(jobs, key=lambda job: job[0])
    )
