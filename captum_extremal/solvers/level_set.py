r"""`LevelSetSolver`: ascent on a smooth field whose upper level set is the mask.

The mask of area a keeps the pixels where a smooth field S is largest
(`captum_extremal.masks.edges`); its area is exact at every step, so that no area loss
competes with the score. While it is sought its edge is soft,

.. math:: m(u) = \operatorname{sigmoid}\left(\frac{S(u) - \tau_a}{w}\right),

with :math:`\tau_a` the value that the asked share of the pixels exceeds. The gradient g
of the reward with respect to the mask moves the field to where g is above its mean over
the edge, since a pixel can enter only where another leaves:

.. math:: \partial S = \frac{m (1 - m)}{w} \left(g - \bar g\right), \qquad
    \bar g = \frac{\sum_u m (1 - m)\, g}{\sum_u m (1 - m)}

1. start from the gradients of uniform masks, averaged over their height and, where it
   serves, the mirror image (at random where they are all zero);
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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from captum_extremal._base.axes import is_short
from captum_extremal._base.checks import check_count, check_non_negative, check_positive
from captum_extremal.masks.area import area_count
from captum_extremal.masks.edges import edge_widths, largest, smooth_edges
from captum_extremal.masks.fields import Field, FreeField
from captum_extremal.solvers.driver import History, StepwiseSolver
from captum_extremal.solvers.problem import Masks, Problem, View, check_gradients
from captum_extremal.solvers.start import MIRRORING, start
from captum_extremal.solvers.views import Copy, random_shifts

_EXCHANGES = (0.5, 0.75)  # parts of the run after which fields are compared
_SPREAD = 0.8  # edges are drawn within this factor e^+-0.8 of the schedule
_MOMENTUM = 0.9
_SHRINKING = 0.7  # part of the run after which the areas are the asked ones
_LAST_RATE = 0.1  # of the learning rate at the end, where it has fallen linearly
_TIE = 1e-4  # share of a reward within which rounding must not decide
_SAMPLES = 8192  # pixels at least that thresholds are read from

MasksOf = Callable[[Sequence[Tensor], Sequence[float]], Masks]
"""Fields' parameters, whose rows take the areas in turn -> their masks."""


