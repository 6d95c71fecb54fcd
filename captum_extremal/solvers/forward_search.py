r"""`SearchSolver`: unions of equal disks, found by forward evaluations alone.

A candidate is a set of lattice points; its mask is that of disks around them, as large
as the asked area allows (`captum_extremal.masks.disks`). A Gaussian process over the
masks seen so far says which random changes of the best sets are worth a forward:

1. score single disks on a coarse grid, once for all areas of an image;
2. put the best of them together until the area is reached;
3. repeat: change the best sets at random, keep the changes that the process rates
   highest (mean + exploration * standard deviation), score these with the model;
4. deliver the best set that was seen.

The masks that are scored are those that are delivered. No gradient is needed, so any
callable that returns scores will do.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from captum_extremal._base.checks import check_count, check_non_negative, check_positive
from captum_extremal.masks.area import area_count, match_area
from captum_extremal.masks.disks import DiskLattice, Disks, Point, disk_masks, radii
from captum_extremal.masks.edges import edge_width
from captum_extremal.masks.lattice import LINEAR
from captum_extremal.solvers.driver import StepwiseSolver
from captum_extremal.solvers.problem import Masks, Problem
from captum_extremal.solvers.surrogate import upper_bound

Candidate = tuple[Disks, ...]
"""For each input tensor the lattice points of its disks."""

_SINGLES = 64  # single disks that are scored first, 8 x 8
_SINGLE_DISK = 0.033  # their share of the input, radius 23 at 224
_SAMPLING_TEMPERATURE = 0.7  # of new disks, in standard deviations of the singles
_ATTEMPTS = 8  # rounds of proposals, where few are feasible or new
_BARS = 0.25  # of the changes, where axes are not alike: bands, columns
_DISKS = (0.014, 0.056)  # share of the input of one disk: radius 15 to 30 at 224


@dataclass(frozen=True)
class SearchSolver(StepwiseSolver):
    """Search over unions of disks, guided by a Gaussian process.

    Args:
        evaluations: Forwards that each area of each image may cost, all in; in the
            hybrid game two count as one. The single disks of step 1 are paid by all
            areas of an image together, so the masks of an area depend a little on
            which others are asked for with it.
        batch: Candidates of one cell that are scored in one round.
        edge: Half the width of a mask's edge, as a fraction of the geometric mean of
            the sizes (of the long ones, where axes are not alike): 4 pixels at 224.
            Below half a pixel the edge is hard.
        proposals: Random changes among which the process chooses a round's batch.
        elites: Best sets that are changed.
        exploration: Standard deviations that are added to the expected score.
        time_limit: Seconds after which no further round begins; None for no limit. The
            single disks and a first set are scored in any case. A run that ends early,
            also by Ctrl-C, delivers the best masks seen.

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
    edge: float = 0.018
    proposals: int = 96
    elites: int = 3
    exploration: float = 0.5
    time_limit: float | None = None

    def __post_init__(self) -> None:
        for name in ("evaluations", "batch", "proposals", "elites"):
            check_count(name, getattr(self, name))
        for name in ("edge", "exploration"):
            check_non_negative(name, getattr(self, name))
        if self.time_limit is not None:
            check_positive("time_limit", self.time_limit)

    def start(self, problem: Problem, seed: int) -> _Search:
        """Begin: what single disks are worth."""
        return _Search(self, problem, seed)


