"""`MaskAttribution`: what the methods share that look for masks, on whatever site."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeVar

from captum.attr import PerturbationAttribution
from torch import Tensor

from captum_extremal._base import checks
from captum_extremal._base.captum_door import Target, check_target
from captum_extremal._base.model import Watch, check_differentiable
from captum_extremal.attribution.on_model import OnModel
from captum_extremal.attribution.running import Found, reward_of_rows, run, settings_of
from captum_extremal.sites.site import Site
from captum_extremal.solvers import LevelSetSolver, Problem, Solver, SwapSolver
from captum_extremal.solvers.rewards import GAMES, Game, Reward, simple_reward

DEFAULT_AREAS = (0.05, 0.1, 0.2)
ANY = (0.5,)  # an area where none matters
# Of the nested masks of a ranking, where none are asked for.
RANKED_AREAS = (
    *(0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.13, 0.16, 0.2, 0.25),
    *(0.3, 0.35, 0.4, 0.45, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0),
)


SiteT = TypeVar("SiteT", bound=Site)


@dataclass(frozen=True, eq=False)
class Asked:
    """What is asked of a model, whatever the masks are laid on.

    Raises:
        ValueError: If the game is unknown or there is not one input an evaluation.
        TypeError: If a count is none.
    """

    target: Target
    additional_forward_args: object
    game: Game
    perturbations_per_eval: int

    def __post_init__(self) -> None:
        checks.check_choice("game", self.game, tuple(GAMES))
        batch = checks.check_count(
            "perturbations_per_eval", self.perturbations_per_eval
        )
        object.__setattr__(self, "perturbations_per_eval", batch)


def any_areas(masks: tuple[Tensor, ...]) -> tuple[float, ...]:
    """As many areas as masks have: any will do where rewards alone are asked for."""
    for mask in masks:
        checks.check_floating("masks", mask)
    count = masks[0].shape[1] if masks and masks[0].dim() > 1 else 1
    return (1.0,) * max(1, count)


def _ranking(solver: Solver, site: Site) -> Solver:
    """The solver as one that puts all places in an order, if it is one."""
    make = getattr(solver, "for_ranking", None)
    if make is None or site.spread is not None:
        raise ValueError(
            "areas must be given where nothing ranks all places, got None for "
            + (type(solver).__name__ if make is None else "groups of features")
        )
    ranker: Solver = make()
    return ranker


class MaskAttribution(OnModel, PerturbationAttribution):
    """What methods share that look for masks: the model, the solver, the reward.

    Args:
        forward_func: The model, or any function of its inputs.
        solver: How masks are searched; None for the default of what they are laid on.
        reward: What is to be maximised; None for the target's score.

    Raises:
        TypeError: If an argument is of a kind that cannot work.
    """

    usual_solver: ClassVar[type[LevelSetSolver | SwapSolver]] = LevelSetSolver

    def __init__(
        self,
        forward_func: Callable[..., Tensor],
        solver: Solver | None,
        reward: Reward | None,
    ) -> None:
        checks.check_callable("forward_func", forward_func)
        PerturbationAttribution.__init__(self, forward_func)
        self._solver = solver
        self.reward = simple_reward if reward is None else reward
        checks.check_callable("reward", self.reward)
        checks.check_method("solver", self.solver, "solve")

    @property
    def solver(self) -> Solver:
        """How masks are searched."""
        return self.usual_solver() if self._solver is None else self._solver

    @solver.setter
    def solver(self, solver: Solver) -> None:
        self._solver = solver

    @contextmanager
    def _problem(
        self,
        tensors: tuple[Tensor, ...],
        asked: Asked,
        areas: Sequence[int | float],
        lay: Callable[[Watch], AbstractContextManager[SiteT]],
    ) -> Iterator[tuple[Problem, SiteT, Watch]]:
        """What is asked as a problem, while the model is left as found."""
        num_examples, device = len(tensors[0]), tensors[0].device
        check_target(asked.target, num_examples)
        check_differentiable(self.forward_func)
        with self._model_as_found(device) as watch, lay(watch) as site:
            reward = reward_of_rows(
                self.forward_func,
                self.reward,
                asked.target,
                asked.additional_forward_args,
                num_examples,
                device,
            )

            def score(perturbed: tuple[Tensor, ...], images: Tensor) -> Tensor:
                return reward(site.inputs(perturbed, images), images)

            problem = Problem(
                score,
                site.levels,
                site.fractions(areas),
                asked.game,
                asked.perturbations_per_eval,
                site.spread,
            )
            yield problem, site, watch

    def _run(
        self,
        problem: Problem,
        site: Site,
        watch: Watch,
        seed: int,
        show_progress: bool,
        ranks: bool = False,
        **about: Any,  # noqa: ANN401
    ) -> Found:
        """The masks of a problem in the form that a result holds, judged."""
        solver = site.solver if self._solver is None else self._solver
        if ranks:
            solver = _ranking(solver, site)
        found = run(problem, solver, seed, show_progress, self.get_name(), watch)
        settings = settings_of(
            self.get_name(),
            **about,
            game=problem.game,
            seed=seed,
            solver=solver,
            reward=self.reward,
            ended=found.ended,
        )
        masks = site.laid(found.masks)
        return replace(found, masks=masks, areas=problem.areas, settings=settings)
