r"""`LevelSetSolver`: ascent on a smooth field whose upper level set is the mask.

The mask of area a keeps the pixels where a smooth field S is largest
(`captum_extremal.level_sets`); its area is exact at every step, so that no area loss
competes with the score. While it is sought its edge is soft,

.. math:: m(u) = \operatorname{sigmoid}\left(\frac{S(u) - \tau_a}{w}\right),

with :math:`\tau_a` the value that the asked share of the pixels exceeds. The gradient g
of the reward with respect to the mask moves the field to where g is above its mean over
the edge, since a pixel can enter only where another leaves:

.. math:: \partial S = \frac{m (1 - m)}{w} \left(g - \bar g\right), \qquad
    \bar g = \frac{\sum_u m (1 - m)\, g}{\sum_u m (1 - m)}

1. start from the gradients of uniform masks, averaged over their height and the mirror
   image (at random where they are all zero);
2. repeat: one gradient of each cell. The area shrinks to the asked one from a larger
   one, the edge narrows from the width of the mask to a small part of it; the model is
   shown shifted copies, in turn over the perturbed input and over its mean colour;
3. twice, and at the end, a cell takes the field of a neighbouring area where that
   scores higher at its own area;
4. deliver the region with the edge of `smooth_edges`.
"""

from __future__ import annotations

import functools
import math
import random
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from captum_extremal._checks import check_count, check_non_negative, check_positive
from captum_extremal.area import area_count
from captum_extremal.level_sets import (
    Field,
    FreeField,
    edge_width,
    largest,
    smooth_edges,
)
from captum_extremal.masks import default_step
from captum_extremal.solvers.anytime import stopping
from captum_extremal.solvers.problem import Masks, Problem, Solution, View
from captum_extremal.solvers.views import copy_of, random_shifts

_HEIGHTS = (0.2, 7 / 15, 11 / 15, 1.0)  # of the uniform masks of the start
_EXCHANGES = (0.5, 0.75)  # parts of the run after which fields are compared
_SPREAD = 0.8  # edges are drawn within this factor e^+-0.8 of the schedule
_MOMENTUM = 0.9
_ALIKE = 0.1  # correlation of the start's gradients from which a mirror image serves
_SHRINKING = 0.7  # part of the run after which the areas are the asked ones
_LAST_RATE = 0.1  # of the learning rate at the end, where it has fallen linearly
_TIE = 1e-4  # share of a reward within which rounding must not decide
_SAMPLES = 8192  # pixels at least that thresholds are read from

MasksOf = Callable[[Sequence[Tensor], Sequence[float]], Masks]
"""Fields' parameters, whose rows take the areas in turn -> their masks."""