class _Search:
    """One run: every cell proposes, the model scores all proposals at once."""

    def __init__(self, settings: SearchSolver, problem: Problem, seed: int) -> None:
        self.settings = settings
        self.problem = problem
        self.dtype = torch.float32  # of the rewards
        self.lattices = [DiskLattice(size, problem.device) for size in problem.sizes]
        edge = settings.edge if problem.spread is None else 0.0  # groups are whole
        self.edges = [edge_width(edge * it.length) for it in self.lattices]
        # A cell draws the same numbers whatever other images and areas run beside it.
        self.cells = [
            _Cell(settings, self.lattices, area, random.Random(f"{seed} {area}"))
            for _ in range(problem.num_images)
            for area in problem.areas
        ]
        self._best: list[Tensor] = []  # of each round
        self.used = 0

    @property
    def history(self) -> dict[str, Tensor]:
        """The best seen after each round."""
        best = torch.stack(self._best)
        return {"reward": best.to(self.dtype).to(self.problem.device)}

    def step(self) -> int:
        """Score a round; the first is the set of the best single disks."""
        before = self.used
        if not self._best:
            self.used = self._score_singles()
        count = min(self.settings.batch, self.settings.evaluations - self.used)
        if count:
            self._score_round(count if self._best else 1)
            self.used += count if self._best else 1
            best = [cell.best_reward for cell in self.cells]
            self._best.append(torch.tensor(best, dtype=torch.double))
        return self.used - before

    def _score_singles(self) -> int:
        """Tell every cell what single disks are worth; the evaluations of a cell."""
        num_areas = len(self.problem.areas)
        spare = self.settings.evaluations - 1
        allowance = spare * num_areas / 2 / len(self.lattices)
        total = 0
        for which, lattice in enumerate(self.lattices):
            points = lattice.grid(min(_SINGLES, allowance))
            total += len(points) if allowance >= 1 else 0
            disks: list[Disks] = [frozenset([point]) for point in points]
            for image in range(self.problem.num_images):
                first = image * num_areas
                rewards = [0.0] * len(points)
                if allowance >= 1:
                    rewards = self._rewards_of_singles(which, disks, first)
                for cell in self.cells[first : first + num_areas]:
                    cell.learn_singles(which, points, rewards)
        return math.ceil(total / num_areas)

    def _rewards_of_singles(
        self, which: int, disks: list[Disks], cell: int
    ) -> list[float]:
        """Rewards of one disk each in one input tensor; the others are kept whole."""
        lattice = self.lattices[which]
        count = area_count(lattice.pixels, _share_of_single(lattice, len(disks)))
        rewards = []
        for piece in _pieces(disks, self.problem.perturbations_per_eval):
            masks = [
                torch.ones((), device=self.problem.device).expand(len(piece), 1, *size)
                for size in self.problem.sizes
            ]
            squares = lattice.squares(piece, lattice.axes)
            masks[which] = disk_masks(squares, count, self.edges[which])
            cells = torch.full((len(piece),), cell, device=self.problem.device)
            rewards += self._finite(self.problem.rewards(tuple(masks), cells), cells)
        return rewards

    def _score_round(self, count: int) -> None:
        """Let each cell choose its candidates, and tell it what they are worth."""
        jobs = [
            (index, candidate)
            for index, cell in enumerate(self.cells)
            for candidate in cell.propose(count)
        ]
        found: list[dict[Candidate, float]] = [{} for _ in self.cells]
        for piece in _pieces(jobs, self.problem.perturbations_per_eval):
            for (index, candidate), reward in zip(
                piece, self._rewards(piece), strict=True
            ):
                found[index][candidate] = reward
        for cell, rewards in zip(self.cells, found, strict=True):
            cell.learn(rewards)

    def _rewards(self, jobs: Sequence[tuple[int, Candidate]]) -> list[float]:
        """What candidates, each of a cell, are worth: one forward."""
        parts = [
            self._masks([candidate for _, candidate in group], self.cells[index].area)
            for index, group in itertools.groupby(jobs, key=lambda job: job[0])
        ]
        masks = tuple(torch.cat(tensors) for tensors in zip(*parts, strict=True))
        cells = torch.tensor([index for index, _ in jobs], device=self.problem.device)
        return self._finite(self.problem.rewards(masks, cells), cells)

    def _finite(self, rewards: Tensor, cells: Tensor) -> list[float]:
        """Rewards as numbers, once sure that they are some."""
        self.problem.check_finite(rewards, cells)
        self.dtype = rewards.dtype
        values: list[float] = rewards.tolist()
        return values

    def _masks(self, candidates: Sequence[Candidate], area: float) -> Masks:
        masks = []
        for which, lattice in enumerate(self.lattices):
            squares = lattice.squares([c[which] for c in candidates], lattice.axes)
            count = area_count(lattice.pixels, area)
            masks.append(disk_masks(squares, count, self.edges[which]))
        return tuple(masks)

    def masks(self) -> Masks:
        """Those of the best candidates."""
        found = [self._masks([cell.best], cell.area) for cell in self.cells]
        return tuple(
            match_area(torch.cat(masks), self.problem.areas)
            for masks in zip(*found, strict=True)
        )


def _share_of_single(lattice: DiskLattice, number: int) -> float:
    """Of the input; on steps that stand by themselves disks lie side by side."""
    if lattice.single == 1:
        return _SINGLE_DISK
    return min(_SINGLE_DISK, 1 / max(number, lattice.single))


_T = TypeVar("_T")


