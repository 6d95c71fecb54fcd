"""`GradientSolver`: the paper's descent on the parameters of a smooth mask (eq. 4).

Each step turns the parameters of all unfinished cells into masks, asks the problem
for the rewards and their gradients with respect to the masks, adds the area loss and
moves the parameters by SGD with momentum, kept in [0, 1]:

    maximise  reward(m) - area_weight(t) * R_a(m),   m = MaskGenerator(parameters)

Where the axes are not alike (`scales`), the mask of a step that stands by itself,
a lead or a slice, is generated on its own, and that of an axis which is long for the
number of its parts on fewer pixels, then enlarged.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from captum_extremal._base.axes import scales
from captum_extremal._base.checks import (
    check_callable,
    check_choice,
    check_count,
    check_non_negative,
    check_positive,
)
from captum_extremal.masks.area import match_area
from captum_extremal.masks.fields import Field
from captum_extremal.masks.lattice import LINEAR
from captum_extremal.masks.max_convolution import MaskGenerator, Profile, default_step
from captum_extremal.solvers.area_loss import AreaWeight, area_loss
from captum_extremal.solvers.driver import History, StepwiseSolver
from captum_extremal.solvers.problem import Masks, Problem, check_gradients
from captum_extremal.solvers.start import MIRRORING, start
from captum_extremal.solvers.views import Copy, random_shifts

_LARGEST_WEIGHT = 1e30  # of scores that hardly change; float32 ends soon beyond it


@dataclass(frozen=True)
class GradientSolver(StepwiseSolver):
    """Gradient descent from the mask that keeps everything, as in the paper.

    A cell finishes early when no parameter of its masks has moved by more than
    ``tolerance`` over the last ``patience`` iterations; this is checked every
    ``patience`` iterations, and a finished cell takes no further part. The masks
    returned are those of the last parameters, mapped to the exact area by
    `match_area`.

    Args:
        iterations: Steps at most.
        learning_rate: Of SGD.
        momentum: Of SGD.
        dampening: Of SGD's momentum.
        area_weight: The factor lambda of the area loss, at every iteration.
        score_weight: What a reward counts: it is divided by what it changes by in all
            where each part of a uniform mask changes (the sum of the absolute values of
            its smoothed gradients, as `LevelSetSolver` starts from) and multiplied by
            this. So the balance with the area loss does not depend on the unit of the
            score, a logit or a probability. None takes rewards as they are, as
            published.
        mask_step: Distance of the parameters in pixels; None scales with the input.
        mask_sigma: Radius of the mask's kernel in pixels; None for three steps. Where
            one of the two is given, all axes are taken as alike.
        temperature: Of the smooth maximum (1 / T = 20 in the paper).
        profile: Radial profile of the kernel, by name or as a function.
        area_scope: Measure the area loss on the visible ``"image"``, or on the
            ``"canvas"`` that reaches one ``mask_sigma`` beyond it. Where the model
            has no say, the first pulls masks to the border, whose parameters cover
            fewer visible pixels, the second to the centre.
        mirror: Show the model the mirrored image on every even iteration, counted
            from 0; for inputs with two spatial dimensions only. It steadies the
            masks of photographs; of a model that tells left from right it shows both.
            None for the images whose start says that the model looks at the same places
            in the mirror, as in `LevelSetSolver`, and in the first half of the run.
        jitter: Shift the perturbed input by up to this fraction of each side, at
            random at every iteration, wrapping around; the same for all cells. For
            pictures and volumes whose axes are alike.
        tolerance: See above; 0 never finishes early.
        patience: See above.
        time_limit: Seconds after which the descent ends early; None for no limit. A
            run that ends early, also by Ctrl-C, delivers the masks that it has then.

    Raises:
        TypeError: If a setting is of the wrong type.
        ValueError: If a setting is out of range.

    Example:
        >>> from captum_extremal import ExtremalPerturbation
        >>> solver = GradientSolver(iterations=20, mirror=False)
        >>> method = ExtremalPerturbation(lambda x: x.mean((1, 2, 3)), solver=solver)
        >>> result = method.optimize(torch.rand(1, 1, 16, 16), areas=0.25)
        >>> result.history["reward"].shape
        torch.Size([1, 1, 20])
    """

    uses_seed = False

    iterations: int = 200
    learning_rate: float = 0.04
    momentum: float = 0.9
    dampening: float = 0.9
    area_weight: AreaWeight = field(default_factory=AreaWeight)
    score_weight: float | None = 100.0
    mask_step: int | None = None
    mask_sigma: float | None = None
    temperature: float = 0.05
    profile: Profile = "smooth"
    area_scope: Literal["image", "canvas"] = "image"
    mirror: bool | None = None
    jitter: float = 0.0
    tolerance: float = 1e-3
    patience: int = 25
    time_limit: float | None = None

    def __post_init__(self) -> None:
        check_count("iterations", self.iterations)
        check_count("patience", self.patience)
        check_positive("learning_rate", self.learning_rate)
        for name in ("momentum", "dampening", "tolerance", "jitter"):
            check_non_negative(name, getattr(self, name))
        if self.jitter > 0.5:
            raise ValueError(f"jitter must lie in [0, 0.5], got {self.jitter}")
        for name in ("time_limit", "score_weight"):
            if getattr(self, name) is not None:
                check_positive(name, getattr(self, name))
        if self.mirror is not None and not isinstance(self.mirror, bool):
            raise TypeError(f"mirror must be True, False or None, got {self.mirror!r}")
        check_choice("area_scope", self.area_scope, ("image", "canvas"))
        check_callable("area_weight", self.area_weight)
        # The mask's settings are checked by the generator of a smallest input.
        self.generator((1,))

    def start(self, problem: Problem, seed: int) -> _Descent:
        """Begin: parameters that keep everything."""
        return _Descent(self, problem, seed)

    def generator(self, size: Sequence[int], narrow: bool = False) -> MaskGenerator:
        """The mask generator that these settings ask for at an input size.

        Args:
            size: Spatial size.
            narrow: Whether disks are to be smaller than by default, two steps instead
                of three: for bands, narrower than what is sought in pictures.
        """
        sigma = self.mask_sigma
        if narrow and sigma is None:
            sigma = 2.0 * default_step(size)
        return MaskGenerator(
            size,
            self.mask_step,
            sigma,
            self.temperature,
            self.profile,
            margin=0 if self.area_scope == "image" else None,
        )


class _Generator:
    """Parameters (K, F, *points) -> masks (K, 1, *size), F of which are independent.

    Args:
        settings: Those of the solver.
        size: Spatial size of the input.
        device: Where the masks are made.
    """

    def __init__(
        self, settings: GradientSolver, size: Sequence[int], device: torch.device
    ) -> None:
        given = settings.mask_step is not None or settings.mask_sigma is not None
        lengths = [1.0] * len(size) if given else scales(size)
        alone = [axis for axis, length in enumerate(lengths) if length == 0]
        rest = [axis for axis in range(len(size)) if axis not in alone]
        self.alone = [size[axis] for axis in alone]
        self.rest = [size[axis] for axis in rest]
        shortest = min(length for length in lengths if length)
        self.grid = [
            max(1, round(size[axis] * shortest / lengths[axis])) for axis in rest
        ]
        self.masks = settings.generator(self.grid, self.grid != self.rest).to(device)
        self.params_size = (math.prod(self.alone), *self.masks.params_size)
        order = [*alone, *rest]
        self.order = [0, 1, *(order.index(axis) + 2 for axis in range(len(size)))]

    def __call__(self, params: Tensor) -> tuple[Tensor, Tensor]:
        """The masks, and the values on the canvas that the area may be measured on."""
        canvas = self.masks(params.flatten(0, 1).unsqueeze(1))
        fine = self.masks.crop(canvas)
        if self.grid != self.rest:
            fine = F.interpolate(fine, self.rest, mode=LINEAR[len(self.rest)])
        full = fine.reshape(len(params), 1, *self.alone, *self.rest)
        return full.permute(self.order), canvas.unflatten(0, params.shape[:2])


class _Descent:
    """One run: parameters, momentum, and what each iteration wrote down."""

    def __init__(self, settings: GradientSolver, problem: Problem, seed: int) -> None:
        self.settings = settings
        self.problem = problem
        self.generators = [
            _Generator(settings, size, problem.device) for size in problem.sizes
        ]
        self.params = [
            torch.ones(
                (problem.num_cells, *g.params_size),
                dtype=torch.float32,
                device=problem.device,
            )
            for g in self.generators
        ]
        self.mirrored: bool | list[Tensor] = False
        self.weights = torch.ones(problem.num_cells, device=problem.device)
        self.optimizer = torch.optim.SGD(
            self.params,
            lr=settings.learning_rate,
            momentum=settings.momentum,
            dampening=settings.dampening,
        )
        self.random = random.Random(seed)
        self.areas = problem.cell_areas
        self.active = torch.arange(problem.num_cells, device=problem.device)
        self.last_check = [params.clone() for params in self.params]
        self.done = 0
        self._history = History(settings.iterations, problem)
        self._start()

    @property
    def history(self) -> dict[str, Tensor]:
        """The rewards, area losses and areas of each step."""
        return self._history.series

    def step(self) -> int:
        """Move the parameters of the active cells; some retire at times."""
        last = self.done == self.settings.iterations
        if self.done and (last or self.done % self.settings.patience == 0):
            self._check_finite()
            self._retire_still_cells()
        if last or not len(self.active):
            return 0
        self._step(self.done)
        self.done += 1
        return 1

    def masks(self) -> Masks:
        """Those of the last parameters, mapped to the exact area."""
        self._check_finite()
        return tuple(
            match_area(generator(params)[0], self.areas)
            for generator, params in zip(self.generators, self.params, strict=True)
        )

    def _step(self, iteration: int) -> None:
        """One ascent of ``reward - area_weight * area_loss`` for the active cells."""
        cells = self.active
        params = [p[cells].requires_grad_() for p in self.params]
        with torch.enable_grad():
            made = [g(p) for g, p in zip(self.generators, params, strict=True)]
            masks = [mask for mask, _ in made]
            scope = [
                mask if self.settings.area_scope == "image" else canvas
                for mask, canvas in made
            ]
            losses = [area_loss(mask, self.areas[cells]) for mask in scope]
            area_losses = torch.stack(losses).sum(dim=0)
        shown = tuple(mask.detach() for mask in masks)
        shifts = random_shifts(self.random, self.settings.jitter)
        view = Copy(self._mirrors(iteration) and self.mirrored, shifts)
        rewards, reward_gradients = self.problem.gradients(shown, cells, view)
        weight = self.settings.area_weight(iteration, self.settings.iterations)
        directions = torch.autograd.grad(
            [*masks, area_losses],
            params,
            [
                *(self._weighted(g, cells) for g in reward_gradients),
                torch.full_like(area_losses, -weight),
            ],
        )
        self._ascend(cells, directions)
        self._record(iteration, cells, rewards, area_losses.detach(), shown)

    def _start(self) -> None:
        """See which images are shown mirrored, and what their scores count."""
        weight, mirror = self.settings.score_weight, self.settings.mirror
        self.mirrored = bool(mirror)
        if weight is None and mirror is not None:
            return
        fields = [Field(size, None, self.problem.device) for size in self.problem.sizes]
        begin = start(self.problem, fields, None if mirror is None else False)
        if mirror is None:
            self.mirrored = begin.mirrored
        if weight is not None:
            changes = [
                gradient.abs().flatten(1).sum(dim=1) / field.overlap
                for gradient, field in zip(begin.gradients, fields, strict=True)
            ]
            moved = torch.stack(changes).sum(dim=0)
            weights = torch.where(moved > 0, weight / moved, torch.ones_like(moved))
            weights = weights.clamp(max=_LARGEST_WEIGHT)
            self.weights = weights.repeat_interleave(len(self.problem.areas))

    def _mirrors(self, iteration: int) -> bool:
        part = 1.0 if self.settings.mirror else MIRRORING
        return iteration % 2 == 0 and iteration < part * self.settings.iterations

    def _weighted(self, gradient: Tensor, cells: Tensor) -> Tensor:
        return gradient * self.weights[cells].view(-1, *[1] * (gradient.dim() - 1))

    def _ascend(self, cells: Tensor, directions: Sequence[Tensor]) -> None:
        for params, direction in zip(self.params, directions, strict=True):
            params.grad = torch.zeros_like(params).index_copy_(0, cells, -direction)
        self.optimizer.step()
        for params in self.params:
            params.clamp_(0, 1)
            params.grad = None

    def _record(
        self,
        iteration: int,
        cells: Tensor,
        rewards: Tensor,
        area_losses: Tensor,
        masks: Masks,
    ) -> None:
        areas = [(mask >= 0.5).flatten(1).float().mean(dim=1) for mask in masks]
        self._history.write(
            iteration,
            cells,
            reward=rewards,
            area_loss=area_losses,
            area=torch.stack(areas).mean(dim=0),
        )

    def _check_finite(self) -> None:
        """Stop at the first NaN or infinite reward or gradient since the last check."""
        first = max(0, self.done - self.settings.patience)
        rewards = self.history["reward"][first : self.done, self.active]
        self.problem.check_finite(
            rewards, self.active, lambda step: f" at iteration {first + step}"
        )
        check_gradients(self.params, f"within iterations {first} to {self.done - 1}")

    def _retire_still_cells(self) -> None:
        """Cells whose parameters have stayed where they were take no further part."""
        moved = [
            (now - before)[self.active].abs().flatten(1).amax(dim=1)
            for now, before in zip(self.params, self.last_check, strict=True)
        ]
        still = torch.stack(moved).amax(dim=0) < self.settings.tolerance
        retired, self.active = self.active[still], self.active[~still]
        for params in self.params:
            momentum = self.optimizer.state[params].get("momentum_buffer")
            if momentum is not None:
                momentum[retired] = 0
        self.last_check = [params.clone() for params in self.params]
