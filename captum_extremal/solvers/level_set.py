r"""`LevelSetSolver`: one field for all areas, then one for each, by ascent.

The mask of an area keeps the pixels where a smooth field is largest; `ascent` says how
a field climbs. A point of the gradient says little by itself: at a mask a quarter
larger, over the other background or a pixel further the gradient is nearly another one.
So many are averaged, over an input's areas as well, before anything is decided, and
what chance could decide is decided by a rule:

1. *Start.* The gradients of uniform masks, averaged over their height and, where it
   serves, the mirror image (at random where they are all zero).
2. *Survey.* The gradients at level sets of that field, from a tenth to most of the
   input, are averaged without moving it. No chance is in them. Start and survey
   together are the *anchor*: of several answers that are worth the same, the one next
   to it is taken.
3. *Exploration.* One field for each input climbs for all areas at once, from large
   areas to small ones and from coarse to fine, over shifted and mirrored copies and two
   backgrounds in turn. It is pulled to the anchor, ever less. In the end it ranks the
   pixels: its level sets are the nested masks of all areas.
4. *Refinement.* Each area's own field goes on from there, on the input as it is, at the
   asked area, and is held near to where it came from. Its second half sees nothing but
   what was asked for.
5. Deliver the region with the edge of `smooth_edges`.
"""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from captum_extremal._base.axes import is_short, lattice_steps, scales
from captum_extremal._base.checks import (
    check_bool,
    check_count,
    check_non_negative,
    check_positive,
)
from captum_extremal.masks.edges import EDGE, places
from captum_extremal.masks.fields import Field
from captum_extremal.solvers.ascent import (
    SPREAD,
    Ascent,
    blurred,
    check_softness,
    delivered_masks,
    falling,
    geometric,
    normalised,
    or_random,
    standardised,
)
from captum_extremal.solvers.driver import History, StepwiseSolver
from captum_extremal.solvers.problem import Masks, Problem
from captum_extremal.solvers.start import MIRRORING, first_gradients, start
from captum_extremal.solvers.views import Copy, random_shifts

_COPIES = 4  # gradients of each step of the shared field
_SURVEY = 0.2  # part of the shared steps
_SURVEYED = (0.1, 0.7)  # areas of the survey
_SURVEY_SOFTNESS = 0.9
_START_BLUR, _SURVEY_BLUR = 1 / 8, 3 / 32  # of the length of an axis: 28, 21 at 224
_ASKED_OF_MIRRORS = (0.05, 0.1, 0.2)  # areas, whatever is asked for
_SMALLEST = 0.02  # area of the exploration
_SHRINKING = 0.5  # part of the exploration after which all areas take part
_COARSE, _COARSE_UNTIL = 0.25, 0.8  # of the width of the first area; part
_ANCHOR, _ANCHOR_UNTIL, _ANCHOR_LAST = 0.2, 0.8, 0.05
_ASKED_FROM = 0.5  # part of the refinement from which on nothing else is shown
_REFINING, _HOLD = 0.25, 0.03  # of the learning rate; pull in each step
_OVER_COLOUR = " over the mean colour, see LevelSetSolver(flat_background)"
_RANKING = 0.35  # part of the steps that a ranking alone takes
_SMOOTHNESS = 0.018  # of the length of an axis
_EXPLORED, _BRANCHED = 4, 8  # times the last softness: where one ends, one begins