@dataclass(frozen=True)
class LevelSetSolver:
    """Ascent on a smooth field; the asked area is exact at every step.

    A cell costs ``iterations`` forwards and backwards; besides, the areas of an image
    share 8 for the start (4 where ``mirror`` is False), and a cell takes 18 forwards
    (12 at the smallest and largest area, none of an only one) to compare fields with
    its neighbours', half as many where no mirror image serves. The hybrid game doubles
    everything.

    Args:
        iterations: Gradients of each cell.
        learning_rate: Length of a first step relative to the field's own spread.
        edge: Half the width of the delivered mask's edge, as a fraction of the
            geometric mean of the input's sizes: 4 pixels at 224. Below half a pixel the
            edge is hard.
        softness: The widths of the edge during the search, first and last: of the
            pixels inside the area (outside it, where that is less), and as many beyond
            its border, this share differs visibly from 0 and 1. Each step draws its own
            within a factor of exp(+-0.8). Smaller last values suit hard edges.
        mask_step: Distance of the field's parameters in pixels; None scales with the
            input, 7 at 224.
        first_area: Where smaller areas begin. They shrink to the asked one over 70 % of
            the run, by the same factor in each step: what a large mask can do without
            is found out before the small one has to choose. 0 for the asked area from
            the first step on.
        flat_background: Show what is left out by its mean colour in every second step
            (by the mean of each channel at the most perturbed level), instead of
            perturbed. The blurred remains of a large object help the score; with them
            alone the mask need not show the object itself.
        mirror: Average over the mirror image as well, for inputs with two spatial
            sizes. None for the images where the gradients of the start say that the
            model looks at the same places in the mirror (their correlation is at least
            0.1): of a model that looks at one side, half of the mask would lie on the
            other.
        jitter: Average over shifted copies, by up to this fraction of each side (a
            third of the width of the smallest mask of the step, where that is less).
            Masks of photographs transfer better for it; for models that look at fixed
            places it only blurs them.
        time_limit: Seconds after which no further step begins; None for no limit. The
            start is made in any case. A run that ends early, also by Ctrl-C, delivers
            the masks that it has then.

    Raises:
        TypeError: If a setting is of the wrong type.
        ValueError: If a setting is out of range.

    Example:
        >>> from captum_extremal import ExtremalPerturbation
        >>> solver = LevelSetSolver(iterations=20)
        >>> def top(x):
        ...     return x[:, 0, :8].mean((1, 2))
        >>> method = ExtremalPerturbation(top, "fade", solver)
        >>> mask = method.attribute(torch.ones(1, 1, 32, 32), areas=0.25)[0, 0]
        >>> int((mask >= 0.5).sum()), bool((mask[:8] >= 0.5).float().mean() > 0.9)
        (256, True)
    """

    iterations: int = 88
    learning_rate: float = 0.6
    edge: float = 0.018
    softness: tuple[float, float] = (1.0, 0.1)
    mask_step: int | None = None
    first_area: float = 0.5
    flat_background: bool = True
    mirror: bool | None = None
    jitter: float = 0.07
    time_limit: float | None = None

    def __post_init__(self) -> None:
        check_count("iterations", self.iterations)
        check_positive("learning_rate", self.learning_rate)
        check_non_negative("edge", self.edge)
        check_non_negative("jitter", self.jitter)
        if not isinstance(self.softness, tuple) or len(self.softness) != 2:
            raise ValueError(
                f"softness must be a pair of numbers in (0, 1], got {self.softness!r}"
            )
        if not isinstance(self.flat_background, bool):
            came = repr(self.flat_background)
            raise TypeError(f"flat_background must be True or False, got {came}")
        if self.mirror is not None and not isinstance(self.mirror, bool):
            raise TypeError(f"mirror must be True, False or None, got {self.mirror!r}")
        if check_non_negative("first_area", self.first_area) > 1:
            raise ValueError(f"first_area must lie in [0, 1], got {self.first_area}")
        for share in self.softness:
            if not 0 < check_positive("softness", share) <= 1:
                raise ValueError(f"softness must lie in (0, 1], got {share}")
        if self.jitter > 0.5:
            raise ValueError(f"jitter must lie in [0, 0.5], got {self.jitter}")
        if self.mask_step is not None:
            check_count("mask_step", self.mask_step)
        if self.time_limit is not None:
            check_positive("time_limit", self.time_limit)

    @property
    def total_steps(self) -> int:
        """The iterations."""
        return self.iterations

    def solve(
        self,
        problem: Problem,
        seed: int = 0,
        on_step: Callable[[int], object] | None = None,
    ) -> Solution:
        """Ascend for all cells at once.

        Args:
            problem: What a mask is worth.
            seed: Of the copies and the edges that are drawn.
            on_step: Told after every iteration that one step is done.

        Returns:
            Masks of exactly the asked areas, with the series ``reward`` of what each
            step saw: areas, edges, copies and backgrounds differ between steps, so that
            it need not rise.

        Raises:
            RuntimeError: If the model cuts the gradient or a score is not finite.
        """
        with torch.no_grad():
            return Ascent(self, problem, seed).run(on_step or (lambda _: None))


