"""A result and what made it -> how extremal its masks are, beside rivals.

By eq. 2 a mask is the best of its area, which cannot be proven, but challenged.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from captum_extremal._base.captum_door import as_tuple
from captum_extremal._base.checks import check_count, check_method
from captum_extremal.masks.area import area_count
from captum_extremal.masks.edges import binary, edge_widths, smooth_edges
from captum_extremal.masks.fields import Field, random_regions
from captum_extremal.results.extremal import ExtremalResult
from captum_extremal.sites.groups import Groups
from captum_extremal.solvers import SOLVERS, LevelSetSolver, Solver

_TOGETHER = 8  # random masks of each area that are scored in one go


@dataclass(frozen=True, eq=False)
class Extremality:
    """Rewards of masks beside the best that rivals of the same areas reach.

    Attributes:
        rewards: Of the masks in question, (N, A).
        rivals: For each rival its rewards, (N, A).

    Example:
        >>> rivals = {"random": torch.tensor([[1.0]])}
        >>> verdict = Extremality(torch.tensor([[3.0]]), rivals)
        >>> verdict.margin(), verdict.is_best()
        (tensor([[2.]]), tensor([[True]]))
    """

    rewards: Tensor
    rivals: dict[str, Tensor]

    def margin(self) -> Tensor:
        """How far the masks are above their best rival, (N, A); inf without one."""
        if not self.rivals:
            return torch.full_like(self.rewards, torch.inf)
        return self.rewards - torch.stack(list(self.rivals.values())).amax(dim=0)

    def is_best(self) -> Tensor:
        """Whether no rival scores higher, (N, A) bool."""
        return self.margin() >= 0


class Method(Protocol):
    """What `ExtremalResult.rejudge` needs of an `ExtremalPerturbation`."""

    solver: Solver

    def optimize(self, *args: Any, **kwargs: Any) -> ExtremalResult:  # noqa: ANN401
        """Inputs -> masks."""

    def evaluate(self, *args: Any, **kwargs: Any) -> Tensor:  # noqa: ANN401
        """Inputs and masks -> rewards."""


def rejudge(
    result: ExtremalResult,
    method: Method,
    inputs: Tensor | tuple[Tensor, ...],
    target: Any = None,  # noqa: ANN401
    additional_forward_args: object = None,
    *,
    solvers: Mapping[str, Solver] | None = None,
    random_masks: int = 64,
    perturbations_per_eval: int = 16,
    seed: int = 1,
    **arguments: Any,  # noqa: ANN401
) -> Extremality:
    """What rivals of the same areas are worth, see `ExtremalResult.rejudge`."""
    check_count("random_masks", random_masks, minimum=0)
    check_count("seed", seed, minimum=0)
    check_method("method", method, "evaluate")
    own = method.solver
    rival_solvers = _rivals_of(own) if solvers is None else solvers
    _check_rivals(rival_solvers)
    options = {
        "game": result.settings.get("game", "preservation"),
        "perturbations_per_eval": perturbations_per_eval,
        **arguments,
    }
    call = (target, additional_forward_args)
    rewards = method.evaluate(inputs, result.masks, *call, **options)
    rivals = {}
    for name, solver in rival_solvers.items():
        rival = copy.copy(method)
        if solver is not own:
            rival.solver = solver
        found = rival.optimize(
            inputs,
            target,
            result.areas,
            additional_forward_args,
            seed=seed,
            **options,
        )
        masks = _like(found.masks, result.masks)
        rivals[name] = method.evaluate(inputs, masks, *call, **options)
    if random_masks:
        generator = torch.Generator().manual_seed(seed % 2**63)
        groups = None
        if arguments.get("feature_mask") is not None:
            groups = Groups(as_tuple(arguments["feature_mask"]), as_tuple(inputs))
        best = []
        for start in range(0, random_masks, _TOGETHER):
            number = min(_TOGETHER, random_masks - start)
            if groups is None:
                masks = _like(_random(result, number, generator), result.masks)
            else:
                masks = _random_groups(result, groups, number, generator)
            drawn = method.evaluate(inputs, masks, *call, **options)
            best.append(drawn.unflatten(1, (number, -1)).amax(dim=1))
        rivals["random"] = torch.stack(best).amax(dim=0)
    return Extremality(rewards, rivals)


def _like(
    masks: Tensor | tuple[Tensor, ...], judged: Tensor | tuple[Tensor, ...]
) -> Tensor | tuple[Tensor, ...]:
    """Zeros and ones, where those are that are judged: more than a count would win."""
    if any(((mask > 0) & (mask < 1)).any() for mask in _tuple(judged)):
        return masks
    hard = tuple((mask >= 0.5).to(mask.dtype) for mask in _tuple(masks))
    return hard if isinstance(masks, tuple) else hard[0]


def _random(
    result: ExtremalResult, number: int, generator: torch.Generator
) -> Tensor | tuple[Tensor, ...]:
    """Random smooth masks of this result's areas, (N, number * A, 1, *S)."""
    found = []
    for mask in _tuple(result.masks):
        size = tuple(mask.shape[3:])
        noise = Field(size, None, mask.device)
        counts = [area_count(math.prod(size), area) for area in result.areas]
        regions = random_regions(noise, counts, number * len(mask), generator)
        widths = edge_widths(LevelSetSolver().edge, size)
        found.append(smooth_edges(regions, widths).unflatten(0, (len(mask), -1)))
    return tuple(found) if isinstance(result.masks, tuple) else found[0]


def _random_groups(
    result: ExtremalResult, groups: Groups, number: int, generator: torch.Generator
) -> Tensor | tuple[Tensor, ...]:
    """The same of random features."""
    size = (len(result.scores) * number * len(result.areas), 1, groups.count)
    values = torch.rand(size, generator=generator).to(groups.device)
    values = binary(values, result.areas)
    masks = groups.laid(values.unflatten(0, (len(result.scores), -1)))
    return masks if isinstance(result.masks, tuple) else masks[0]


def _tuple(masks: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return masks if isinstance(masks, tuple) else (masks,)


def _rivals_of(solver: Solver) -> dict[str, Solver]:
    """Its own kind with another seed, or the default; and one without gradients."""
    own = "again" if getattr(solver, "uses_seed", True) else "level set"
    rivals = {own: solver if own == "again" else SOLVERS["level-set"]()}
    # Where the solver needs no gradients, the model may have none.
    if getattr(solver, "needs_gradient", True):
        rivals["search"] = SOLVERS["search"]()
    return rivals


def _check_rivals(solvers: Mapping[str, Solver]) -> None:
    if not isinstance(solvers, Mapping):
        raise TypeError(
            f"solvers must be a dict of solvers by name, got {type(solvers).__name__}"
        )
    for name, solver in solvers.items():
        if isinstance(solver, type):
            raise TypeError(f"solvers[{name!r}] must be a solver, got a class")
        check_method(f"solvers[{name!r}]", solver, "solve")
        if name == "random":
            raise ValueError("solvers must not be named random, which is taken")