@dataclass(frozen=True)
class LevelSetSolver(StepwiseSolver):
    """Ascent on smooth fields; the asked area is exact at every step.

    The areas of an image share 40 % of the steps, of four forwards and backwards each,
    and 16 forwards and backwards for the start (12 where no mirror image serves, 8
    where none may); of the other steps each takes one forward and backward of each
    cell. The hybrid game doubles everything.

    Lengths scale with the input. Where one axis is at least three times as long as
    another (more than twice, if that has few steps), each has its own: a short axis of
    at most 64 steps, such as leads, slices or frames, is left unsmoothed, a longer one
    (mel bands) is divided into as many parts as the other.

    Args:
        iterations: Steps, the shared ones among them.
        learning_rate: Length of a first step relative to the field's own spread; of the
            steps that are not shared a quarter of it.
        edge: Half the width of the delivered mask's edge, as a fraction of the
            geometric mean of the input's sizes (along a short axis of its own): 4
            pixels at 224. Below half a pixel the edge is hard.
        softness: The widths of the edge during the search, first and last: of the
            pixels inside the area (outside it, where that is less), and as many beyond
            its border, this share differs visibly from 0 and 1. Each step draws its own
            within a factor of exp(+-0.8). The shared steps end at four times the last
            value, the others begin at eight times of it. Smaller last values suit hard
            edges.
        smoothness: Radius in pixels of the disks that a binarised mask is a union of;
            None for 1.8 % of the length that counts along an axis, 4 pixels at 224. 0
            for level sets as they come. Where a mask's area is less than such a disk it
            is a smaller disk, and the last pixels of the exact area lie around the
            union. With ``shared=1`` masks are nested level sets instead.
        mask_step: Distance of the field's parameters in pixels, along all axes; None
            scales with the input, 7 at 224, or is half of a larger ``smoothness``.
        first_area: The largest area of the exploration, and the only one at first: what
            a large mask can do without is found out before small ones have to choose.
        flat_background: Show what is left out by its mean colour in every second step
            (by the mean of each channel at the most perturbed level), instead of
            perturbed; not in the last steps of all, half of those that are not shared,
            nor where masks are of groups of features. The blurred remains of a large
            object help the score; with them alone the mask need not show the object
            itself.
        mirror: Explore the mirror image as well, for inputs with two spatial sizes.
            None for the images, and of a tuple of inputs for the tensors, where the
            start says that the model looks at the same places in the mirror: of a model
            that looks at one side, half of the mask would lie on the other.
        jitter: Explore shifted copies, by up to this fraction of each side (a third of
            the width of the step's mask, where that is less), of pictures and volumes
            whose axes are alike. Masks of photographs transfer better for it.
        shared: Part of the steps that all areas share. 1 for the nested masks of one
            field, which cost the same for any number of areas; 0 to begin with each
            area's own.
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

    iterations: int = 80
    learning_rate: float = 0.6
    edge: float = EDGE
    softness: tuple[float, float] = (1.0, 0.04)
    smoothness: float | None = None
    mask_step: int | None = None
    first_area: float = 0.5
    flat_background: bool = True
    mirror: bool | None = None
    jitter: float = 0.07
    shared: float = 0.4
    time_limit: float | None = None

    def __post_init__(self) -> None:
        check_count("iterations", self.iterations)
        check_positive("learning_rate", self.learning_rate)
        check_non_negative("edge", self.edge)
        check_non_negative("jitter", self.jitter)
        if self.smoothness is not None:
            check_non_negative("smoothness", self.smoothness)
        check_softness(self.softness)
        check_bool("flat_background", self.flat_background)
        if self.mirror is not None and not isinstance(self.mirror, bool):
            raise TypeError(f"mirror must be True, False or None, got {self.mirror!r}")
        for name in ("first_area", "shared"):
            value = getattr(self, name)
            if check_non_negative(name, value) > 1:
                raise ValueError(f"{name} must lie in [0, 1], got {value}")
        if self.jitter > 0.5:
            raise ValueError(f"jitter must lie in [0, 0.5], got {self.jitter}")
        if self.mask_step is not None:
            check_count("mask_step", self.mask_step)
        if self.time_limit is not None:
            check_positive("time_limit", self.time_limit)

    def radii(self, size: Sequence[int]) -> tuple[float, ...]:
        """Of the disks that masks of this size are unions of, in pixels, by axis.

        Example:
            >>> [round(radius, 2) for radius in LevelSetSolver().radii((224, 224))]
            [4.03, 4.03]
            >>> LevelSetSolver(smoothness=9).radii((12, 1000))
            (0.0, 9.0)
        """
        lengths = scales(size)
        if self.smoothness is None:
            return tuple(_SMOOTHNESS * length for length in lengths)
        return tuple(float(self.smoothness) if length else 0.0 for length in lengths)

    def step_of(self, size: Sequence[int]) -> int | None:
        """The field's distance of parameters, None for the usual one of this size.

        Example:
            >>> LevelSetSolver().step_of((224, 224))
            >>> LevelSetSolver(smoothness=23).step_of((224, 224))
            12
        """
        if self.mask_step is not None or self.smoothness is None:
            return self.mask_step
        wide = round(self.smoothness / 2)
        return wide if wide > max(lattice_steps(size)) else None

    @classmethod
    def fast(cls) -> LevelSetSolver:
        """A first look, for about half the work, less for three areas and more.

        Example:
            >>> LevelSetSolver.fast().iterations < LevelSetSolver().iterations
            True
        """
        return cls(iterations=36, shared=1 / 3)

    def for_ranking(self) -> LevelSetSolver:
        """The same for `Solution.ranking` alone: all steps are shared, fewer in all.

        Example:
            >>> LevelSetSolver().for_ranking().iterations
            28
        """
        steps = max(1, round(_RANKING * self.iterations))
        return dataclasses.replace(self, iterations=steps, shared=1.0)

    def start(self, problem: Problem, seed: int) -> _Run:
        """Begin: the first field of each image."""
        return _Run(self, problem, seed)


class _Run:
    """One run: a field for each image, then one for each cell."""

    def __init__(self, settings: LevelSetSolver, problem: Problem, seed: int) -> None:
        self.settings = settings
        self.problem = problem
        self.shown = [problem]  # in turn
        if settings.flat_background and problem.spread is None:
            self.shown.append(problem.over_mean_colour())
        self.fields = [
            Field(size, settings.step_of(size), problem.device)
            for size in problem.sizes
        ]
        self.done = 0
        self.shared = round(settings.shared * settings.iterations)
        self.survey = round(_SURVEY * self.shared)
        self.random = random.Random(seed)
        self.unmoved = random.Random(0)  # what the survey draws, whatever the seed
        self._history = History(settings.iterations, problem)
        begin = start(problem, self.fields, settings.mirror, _ASKED_OF_MIRRORS)
        self.mirrored = begin.mirrored
        several = [begin.gradients]
        for shown in self.shown[1:]:
            others = first_gradients(shown, self.fields, self.mirrored, settings.jitter)
            several.append([_finite_rows(values) for values in others])
        self.anchor = [
            or_random(standardised(values), seed)
            for values in self._blurred(_sums(several), _START_BLUR)
        ]
        first = torch.arange(problem.num_images, device=problem.device)
        first = first * len(problem.areas)
        self.images = Ascent(problem, self.fields, self.anchor, first)
        # The last reward of each cell, or the first that is not finite.
        self.over_colour = torch.zeros(problem.num_cells, device=problem.device)
        self.seen_around: list[Tensor] = []  # what the survey has summed up
        self.branches: list[Tensor] = []  # where the areas' fields came from
        self._cells: Ascent | None = None

    @property
    def history(self) -> dict[str, Tensor]:
        """The rewards of each step; of a shared one the mean over copies on blur."""
        return self._history.series

    def step(self) -> int:
        """Move the field of each image, or those of its areas."""
        if self.done == self.settings.iterations:
            return 0
        if self.done < self.survey:
            self._survey(self.done)
        elif self.done < self.shared:
            self._explore(self.done - self.survey, self.shared - self.survey)
        else:
            steps = self.settings.iterations - self.shared
            self._refine(self.done - self.shared, steps)
        self.done += 1
        return 1

    def masks(self) -> Masks:
        """The regions of the fields as they are, with their edges."""
        cells = self._of_areas()
        cells.check_finite(self._history, self.done, self._when)
        self.problem.check_finite(self.over_colour, cells.cells, _OVER_COLOUR)
        cells.warn_of_blind_rows()
        return delivered_masks(
            self.problem,
            self.fields,
            cells.params,
            self.problem.areas,
            self.settings.edge,
            # The masks of one field are nested, as unions of disks would not be.
            self.settings.radii if self.settings.shared < 1 else None,
        )

    def ranking(self) -> Masks:
        """The order in which the images' fields let pixels in."""
        return tuple(
            places(field(values)).unsqueeze(1)
            for field, values in zip(self.fields, self.images.params, strict=True)
        )

    # --- shared by all areas ---

    def _survey(self, step: int) -> None:
        """Sum up gradients at level sets of the start; in the end they join it."""
        views = []
        for copy in range(step * _COPIES, (step + 1) * _COPIES):
            part = (copy + self.unmoved.random()) / (self.survey * _COPIES)
            shifts = random_shifts(self.unmoved, self.settings.jitter)
            views.append(
                _Shown(
                    geometric(*_SURVEYED, part),
                    _SURVEY_SOFTNESS,
                    self.shown[copy % len(self.shown)],
                    Copy(self.mirrored if copy % 4 > 1 else False, shifts),
                )
            )
        self.seen_around = _sums([self.seen_around, *self._directions(views)])
        if step < self.survey - 1:
            return
        around = map(standardised, self._blurred(self.seen_around, _SURVEY_BLUR))
        pairs = zip(self.anchor, around, strict=True)
        self.anchor = [standardised(before + after) for before, after in pairs]
        self.images.params = list(self.anchor)

    def _explore(self, step: int, steps: int) -> None:
        """Move the images' fields for several areas, each seen in one copy."""
        part = step / max(1, steps - 1)
        first, last = self.settings.softness
        softness = geometric(first, min(first, _EXPLORED * last), part)
        smallest, largest = self._explored_areas(part)
        views: list[_Shown] = []
        for copy in self.random.sample(range(_COPIES), _COPIES):
            place = (copy + self.random.random()) / _COPIES
            area = geometric(smallest, largest, place)
            shifts = random_shifts(self.random, self._jitter(area))
            mirrors = part < MIRRORING and self.random.random() < 0.5
            views.append(
                _Shown(
                    area,
                    self._drawn(softness),
                    self.shown[(step + len(views)) % len(self.shown)],
                    Copy(self.mirrored if mirrors else False, shifts),
                )
            )
        coarse = _COARSE * max(0.0, 1 - part / _COARSE_UNTIL)
        coarse *= self.settings.first_area ** (1 / self._dims)
        directions = [
            [normalised(values) for values in self._blurred(one, coarse)]
            for one in self._directions(views)
        ]
        means = [values / len(views) for values in _sums(directions)]
        self.images.move(falling(self.settings.learning_rate, step, steps), means)
        pull = max(_ANCHOR_LAST, _ANCHOR * (1 - part / _ANCHOR_UNTIL))
        self.images.pull(self.anchor, pull)

    def _directions(self, views: Sequence[_Shown]) -> list[list[Tensor]]:
        """Where each of several views would move the images' fields."""
        rewards, directions = [], []
        for view in views:
            found, moves = self.images.directions(
                [view.area], view.softness, view.problem, view.copy
            )
            found = found.repeat_interleave(len(self.problem.areas))
            directions.append(moves)
            if view.problem is self.problem:
                rewards.append(found)
            else:
                self.over_colour = torch.where(
                    self.over_colour.isfinite(), found, self.over_colour
                )
        mean = torch.stack(rewards).mean(dim=0)
        self._history.write(self.done, slice(None), reward=mean)
        return directions

    def _explored_areas(self, part: float) -> tuple[float, float]:
        """The smallest and the largest: at first the largest alone."""
        # Whatever is asked for, so that no mask depends on the other areas.
        largest = max(self.settings.first_area, _SMALLEST)
        return geometric(largest, _SMALLEST, min(1.0, part / _SHRINKING)), largest

    def _jitter(self, area: float) -> float:
        """Shifts as wide as the mask would lose thin objects."""
        return min(self.settings.jitter, float(area ** (1 / self._dims)) / 3)

    @property
    def _dims(self) -> int:
        """Axes whose steps do not stand by themselves, at least."""
        return min(is_short(size).count(False) for size in self.problem.sizes)

    def _blurred(self, params: Sequence[Tensor], share: float) -> list[Tensor]:
        """Parameters blurred by this share of the length of each axis."""
        return [
            blurred(field, values, share)
            for field, values in zip(self.fields, params, strict=True)
        ]

    # --- of each area ---

    def _of_areas(self) -> Ascent:
        """The fields of all cells, which begin as those of their images."""
        if self._cells is None:
            number = len(self.problem.areas)
            self.branches = [
                values.repeat_interleave(number, dim=0) for values in self.images.params
            ]
            every = torch.arange(self.problem.num_cells, device=self.problem.device)
            self._cells = Ascent(self.problem, self.fields, self.branches, every)
            self._cells.seen |= self.images.seen.repeat_interleave(number)
        return self._cells

    def _refine(self, step: int, steps: int) -> None:
        """Move the fields of all cells, on the input as it is."""
        cells = self._of_areas()
        first, last = self.settings.softness
        part = step / max(1, steps - 1)
        softness = geometric(min(first, _BRANCHED * last), last, part)
        rewards, directions = cells.directions(
            self.problem.areas, self._drawn(softness), self._refined_on(step, steps)
        )
        self._history.write(self.done, slice(None), reward=rewards)
        rate = _REFINING * self.settings.learning_rate
        cells.move(falling(rate, step, steps), directions)
        cells.pull(self.branches, _HOLD)

    def _refined_on(self, step: int, steps: int) -> Problem:
        """Both backgrounds in turn, in the end the one that is asked for."""
        asked = step >= _ASKED_FROM * steps
        return self.problem if asked else self.shown[step % len(self.shown)]

    def _drawn(self, softness: float) -> float:
        return min(1.0, softness * math.exp(self.random.uniform(-SPREAD, SPREAD)))

    def _when(self, step: int) -> str:
        refined, steps = step - self.shared, self.settings.iterations - self.shared
        flat = refined >= 0 and self._refined_on(refined, steps) != self.problem
        return f" at iteration {step}{_OVER_COLOUR if flat else ''}"


class _Shown(NamedTuple):
    """What one gradient of a shared step is taken at."""

    area: float
    softness: float
    problem: Problem
    copy: Copy


def _finite_rows(values: Tensor) -> Tensor:
    """The same, with rows that are not finite as zeros: they say nothing."""
    finite = values.flatten(1).isfinite().all(dim=1)
    return torch.where(finite.view(-1, *[1] * (values.dim() - 1)), values, 0)


def _sums(several: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """The sums of parameters, tensor by tensor; of empty lists nothing."""
    given = [each for each in several if each]
    return [torch.stack(values).sum(dim=0) for values in zip(*given, strict=True)]