@dataclass(frozen=True)
class LevelSetSolver(StepwiseSolver):
    """Ascent on a smooth field; the asked area is exact at every step.

    A cell costs ``iterations`` forwards and backwards; besides, the areas of an image
    share 8 for the start (4 where no mirror image may serve), and a cell takes 9
    forwards (6 at the smallest and largest area, none of an only one) to compare fields
    with its neighbours'. The hybrid game doubles everything.

    Lengths scale with the input. Where one axis is at least three times as long as
    another (more than twice, if that has few steps), each has its own: a short axis of
    at most 64 steps, such as leads, slices or frames, is left unsmoothed, a longer one
    (mel bands) is divided into as many parts as the other.

    Args:
        iterations: Gradients of each cell.
        learning_rate: Length of a first step relative to the field's own spread.
        edge: Half the width of the delivered mask's edge, as a fraction of the
            geometric mean of the input's sizes (along a short axis of its own): 4
            pixels at 224. Below half a pixel the edge is hard.
        softness: The widths of the edge during the search, first and last: of the
            pixels inside the area (outside it, where that is less), and as many beyond
            its border, this share differs visibly from 0 and 1. Each step draws its own
            within a factor of exp(+-0.8). Smaller last values suit hard edges.
        mask_step: Distance of the field's parameters in pixels, along all axes; None
            scales with the input, 7 at 224.
        first_area: Where smaller areas begin. They shrink to the asked one over 70 % of
            the run, by the same factor in each step: what a large mask can do without
            is found out before the small one has to choose. 0 for the asked area from
            the first step on.
        flat_background: Show what is left out by its mean colour in every second step
            (by the mean of each channel at the most perturbed level), instead of
            perturbed; not where masks are of groups of features. The blurred remains of
            a large object help the score; with them alone the mask need not show the
            object itself.
        mirror: Average over the mirror image as well, in the first half of the run, for
            inputs with two spatial sizes. None for the images, and of a tuple of inputs
            for the tensors, where the start says that the model looks at the same
            places in the mirror: of a model that looks at one side, half of the mask
            would lie on the other. What fields are worth is always asked of the input
            as it is.
        jitter: Average over shifted copies, by up to this fraction of each side (a
            third of the width of the smallest mask of the step, where that is less), of
            pictures and volumes whose axes are alike.
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

    def start(self, problem: Problem, seed: int) -> Ascent:
        """Begin: the first fields of all cells."""
        return Ascent(self, problem, seed)


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
        if settings.flat_background and problem.spread is None:
            self.shown.append(problem.over_mean_colour())
        self.random = random.Random(seed)
        self.cells = torch.arange(problem.num_cells, device=problem.device)
        self.fields: Sequence[Field | FreeField] = fields or [
            Field(size, settings.mask_step, problem.device) for size in problem.sizes
        ]
        self.edges = [_Edge(size) for size in problem.sizes]
        self.seed = seed
        self.mirrored: list[Tensor] = []  # of each tensor which images are, (N,)
        self.params: list[Tensor] = []
        self.momentum: list[Tensor] = []
        # Cells that met a gradient, or need none since all pixels are in.
        pixels = max(math.prod(size) for size in problem.sizes)
        whole = [area_count(pixels, area) == pixels for area in problem.areas]
        self.seen = torch.tensor(whole, device=problem.device).repeat(
            problem.num_images
        )
        self.done = 0
        self._history = History(settings.iterations, problem)
        self._exchanges = {round(part * settings.iterations) for part in _EXCHANGES}
        self._start()

    @property
    def history(self) -> dict[str, Tensor]:
        """The rewards of each step."""
        return self._history.series

    def step(self) -> int:
        """Move all fields, and compare them at times; in the end compare them alone."""
        if self.done == self.settings.iterations:
            self._check_finite()
            self._exchange(self._delivered_masks, self.problem.areas)
            return 0
        if self.done in self._exchanges - {0}:
            self._check_finite()
            masks_of = functools.partial(self._soft_masks, self.done)
            self._exchange(masks_of, self._areas(self.done))
        self._step(self.done)
        self.done += 1
        return 1

    def masks(self) -> Masks:
        """The regions of the fields as they are, with their edges."""
        self._check_finite()
        self._warn_of_blind_cells()
        return self._delivered_masks(self.params, self.problem.areas)

    def _start(self) -> None:
        """The mean gradient of uniform masks of several heights, for all areas."""
        begin = start(self.problem, self.fields, self.settings.mirror)
        self.mirrored = begin.mirrored
        num_areas = len(self.problem.areas)
        for gradients in begin.gradients:
            params = self._or_random(_standardised(gradients))
            self.params.append(params.repeat_interleave(num_areas, dim=0))
            self.momentum.append(torch.zeros_like(self.params[-1]))

    def _or_random(self, params: Tensor) -> Tensor:
        """Random parameters where no gradient says where to start."""
        generator = torch.Generator().manual_seed(self.seed % 2**63)
        noise = torch.randn(params.shape[1:], generator=generator).to(params)
        axes = tuple(range(1, params.dim()))
        largest_one = params.abs().amax(axes, keepdim=True)
        return torch.where(largest_one == 0, noise, params)

    def _step(self, iteration: int) -> None:
        """Move each field along the gradient of its soft mask, seen in one copy."""
        spread = math.exp(self.random.uniform(-_SPREAD, _SPREAD))
        softness = min(1.0, self._softness(iteration) * spread)
        areas = self._areas(iteration)
        shifts = random_shifts(self.random, self._jitter(areas))
        problem = self._problem_of(iteration)
        turn = iteration // len(self.shown) % 2
        mirrors = turn == 1 and self._part(iteration) < MIRRORING
        view = Copy(self.mirrored if mirrors else False, shifts)
        rate = self.settings.learning_rate
        rate *= 1 - (1 - _LAST_RATE) * self._part(iteration)
        rate /= 1 - _MOMENTUM ** (iteration + 1)
        for rows, of_rows in self._portions(len(self.cells), areas):
            rewards = self._move(rows, of_rows, softness, rate, problem, view)
            self._history.write(iteration, rows, reward=rewards)

    def _move(
        self,
        rows: slice,
        areas: Sequence[float],
        softness: float,
        rate: float,
        problem: Problem,
        view: View,
    ) -> Tensor:
        """A step of some cells; their rewards before it."""
        soft = [
            edge(field(params[rows]), softness, areas)
            for edge, field, params in zip(
                self.edges, self.fields, self.params, strict=True
            )
        ]
        masks = tuple(mask.unsqueeze(1) for mask, _ in soft)
        rewards, gradients = problem.gradients(masks, self.cells[rows], view)
        for which, ((mask, width), gradient) in enumerate(
            zip(soft, gradients, strict=True)
        ):
            self.seen[rows] |= (gradient != 0).flatten(1).any(dim=1)
            direction = _exchanging(gradient.squeeze(1), _slope_of(mask, width))
            ascent = _normalised(self.fields[which].adjoint(direction))
            momentum, params = self.momentum[which], self.params[which]
            momentum[rows] = (
                momentum[rows].mul(_MOMENTUM).add(ascent, alpha=1 - _MOMENTUM)
            )
            params[rows] = _standardised(params[rows] + rate * momentum[rows])
        return rewards

    def _portions(
        self, number: int, areas: Sequence[float]
    ) -> Iterator[tuple[slice, Sequence[float]]]:
        """Rows that take the areas in turn: all, or of large images one at a time."""
        if not self.problem.is_large:
            yield slice(None), areas
            return
        for row in range(number):
            yield slice(row, row + 1), [areas[row % len(areas)]]

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
        dims = min(is_short(size).count(False) for size in self.problem.sizes)
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
            edge = self.settings.edge if self.problem.spread is None else 0.0
            widths = edge_widths(edge, field.size)
            smooth = torch.empty(len(p), 1, *field.size, device=self.problem.device)
            for rows, of_rows in self._portions(len(p), areas):
                counts = [area_count(pixels, area) for area in of_rows]
                smooth[rows] = smooth_edges(largest(field(p[rows]), counts), widths)
            masks.append(smooth)
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
        own = self._rewards(masks_of, areas, order, order)
        best = own.new_full(source.shape, torch.nan)
        best[self._cells_of(order)] = own
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
        """What fields of some areas are worth at others, in the input as it is."""
        params = [params[self._cells_of(sources)] for params in self.params]
        cells, asked = self._cells_of(places), [areas[place] for place in places]
        rewards = [
            self.problem.rewards(masks_of([p[rows] for p in params], few), cells[rows])
            for rows, few in self._portions(len(cells), asked)
        ]
        return torch.cat(rewards)

    def _cells_of(self, places: Sequence[int]) -> Tensor:
        """The cells of these areas, of all images, image-major."""
        firsts = self.cells[:: len(self.problem.areas), None]
        return (firsts + torch.tensor(list(places), device=firsts.device)).flatten()

    def _warn_of_blind_cells(self) -> None:
        blind = torch.nonzero(~self.seen)
        if len(blind):
            warnings.warn(
                f"no step met a gradient for {self.problem.name_of(int(blind[0]))}"
                f"{' and others' if len(blind) > 1 else ''}: the score does not change "
                "with the mask, or is saturated. SearchSolver() needs no gradient",
                stacklevel=2,
            )

    def _check_finite(self) -> None:
        rewards = self.history["reward"][: self.done]
        self.problem.check_finite(rewards, self.cells, self._when)
        check_gradients(self.params, f"within the first {self.done} iterations")

    def _when(self, step: int) -> str:
        seen = self._problem_of(step) is self.problem
        other = " over the mean colour, see LevelSetSolver(flat_background)"
        return f" at iteration {step}{'' if seen else other}"


class _Edge:
    """Fields (K, *S) -> soft masks and the widths of their edges.

    The rows take the areas in turn. A width of 0 is that of a hard edge. The masks take
    the place of the fields' values.
    """

    def __init__(self, size: Sequence[int]) -> None:
        short = is_short(size)
        excess = math.prod(size) / _SAMPLES
        stride = max(1, math.floor(excess ** (1 / short.count(False))))
        strides = [1 if is_one else stride for is_one in short]
        self.every = (slice(None), *(slice(None, None, step) for step in strides))
        self.samples = math.prod(
            -(-side // step) for side, step in zip(size, strides, strict=True)
        )

    def __call__(
        self, values: Tensor, softness: float, areas: Sequence[float]
    ) -> tuple[Tensor, Tensor]:
        sampled = values[self.every].flatten(1)
        shape = (-1, *[1] * (values.dim() - 1))
        high, middle, low = (
            threshold.view(shape)
            for threshold in self._thresholds(sampled, softness, areas)
        )
        width = ((high - low).nan_to_num(0) / 4).clamp_min(0)
        flat = width == 0  # an edge without pixels has no slope
        # Elsewhere than on a CPU looking would wait.
        inside = None
        if flat.device.type != "cpu" or flat.any():
            inside = values >= middle
        mask = values.sub_(middle).div_(width.masked_fill(flat, 1)).sigmoid_()
        if inside is not None:
            mask.masked_fill_(flat & inside, 1).masked_fill_(flat & ~inside, 0)
        return mask, width

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


def _slope_of(mask: Tensor, width: Tensor) -> Tensor:
    """How fast a soft mask rises with its field: in its place."""
    flat = width == 0
    mask.mul_(1 - mask).div_(width.masked_fill(flat, 1))
    return mask.masked_fill_(flat, 0)


def _exchanging(gradient: Tensor, slope: Tensor) -> Tensor:
    """The gradient of the field: a pixel gains what another, on average, loses.

    In place of the gradient of the mask.
    """
    axes = tuple(range(1, gradient.dim()))
    weight = slope.sum(axes, keepdim=True).clamp_min(torch.finfo(slope.dtype).tiny)
    mean = (slope * gradient).sum(axes, keepdim=True) / weight
    return gradient.sub_(mean).mul_(slope)


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
