"""Running a solver on a caller's model: what the attribution methods share.

They turn their arguments into a `Problem`; from there to masks and scores the way is
the same, whatever the masks are laid on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

from captum_extremal._captum import Target, forward_of_rows, progress_bar
from captum_extremal.rewards import Reward
from captum_extremal.solvers import Problem, Solution, Solver
from captum_extremal.solvers.anytime import Ended


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
        return _one_score_each(reward(outputs, chosen), len(images))

    return score


def _one_score_each(rewards: Tensor, count: int) -> Tensor:
    if not isinstance(rewards, Tensor) or rewards.numel() != count:
        shape = tuple(rewards.shape) if isinstance(rewards, Tensor) else type(rewards)
        raise ValueError(
            "forward_func, target and reward must give one score per example: expected "
            f"shape ({count},), got {shape}. Name one output with target, or reduce "
            "the output in a reward function"
        )
    return rewards.reshape(count).float()


@dataclass(frozen=True, eq=False)
class Found:
    """Masks of N images and A areas, and their scores.

    Attributes:
        masks: For each tensor of the input (N, A, 1, *S).
        scores: Of what the masks keep, of what they leave out, of the untouched and of
            the fully perturbed inputs: (N, A), (N, A), (N,), (N,).
        history: Named series of the search, each (N, A, T).
        ended: What ended the search.
    """

    masks: tuple[Tensor, ...]
    scores: dict[str, Tensor]
    history: dict[str, Tensor]
    ended: Ended


def run(
    problem: Problem, solver: Solver, seed: int, show_progress: bool, name: str
) -> Found:
    """Search for the masks of a problem and judge them."""
    input_score = _score_of(problem, 1.0, "untouched")
    perturbed_score = _score_of(problem, 0.0, "fully perturbed")
    bar = progress_bar(show_progress, name, getattr(solver, "total_steps", None))
    try:
        solution = solver.solve(problem, seed, bar.update)
    finally:
        bar.close()
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
    )


def rewards_of(problem: Problem, masks: tuple[Tensor, ...]) -> Tensor:
    """What masks of any origin, each tensor (N, A, 1, *S), are worth: (N, A)."""
    flat = tuple(
        mask.detach().to(problem.device, torch.float32).flatten(0, 1) for mask in masks
    )
    cells = torch.arange(problem.num_cells, device=problem.device)
    rewards = problem.rewards(flat, cells)
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


def _score_of(problem: Problem, mask_value: float, name: str) -> Tensor:
    """Scores of the inputs under a constant mask, (N,); these must be finite."""
    images = torch.arange(problem.num_images, device=problem.device)
    masks = tuple(
        torch.full(
            (problem.num_images, 1, *size),
            mask_value,
            dtype=torch.float32,
            device=problem.device,
        )
        for size in problem.sizes
    )
    scores = problem.scores(masks, images)
    if not scores.isfinite().all():
        raise ValueError(
            f"forward_func must give finite scores, got {scores.tolist()} for the "
            f"{name} inputs"
        )
    return scores


def _judge(problem: Problem, solution: Solution) -> tuple[Tensor, Tensor]:
    """Scores (K,) of what the delivered masks keep and of what they leave out."""
    images = problem.images_of(torch.arange(problem.num_cells, device=problem.device))
    complement = tuple(1 - mask for mask in solution.masks)
    scores = problem.scores(solution.masks, images), problem.scores(complement, images)
    if not all(score.isfinite().all() for score in scores):
        raise RuntimeError(
            "forward_func must give finite scores, got NaN or infinity for the masks "
            "that were found or their complements"
        )
    return scores
