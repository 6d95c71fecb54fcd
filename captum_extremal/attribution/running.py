"""A problem and a solver -> masks, scores and how they were found.

The methods turn their arguments into a `Problem`; from there the way is the same,
whatever the masks are laid on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from typing import Any, TypeVar

import torch
from torch import Tensor

from captum_extremal._base import checks
from captum_extremal._base.captum_door import (
    Target,
    forward_of_rows,
    one_score_each,
    progress_bar,
)
from captum_extremal._base.causes import may_be_of_the_batch
from captum_extremal._base.model import (
    Watch,
)
from captum_extremal.masks.area import area_count
from captum_extremal.results.stability import Stability
from captum_extremal.solvers import (
    Problem,
    Solution,
    Solver,
)
from captum_extremal.solvers.problem import Ended, Masks
from captum_extremal.solvers.rewards import Reward


class SearchInterrupted(KeyboardInterrupt):
    """Ctrl-C ended a search: a KeyboardInterrupt that keeps what was found.

    It stops a loop or a script as any other. Whoever catches it, or looks at
    ``sys.last_value`` in a notebook, has the masks; a second Ctrl-C does not wait.

    Args:
        result: The best masks found until then, at exactly the asked areas: what
            ``optimize`` would have returned.

    Example:
        >>> try:
        ...     raise SearchInterrupted(None)  # what optimize does at Ctrl-C
        ... except KeyboardInterrupt as interrupt:
        ...     print(interrupt.result)
        None
    """

    def __init__(self, result: Any) -> None:  # noqa: ANN401
        super().__init__("the search was interrupted; its masks are in .result")
        self.result = result


def reward_of_rows(
    forward_func: Callable[..., Tensor],
    reward: Reward,
    target: Target,
    additional_forward_args: object,
    num_examples: int,
    device: torch.device,
) -> Callable[[tuple[Tensor, ...], Tensor], Tensor]:
    """Perturbed inputs and the image of each -> the reward of the output."""
    forward = forward_of_rows(
        forward_func, target, additional_forward_args, num_examples, device
    )

    def score(inputs: tuple[Tensor, ...], images: Tensor) -> Tensor:
        outputs, chosen = forward(inputs, images)
        return one_score_each(reward(outputs, chosen), len(images))

    return score


R = TypeVar("R")


@dataclass(frozen=True, eq=False)
class Found:
    """Masks of N images and A areas, and their scores.

    Attributes:
        masks: For each tensor of the input (N, A, 1, *S).
        scores: Of what the masks keep, of what they leave out, of the untouched and of
            the fully perturbed inputs: (N, A), (N, A), (N,), (N,).
        history: Named series of the search, each (N, A, T).
        ended: What ended the search.
        ranking: For each tensor (N, 1, *S), see `Solution`; None where there is none.
        stability: How far the runs agree, where there are several.
        areas: The areas, as asked for.
        settings: What the run was asked to do; JSON-serialisable.
    """

    masks: tuple[Tensor, ...]
    scores: dict[str, Tensor]
    history: dict[str, Tensor]
    ended: Ended
    ranking: tuple[Tensor, ...] | None = None
    stability: Stability | None = None
    areas: tuple[int | float, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)

    def result(self, kind: Callable[..., R], one: bool, **more: Any) -> R:  # noqa: ANN401
        """The result of a kind: with the mask itself where there is but ``one``."""
        return kind(
            masks=self.masks[0] if one else self.masks,
            **{"areas": self.areas, "history": self.history, **more},
            **self.scores,
            settings=self.settings,
            stability=self.stability,
        )

    def of_images(self, ranks: bool) -> tuple[Tensor, ...]:
        """The ranking, or the mean of the masks over the areas: (N, 1, *S) each."""
        if not ranks:
            return tuple(mask.mean(dim=1) for mask in self.masks)
        assert self.ranking is not None
        return self.ranking


def run(
    problem: Problem,
    solver: Solver,
    seed: int,
    show_progress: bool,
    name: str,
    watch: Watch,
) -> Found:
    """Search for the masks of a problem and judge them."""
    input_score, perturbed_score = _ends(problem, watch)
    bar = progress_bar(show_progress, name, getattr(solver, "total_steps", None))
    try:
        solution = solver.solve(problem, seed, bar.update)
    finally:
        bar.close()
    solution = replace(solution, masks=_checked(problem, solver, solution.masks))
    scores, complement_scores = _judge(problem, solution)
    shape = (problem.num_images, len(problem.areas))
    return Found(
        tuple(mask.unflatten(0, shape) for mask in solution.masks),
        {
            "scores": scores.unflatten(0, shape),
            "complement_scores": complement_scores.unflatten(0, shape),
            "input_score": input_score,
            "perturbed_score": perturbed_score,
        },
        {
            name: series.T.unflatten(0, shape)
            for name, series in solution.history.items()
        },
        solution.ended,
        solution.ranking if problem.spread is None else None,
        _stability(problem, solver, solution.runs, input_score),
    )


def _stability(
    problem: Problem, solver: Solver, runs: tuple[Masks, ...], input_score: Tensor
) -> Stability | None:
    """How far the runs of a solver agree, if it made some."""
    if not runs:
        return None
    shape = (problem.num_images, len(problem.areas))
    images = problem.images_of(torch.arange(problem.num_cells, device=problem.device))
    several, scores = [], []
    for masks in (_checked(problem, solver, masks) for masks in runs):
        several.append(tuple(mask.unflatten(0, shape) for mask in masks))
        scores.append(problem.scores(masks, images).unflatten(0, shape))
    return Stability.of(several, problem.areas, torch.stack(scores), input_score)


def _checked(problem: Problem, solver: Solver, masks: Masks) -> Masks:
    """A solver's masks, if they are some; groups of features as a whole."""
    name = f"the masks of {type(solver).__name__}"
    if not isinstance(masks, tuple) or len(masks) != len(problem.sizes):
        raise TypeError(f"{name} must be a tuple of {len(problem.sizes)} tensors")
    for mask, size in zip(masks, problem.sizes, strict=True):
        checks.check_floating(name, mask)
        checks.check_shape(name, mask, "K 1 *S", K=problem.num_cells, S=size)
        if not ((mask >= 0) & (mask <= 1)).all():
            raise ValueError(f"{name} must lie in [0, 1], got other values")
        kept = (mask >= 0.5).flatten(1).sum(dim=1).tolist()
        asked = [area_count(mask[0].numel(), area) for area in problem.areas]
        for cell, count in enumerate(kept):
            if count != (wanted := asked[cell % len(asked)]):
                raise ValueError(
                    f"{name} must hold {wanted} values at or above 0.5 for "
                    f"{problem.name_of(cell)}, got {count}; "
                    "captum_extremal.masks.area.match_area cuts any mask to its area"
                )
    if problem.spread is None:
        return masks
    return tuple((mask >= 0.5).to(mask.dtype) for mask in masks)