class Ascent:
    """One run: the fields' parameters and momentum, one set for each input tensor.

    Args:
        settings: Those of the solver.
        problem: What a mask is worth.
        seed: Of the copies and the edges that are drawn.
        fields: One for each input tensor; None for smooth ones of the settings.
    """

    def __init__(
        self,
        settings: LevelSetSolver,
        problem: Problem,
        seed: int,
        fields: Sequence[Field | FreeField] | None = None,
    ) -> None:
        self.settings = settings
        self.problem = problem
        self.shown = [problem]  # in turn
        if settings.flat_background:
            self.shown.append(problem.over_mean_colour())
        self.random = random.Random(seed)
        self.cells = torch.arange(problem.num_cells, device=problem.device)
        self.fields: Sequence[Field | FreeField] = fields or [
            Field(size, settings.mask_step or default_step(size), problem.device)
            for size in problem.sizes
        ]
        self.edges = [_Edge(size) for size in problem.sizes]
        self.seed = seed
        images = any(len(size) == 2 for size in problem.sizes)
        self.copies = 2 if images and settings.mirror is not False else 1
        # Of each image whether its mirror image serves, (N,).
        self.mirrored = torch.ones(
            problem.num_images, dtype=torch.bool, device=problem.device
        )
        self.params: list[Tensor] = []
        self.momentum: list[Tensor] = []
        # Cells that met a gradient, or need none since all pixels are in.
        pixels = max(math.prod(size) for size in problem.sizes)
        whole = [area_count(pixels, area) == pixels for area in problem.areas]
        self.seen = torch.tensor(whole, device=problem.device).repeat(
            problem.num_images
        )
        self.rewards = torch.full(
            (settings.iterations, problem.num_cells), torch.nan, device=problem.device
        )

    def run(self, on_step: Callable[[int], object]) -> Solution:
        """Ascend, and deliver the masks."""
        iterations = self.settings.iterations
        exchanges = {round(part * iterations) for part in _EXCHANGES} - {0}
        done = 0
        with stopping(self.settings.time_limit) as stop:
            self._start()
            while done < iterations and not stop():
                if done in exchanges:
                    self._check_finite(done)
                    masks_of = functools.partial(self._soft_masks, done)
                    self._exchange(masks_of, self._areas(done))
                self._step(done)
                on_step(1)
                done += 1
            self._check_finite(done)
            self._warn_of_blind_cells(done)
            if not stop():
                self._exchange(self._delivered_masks, self.problem.areas)
            masks = self._delivered_masks(self.params, self.problem.areas)
        return Solution(masks, {"reward": self.rewards}, stop.ended)

    def _start(self) -> None:
        """The mean gradient of uniform masks of several heights, for all areas."""
        copies = [self._gradients_of_uniform_masks(view) for view in self._copies()]
        if self.copies == 2 and self.settings.mirror is None:
            self.mirrored = _alike(*copies)
            self.copies = 2 if self.mirrored.any() else 1
        num_areas = len(self.problem.areas)
        for usual, *mirrored in zip(*copies, strict=True):
            flags = self.mirrored.view(-1, *[1] * (usual.dim() - 1))
            total = [usual, *(torch.where(flags, other, usual) for other in mirrored)]
            params = self._or_random(_standardised(sum(total)))
            self.params.append(params.repeat_interleave(num_areas, dim=0))
            self.momentum.append(torch.zeros_like(self.params[-1]))

    def _gradients_of_uniform_masks(self, view: View) -> list[Tensor]:
        """Of each field's parameters, (N, *points), summed over the heights."""
        first = self.cells[:: len(self.problem.areas)]
        total = [torch.zeros(()) for _ in self.fields]
        for height in _HEIGHTS:
            masks = tuple(
                torch.full((len(first), 1, *size), height, device=first.device)
                for size in self.problem.sizes
            )
            _, gradients = self.problem.gradients(masks, first, view)
            total = [
                before.to(gradient) + field.adjoint(gradient.squeeze(1))
                for before, field, gradient in zip(
                    total, self.fields, gradients, strict=True
                )
            ]
        return total

    def _or_random(self, params: Tensor) -> Tensor:
        """Random parameters where no gradient says where to start."""
        generator = torch.Generator().manual_seed(self.seed % 2**63)
        noise = torch.randn(params.shape[1:], generator=generator).to(params)
        axes = tuple(range(1, params.dim()))
        largest_one = params.abs().amax(axes, keepdim=True)
        return torch.where(largest_one == 0, noise, params)

    def _copies(self) -> list[View]:
        """The image itself and, where it serves, its mirror image."""
        return [copy_of(False, ()), copy_of(self.mirrored, ())][: self.copies]

    def _step(self, iteration: int) -> None:
        """Move each field along the gradient of its soft mask, seen in one copy."""
        spread = math.exp(self.random.uniform(-_SPREAD, _SPREAD))
        softness = min(1.0, self._softness(iteration) * spread)
        areas = self._areas(iteration)
        shifts = random_shifts(self.random, self._jitter(areas))
        problem = self._problem_of(iteration)
        turn = iteration // len(self.shown) % self.copies
        view = copy_of(self.mirrored if turn else False, shifts)
        soft = [
            edge(field(params), softness, areas)
            for edge, field, params in zip(
                self.edges, self.fields, self.params, strict=True
            )
        ]
        masks = tuple(mask.unsqueeze(1) for mask, _ in soft)
        rewards, gradients = problem.gradients(masks, self.cells, view)
        self.rewards[iteration] = rewards
        rate = self.settings.learning_rate
        rate *= 1 - (1 - _LAST_RATE) * self._part(iteration)
        for which, ((_, slope), gradient) in enumerate(
            zip(soft, gradients, strict=True)
        ):
            direction = _exchanging(gradient.squeeze(1), slope)
            ascent = _normalised(self.fields[which].adjoint(direction))
            self.seen |= (gradient != 0).flatten(1).any(dim=1)
            self.momentum[which].mul_(_MOMENTUM).add_(ascent, alpha=1 - _MOMENTUM)
            warm = 1 - _MOMENTUM ** (iteration + 1)
            self.params[which] = _standardised(
                self.params[which] + rate / warm * self.momentum[which]
            )

    def _problem_of(self, iteration: int) -> Problem:
        """The backgrounds take turns."""
        return self.shown[iteration % len(self.shown)]

    def _part(self, iteration: int) -> float:
        """Of the run, from 0 at the first iteration to 1 at the last."""
        return iteration / max(1, self.settings.iterations - 1)

    def _areas(self, iteration: int) -> list[float]:
        """Geometrically from the first area down to the asked ones."""
        first = self.settings.first_area
        part = min(1.0, self._part(iteration) / _SHRINKING)
        return [
            area if area >= first else float(first * (area / first) ** part)
            for area in self.problem.areas
        ]

    def _jitter(self, areas: Sequence[float]) -> float:
        """Shifts as wide as the smallest mask would lose thin objects."""
        dims = min(len(size) for size in self.problem.sizes)
        return min(self.settings.jitter, float(min(areas) ** (1 / dims)) / 3)

    def _softness(self, iteration: int) -> float:
        """Geometrically from the first value to the last."""
        first, last = self.settings.softness
        return float(first * (last / first) ** self._part(iteration))

    def _soft_masks(
        self, iteration: int, params: Sequence[Tensor], areas: Sequence[float]
    ) -> Masks:
        """What a step of this iteration is about, without its random part."""
        return tuple(
            edge(field(p), self._softness(iteration), areas)[0].unsqueeze(1)
            for edge, field, p in zip(self.edges, self.fields, params, strict=True)
        )

    def _delivered_masks(
        self, params: Sequence[Tensor], areas: Sequence[float]
    ) -> Masks:
        masks = []
        for field, p in zip(self.fields, params, strict=True):
            pixels = math.prod(field.size)
            regions = largest(field(p), [area_count(pixels, area) for area in areas])
            width = edge_width(self.settings.edge, field.size)
            masks.append(smooth_edges(regions, width))
        return tuple(masks)

    def _exchange(self, masks_of: MasksOf, areas: Sequence[float]) -> None:
        """Let each cell have the best of its own field and its neighbours'."""
        # All fields are alike where the area is everything.
        order = sorted(
            (place for place, area in enumerate(areas) if area < 1),
            key=areas.__getitem__,
        )
        if len(order) < 2:
            return
        source = self.cells.clone()
        best = torch.full_like(source, torch.nan, dtype=self.rewards.dtype)
        best[self._cells_of(order)] = self._rewards(masks_of, areas, order, order)
        for places, others in ((order[1:], order[:-1]), (order[:-1], order[1:])):
            cells, candidates = self._cells_of(places), self._cells_of(others)
            rewards = self._rewards(masks_of, areas, others, places)
            better = rewards > best[cells] + _TIE * best[cells].abs()
            best[cells] = torch.where(better, rewards, best[cells])
            source[cells] = torch.where(better, candidates, source[cells])
        self.params = [params[source] for params in self.params]
        self.momentum = [momentum[source] for momentum in self.momentum]

    def _rewards(
        self,
        masks_of: MasksOf,
        areas: Sequence[float],
        sources: Sequence[int],
        places: Sequence[int],
    ) -> Tensor:
        """What fields of some areas are worth at others, mean over the copies."""
        params = [params[self._cells_of(sources)] for params in self.params]
        masks = masks_of(params, [areas[place] for place in places])
        cells = self._cells_of(places)
        copies = [self.problem.rewards(masks, cells, view) for view in self._copies()]
        return torch.stack(copies).mean(dim=0)

    def _cells_of(self, places: Sequence[int]) -> Tensor:
        """The cells of these areas, of all images, image-major."""
        firsts = self.cells[:: len(self.problem.areas), None]
        return (firsts + torch.tensor(list(places), device=firsts.device)).flatten()

    def _warn_of_blind_cells(self, done: int) -> None:
        blind = torch.nonzero(~self.seen)
        if done and len(blind):
            warnings.warn(
                f"no step met a gradient for {self.problem.name_of(int(blind[0]))}"
                f"{' and others' if len(blind) > 1 else ''}: the score does not change "
                "with the mask, or is saturated. SearchSolver() needs no gradient",
                stacklevel=2,
            )

    def _check_finite(self, done: int) -> None:
        bad = torch.nonzero(~self.rewards[:done].isfinite())
        if len(bad):
            step, cell = bad[0].tolist()
            when = f" at iteration {step}"
            if self._problem_of(step) is not self.problem:
                when += " over the mean colour, see LevelSetSolver(flat_background)"
            raise self.problem.not_finite(float(self.rewards[step, cell]), cell, when)
        if not all(params.isfinite().all() for params in self.params):
            raise RuntimeError(
                "forward_func and reward must have finite gradients, got NaN within "
                f"the first {done} iterations"
            )