def _pieces(items: Sequence[_T], size: int) -> Iterator[Sequence[_T]]:
    return (items[start : start + size] for start in range(0, len(items), size))


@dataclass(frozen=True)
class _Singles:
    """What single disks of one input tensor are worth: where to put a new one."""

    order: list[Point]  # scored points, best first
    points: list[Point]  # all points of the lattice
    odds: list[float]  # their cumulative weights

    @classmethod
    def of(
        cls, lattice: DiskLattice, points: Sequence[Point], rewards: Sequence[float]
    ) -> _Singles:
        ranked = sorted(zip(rewards, points, strict=True), key=lambda rp: -rp[0])
        sides = [len(set(axis)) for axis in zip(*points, strict=True)]
        coarse = torch.tensor(rewards, dtype=torch.double).view(1, 1, *sides)
        fine = F.interpolate(coarse, lattice.points, mode=LINEAR[len(sides)]).flatten()
        spread = fine.std(correction=0).clamp_min(1e-12)
        weights = torch.softmax(fine / (_SAMPLING_TEMPERATURE * spread), 0)
        every = itertools.product(*map(range, lattice.points))
        return cls(
            [point for _, point in ranked],
            list(every),
            list(itertools.accumulate(weights.tolist())),
        )

    def draw(self, source: random.Random) -> Point:
        return source.choices(self.points, cum_weights=self.odds)[0]