def rewards_of(problem: Problem, masks: tuple[Tensor, ...], watch: Watch) -> Tensor:
    """What masks of any origin, each tensor (N, A, 1, *S), are worth: (N, A)."""
    flat = tuple(
        mask.detach()
        .to(problem.device, torch.promote_types(mask.dtype, torch.float32))
        .flatten(0, 1)
        for mask in masks
    )
    cells = torch.arange(problem.num_cells, device=problem.device)
    with watch.forwards():
        rewards = problem.rewards(flat, cells)
    watch.warn(rewards[:1], lambda: problem.rewards(flat, cells)[:1])
    if not rewards.isfinite().all():
        raise RuntimeError("forward_func must give finite scores, got NaN or inf")
    return rewards.reshape(problem.num_images, len(problem.areas))


def settings_of(name: str, **settings: Any) -> dict[str, Any]:  # noqa: ANN401
    """What a run was asked to do, in a form that JSON can hold."""
    about = {"method": name, "version": version("captum_extremal")}
    return about | {
        key: value
        if isinstance(value, (int, str))
        else getattr(value, "__name__", repr(value))
        for key, value in settings.items()
    }


def _ends(problem: Problem, watch: Watch) -> tuple[Tensor, Tensor]:
    """Scores (N,) of the untouched and of the fully perturbed inputs, both finite.

    The first input stands among the perturbed ones once more, for its score must be
    the same in every company.
    """
    images = torch.arange(problem.num_images, device=problem.device)
    kept = torch.ones(len(images), dtype=torch.float32, device=problem.device)
    with watch.forwards():
        untouched = _scores_under(problem, kept, images)
        _check_finite(untouched, "untouched")
        together, perturbed = None, None
        if problem.perturbations_per_eval > 1:
            company = torch.cat([kept[:1], 0 * kept])
            try:
                together = _scores_under(
                    problem, company, torch.cat([images[:1], images])
                )
                perturbed = together[1:]
            except Exception as error:
                # A model may take no other number of rows.
                if not may_be_of_the_batch(error):
                    raise
        if perturbed is None:
            perturbed = _scores_under(problem, 0 * kept, images)
    _check_finite(perturbed, "fully perturbed")
    watch.warn(
        untouched[:1], lambda: _scores_under(problem, kept[:1], images[:1]), together
    )
    return untouched, perturbed


def _scores_under(problem: Problem, values: Tensor, images: Tensor) -> Tensor:
    """Scores (M,) of images under masks that are constant."""
    masks = tuple(
        values.reshape(-1, *[1] * (len(size) + 1)).expand(-1, 1, *size)
        for size in problem.sizes
    )
    return problem.scores(masks, images)


def _check_finite(scores: Tensor, name: str) -> None:
    if not scores.isfinite().all():
        raise ValueError(
            f"forward_func must give finite scores, got {scores.tolist()} for the "
            f"{name} inputs"
        )


def _judge(problem: Problem, solution: Solution) -> tuple[Tensor, Tensor]:
    """Scores (K,) of what the delivered masks keep and of what they leave out."""
    images = problem.images_of(torch.arange(problem.num_cells, device=problem.device))
    scores = (
        problem.scores(solution.masks, images),
        problem.scores(solution.masks, images, complement=True),
    )
    if not all(score.isfinite().all() for score in scores):
        raise RuntimeError(
            "forward_func must give finite scores, got NaN or infinity for the masks "
            "that were found or their complements"
        )
    return scores