class _Edge:
    """Fields (K, *S) -> soft masks and slopes; the rows take the areas in turn."""

    def __init__(self, size: Sequence[int]) -> None:
        pixels = math.prod(size)
        stride = max(1, math.floor((pixels / _SAMPLES) ** (1 / len(size))))
        self.every = (slice(None), *[slice(None, None, stride)] * len(size))
        self.samples = math.prod(-(-side // stride) for side in size)

    def __call__(
        self, values: Tensor, softness: float, areas: Sequence[float]
    ) -> tuple[Tensor, Tensor]:
        sampled = values[self.every].flatten(1)
        shape = (-1, *[1] * (values.dim() - 1))
        high, middle, low = (
            threshold.view(shape)
            for threshold in self._thresholds(sampled, softness, areas)
        )
        width = (high - low).nan_to_num(0) / 4
        flat = width <= 0  # an edge without pixels has no slope
        width = torch.where(flat, torch.ones_like(width), width)
        mask = torch.sigmoid((values - middle) / width)
        slope = torch.where(flat, torch.zeros_like(mask), mask * (1 - mask) / width)
        return torch.where(flat, (values >= middle).to(mask), mask), slope

    def _thresholds(
        self, sampled: Tensor, softness: float, areas: Sequence[float]
    ) -> Tensor:
        """Values at the inner end, the middle and the outer end of the edge, (3, K)."""
        columns = sampled.unflatten(0, (-1, len(areas)))
        found = []
        for column, area in enumerate(areas):
            inside = area * self.samples
            reach = softness * min(inside, self.samples - inside)
            ranks = (inside - max(reach, 1), inside, inside + max(reach, 1))
            places = [
                min(max(1, math.ceil(self.samples - rank)), self.samples)
                for rank in ranks
            ]
            rows = columns[:, column]
            thresholds = torch.stack([rows.kthvalue(p, 1).values for p in places])
            if inside > self.samples - 1:
                thresholds.fill_(-torch.inf)  # all pixels are in
            found.append(thresholds)
        return torch.stack(found, dim=2).flatten(1)


def _alike(first: Sequence[Tensor], second: Sequence[Tensor]) -> Tensor:
    """Of which images two gradients of their pixels rise at the same places, (N,)."""
    images = [dim for dim, a in enumerate(first) if a.dim() == 3]
    a, b = (
        torch.cat([_standardised(each[dim]).flatten(1) for dim in images], dim=1)
        for each in (first, second)
    )
    # Standardised rows that are all zero do not count.
    scale = (a.square().sum(1) * b.square().sum(1)).sqrt()
    return (a * b).sum(1) >= _ALIKE * scale.clamp_min(torch.finfo(a.dtype).tiny)


def _exchanging(gradient: Tensor, slope: Tensor) -> Tensor:
    """The gradient of the field: a pixel gains what another, on average, loses."""
    axes = tuple(range(1, gradient.dim()))
    weight = slope.sum(axes, keepdim=True).clamp_min(torch.finfo(slope.dtype).tiny)
    mean = (slope * gradient).sum(axes, keepdim=True) / weight
    return (gradient - mean) * slope


def _normalised(values: Tensor) -> Tensor:
    """Rows scaled to a mean square of 1; rows of zeros stay."""
    axes = tuple(range(1, values.dim()))
    tiny = torch.finfo(values.dtype).tiny
    # By the largest first, whose square may be too small or too large for its type.
    scaled = values / values.abs().amax(axes, keepdim=True).clamp_min(tiny)
    return scaled / scaled.square().mean(axes, keepdim=True).sqrt().clamp_min(tiny)


def _standardised(values: Tensor) -> Tensor:
    """Rows with mean 0 and mean square 1; the level sets stay the same."""
    axes = tuple(range(1, values.dim()))
    return _normalised(values - values.mean(axes, keepdim=True))