class _Cell:
    """The candidates of one image and area: what is known and what to try next."""

    def __init__(
        self,
        settings: SearchSolver,
        lattices: Sequence[DiskLattice],
        area: float,
        draw: random.Random,
    ) -> None:
        self.settings = settings
        self.lattices = lattices
        self.area = area
        self.draw = draw
        self.singles: list[_Singles] = []
        self.rewards: dict[Candidate, float] = {}
        self.features = torch.empty(0)
        self.proposed: dict[Candidate, Tensor] = {}  # and their features
        self.radii = [
            (
                # A bar is as thin as its area asks.
                0.0 if lat.stretched else lat.radius_of(min(_DISKS[0], area / 2)),
                lat.radius_of(max(_DISKS[1], area)),
            )
            for lat in lattices
        ]

    @property
    def best(self) -> Candidate:
        return max(self.rewards, key=self.rewards.__getitem__)

    @property
    def best_reward(self) -> float:
        return self.rewards[self.best]

    def learn_singles(
        self, which: int, points: Sequence[Point], rewards: Sequence[float]
    ) -> None:
        self.singles.append(_Singles.of(self.lattices[which], points, rewards))

    def learn(self, rewards: dict[Candidate, float]) -> None:
        if rewards:
            features = torch.stack([self.proposed[c] for c in rewards])
            known = self.features.view(-1, features.shape[1])
            self.features = torch.cat([known, features])
            self.rewards.update(rewards)

    def propose(self, count: int) -> list[Candidate]:
        """The next candidates to score, at most ``count``."""
        candidates, features = self._promising(count)
        self.proposed = dict(zip(candidates, features, strict=True))
        return candidates

    def _promising(self, count: int) -> tuple[list[Candidate], Tensor]:
        if not self.rewards:
            first = [self._first()]
            return first, self._describe(first)[0]
        if len(self.rewards) == 1 and (windows := self._windows(count)):
            return windows, self._describe(windows)[0]
        wanted = self.settings.proposals if len(self.rewards) > 1 else count
        candidates, features = self._changes(wanted)
        if len(candidates) <= count:
            return candidates, features
        ratings = upper_bound(
            self.features,
            torch.tensor(list(self.rewards.values()), dtype=torch.double),
            features,
            self.settings.exploration,
        )
        chosen = ratings.topk(count).indices.tolist()
        return [candidates[index] for index in chosen], features[chosen]

    def _first(self) -> Candidate:
        """The best single disks, as many as reach the area."""
        return tuple(
            self._enough(lattice, singles.order)
            for lattice, singles in zip(self.lattices, self.singles, strict=True)
        )

    def _windows(self, count: int) -> list[Candidate]:
        """Windows on all steps that stand by themselves, in place of the first set."""
        (first,) = self.rewards
        lattices = [it for it in enumerate(self.lattices) if it[1].single > 1]
        found = [
            (*first[:which], frozenset(disks), *first[which + 1 :])
            for which, lattice in lattices
            for disks in lattice.windows(max(1, count // len(lattices)))
        ]
        return [candidate for candidate in found if candidate not in self.rewards]

    def _enough(self, lattice: DiskLattice, order: Sequence[Point]) -> Disks:
        radius = lattice.radius_of(_share_of_single(lattice, len(order)))
        for count in range(1, len(order)):
            disks = frozenset(order[:count])
            squares = lattice.squares([disks], lattice.sampled)
            if (squares <= radius**2).float().mean() >= self.area:
                return disks
        return frozenset(order)

    def _changes(self, wanted: int) -> tuple[list[Candidate], Tensor]:
        """Random changes of the best candidates: new ones with a feasible radius."""
        ranked = sorted(self.rewards, key=self.rewards.__getitem__, reverse=True)
        elites = ranked[: self.settings.elites]
        found: dict[Candidate, None] = {}
        features = []
        for _ in range(_ATTEMPTS):
            tried = {self._change(self._parent(elites)): None for _ in range(wanted)}
            new = [c for c in tried if c not in self.rewards and c not in found]
            if new:
                described, feasible = self._describe(new)
                keep = feasible.nonzero().flatten()[: wanted - len(found)].tolist()
                found |= {new[index]: None for index in keep}
                features.append(described[keep])
            if len(found) >= wanted:
                break
        return list(found), torch.cat(features) if features else self.features[:0]

    def _parent(self, elites: Sequence[Candidate]) -> Candidate:
        """One of the best, the better the likelier."""
        return elites[int(self.draw.random() ** 2 * len(elites))]

    def _change(self, parent: Candidate) -> Candidate:
        which = self.draw.randrange(len(parent))
        if self.lattices[which].stretched and self.draw.random() < _BARS:
            disks = self._bar(which, parent[which])
            return (*parent[:which], frozenset(disks), *parent[which + 1 :])
        disks = sorted(parent[which])
        for _ in range(2 if self.draw.random() < 0.3 else 1):
            self._move(which, disks)
        return (*parent[:which], frozenset(disks), *parent[which + 1 :])

    def _bar(self, which: int, disks: Disks) -> list[Point]:
        """A new bar along an axis, or all disks moved by a step along one."""
        lattice = self.lattices[which]
        axis = self.draw.choice([a for a, it in enumerate(lattice.apart) if not it])
        if self.draw.random() < 0.5:
            apart = [a for a, it in enumerate(lattice.apart) if it]
            across = bool(apart) and self.draw.random() < 0.5
            point = self.singles[which].draw(self.draw)
            return lattice.bar(point, apart if across else [axis])
        last, move = lattice.points[axis] - 1, self.draw.choice((-1, 1))
        return [
            (*p[:axis], min(max(0, p[axis] + move), last), *p[axis + 1 :])
            for p in disks
        ]

    def _move(self, which: int, disks: list[Point]) -> None:
        """Shift (40 %), relocate (25 %), add (20 %) or remove (15 %) a disk."""
        kind = self.draw.random()
        if kind < 0.4:
            for _ in range(1 if self.draw.random() < 0.7 else 2):
                index = self.draw.randrange(len(disks))
                disks[index] = self._shifted(which, disks[index])
        elif kind < 0.65:
            index = self.draw.randrange(len(disks))
            disks[index] = self.singles[which].draw(self.draw)
        elif kind < 0.85:
            disks.append(self.singles[which].draw(self.draw))
        elif len(disks) > 1:
            disks.pop(self.draw.randrange(len(disks)))

    def _shifted(self, which: int, point: Point) -> Point:
        reach = self.draw.randint(1, 3)
        lattice = self.lattices[which]
        return tuple(
            i if apart else min(max(0, i + self.draw.randint(-reach, reach)), count - 1)
            for i, count, apart in zip(
                point, lattice.points, lattice.apart, strict=True
            )
        )

    def _describe(self, candidates: Sequence[Candidate]) -> tuple[Tensor, Tensor]:
        """Coarse masks (M, F), scaled to squares of about 1, and which are feasible."""
        parts = []
        feasible = torch.ones(len(candidates), dtype=torch.bool)
        for which, lattice in enumerate(self.lattices):
            squares = lattice.squares([c[which] for c in candidates], lattice.sampled)
            count = max(1, round(self.area * lattice.samples))
            radius = radii(squares, count)
            low, high = self.radii[which]
            feasible &= (radius >= low) & (radius <= high)
            edge = 2 * (lattice.pixels / lattice.samples) ** (1 / lattice.dims)
            parts.append(disk_masks(squares, count, edge).flatten(1) / count**0.5)
        return torch.cat(parts, 1) / len(parts) ** 0.5, feasible
