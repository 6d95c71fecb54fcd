"""`ExtremalPerturbation`: model and inputs -> the smallest regions a model needs.

The way of the data: inputs (N, C, *S) -> perturbation levels -> a `Problem` of
N * A masks -> the solver's masks -> `ExtremalResult` (`optimize`) -> one attribution
of the shape of the inputs (`attribute`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, NoReturn

import torch
from captum.attr import PerturbationAttribution
from captum.log import log_usage
from torch import Tensor

from captum_extremal._attribution import (
    SearchInterrupted,
    reward_of_rows,
    rewards_of,
    run,
    settings_of,
)
from captum_extremal._base import checks
from captum_extremal._base.captum_door import (
    Target,
    as_tuple,
    check_target,
    like_inputs,
)
from captum_extremal._base.model import Watch, as_found, check_differentiable
from captum_extremal.perturbations.levels import (
    BlurPerturbation,
    FadePerturbation,
    Perturbation,
    levels_apart,
)
from captum_extremal.results.extremal import ExtremalResult
from captum_extremal.solvers import LevelSetSolver, Problem, Solver
from captum_extremal.solvers.rewards import GAMES, Game, Reward, simple_reward

PERTURBATIONS: dict[str, type[BlurPerturbation] | type[FadePerturbation]] = {
    "blur": BlurPerturbation,
    "fade": FadePerturbation,
}
DEFAULT_AREAS = (0.05, 0.1, 0.2)


class ExtremalPerturbation(PerturbationAttribution):
    r"""The mask of a given area that keeps the model's score highest.

    For each area :math:`a` it looks for

    .. math:: m_a = \operatorname{argmax}_{m \in M, |m| = a} \Phi(m \otimes x)

    (eq. 2), where :math:`m \otimes x` is the input with everything outside the mask
    perturbed, and M a family of smooth masks: level sets of smooth fields for the
    default `LevelSetSolver`, unions of disks for `SearchSolver`, which needs no
    gradients, those of `MaskGenerator` for the paper's `GradientSolver`.
    Convention: mask 1 = kept, 0 = fully perturbed; an area is a fraction of the pixels
    of the input.

    Args:
        forward_func: The model, or any function of its inputs, as everywhere in
            Captum. It is neither moved nor put in evaluation mode.
        perturbation: ``"blur"`` (Gaussian, default), ``"fade"`` (to black, 0), or an
            object such as `BlurPerturbation` with a ``levels`` method.
        solver: How masks are searched; None for `LevelSetSolver` with its defaults.
        reward: What is to be maximised of the model's output: ``(outputs, target) ->
            (K,)``; None for the target's score.

    Raises:
        ValueError: If ``perturbation`` is an unknown name.
        TypeError: If an argument is of a kind that cannot work.

    Example:
        >>> import torch
        >>> from captum_extremal import ExtremalPerturbation
        >>> def top_left(x):  # a model that looks at one corner
        ...     return x[:, :, :8, :8].mean(dim=(1, 2, 3))
        >>> x = torch.ones(1, 3, 32, 32)
        >>> method = ExtremalPerturbation(top_left, perturbation="fade")
        >>> attribution = method.attribute(x, areas=[1 / 16])
        >>> attribution.shape
        torch.Size([1, 3, 32, 32])
        >>> bool(attribution[0, 0, 4, 4] > attribution[0, 0, 20, 20])
        True

    References:
        R. Fong, M. Patrick, A. Vedaldi: Understanding Deep Networks via Extremal
        Perturbations and Smooth Masks. ICCV 2019.
    """

    def __init__(
        self,
        forward_func: Callable[..., Tensor],
        perturbation: Literal["blur", "fade"] | Perturbation = "blur",
        solver: Solver | None = None,
        reward: Reward | None = None,
    ) -> None:
        super().__init__(forward_func)
        checks.check_callable("forward_func", forward_func)
        self.perturbation = _perturbation(perturbation)
        self.solver = LevelSetSolver() if solver is None else solver
        self.reward = simple_reward if reward is None else reward
        checks.check_callable("reward", self.reward)
        checks.check_method("solver", self.solver, "solve")
        self._warned_of_training = False

    @property
    def multiplies_by_inputs(self) -> bool:
        """Always False, as a mask is not scaled by the input."""
        return False

    @log_usage(part_of_slo=True)  # type: ignore[untyped-decorator]
    def attribute(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        target: Target = None,
        areas: float | Sequence[float] = DEFAULT_AREAS,
        additional_forward_args: object = None,
        *,
        game: Game = "preservation",
        perturbations_per_eval: int = 16,
        seed: int = 0,
        show_progress: bool = False,
    ) -> Tensor | tuple[Tensor, ...]:
        """The mean of the masks over the areas, in the shape of the inputs.

        A pixel that is kept even at the smallest area gets the highest value; with one
        area the attribution is the mask itself. Everything else that a run finds comes
        from `optimize`, which takes the same arguments.

        Args:
            inputs: (N, C, *S) with 1, 2 or 3 spatial sizes, floating point; or a tuple
                of such tensors, which then get a mask each.
            target: Captum's ``target``: which output to explain, see
                :meth:`captum.attr.Saliency.attribute`.
            areas: One or more fractions of the input's pixels, each in (0, 1].
            additional_forward_args: Further arguments of the model; tensors with one
                entry an example are repeated along with the inputs.
            game: ``"preservation"`` keeps the score high inside the mask,
                ``"deletion"`` low outside it, ``"hybrid"`` both (Sec. 3.2).
            perturbations_per_eval: The most perturbed inputs that one forward of the
                model holds. It bounds memory and does not change the result. An input
                of more than 4 million numbers goes alone, in the hybrid game in two.
            seed: Of the solver's own random generator; the global ones stay untouched.
            show_progress: Show a progress bar on stderr.

        Returns:
            Attributions in [0, 1] with shape, dtype and device of ``inputs``, equal
            over channels; a tuple if ``inputs`` is one. In types shorter than float32
            values next to 0.5 may round to it; the masks of `optimize` are exact.

        Raises:
            ValueError: If an argument's value is out of range; the message names it.
            TypeError: If an argument is of the wrong type.
            AssertionError: Captum's, if ``target`` does not fit the model's output.
            RuntimeError: If the model cuts the gradient, or its score becomes NaN or
                infinite during the search.
            SearchInterrupted: At Ctrl-C; its ``result`` holds the masks found until
                then.

        Example:
            See `ExtremalPerturbation`.
        """
        result = self.optimize(
            inputs,
            target,
            areas,
            additional_forward_args,
            game=game,
            perturbations_per_eval=perturbations_per_eval,
            seed=seed,
            show_progress=show_progress,
        )
        masks = result.masks if isinstance(result.masks, tuple) else (result.masks,)
        attributions = tuple(
            mask.mean(dim=1).to(tensor.dtype).expand_as(tensor).contiguous().clone()
            for mask, tensor in zip(masks, as_tuple(inputs), strict=True)
        )
        return like_inputs(isinstance(inputs, tuple), attributions)  # type: ignore[no-any-return]

    def attribute_future(self) -> NoReturn:
        """Not available, as for Captum's other perturbation methods."""
        raise NotImplementedError(
            "attribute_future is not implemented for ExtremalPerturbation"
        )

    def optimize(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        target: Target = None,
        areas: float | Sequence[float] = DEFAULT_AREAS,
        additional_forward_args: object = None,
        *,
        game: Game = "preservation",
        perturbations_per_eval: int = 16,
        seed: int = 0,
        show_progress: bool = False,
    ) -> ExtremalResult:
        """The masks themselves, their scores and how they were found.

        Takes the arguments of `attribute` and raises the same errors.

        Returns:
            An `ExtremalResult`.
        """
        is_tuple = isinstance(inputs, tuple)
        areas = checks.check_areas(areas)
        seed = checks.check_count("seed", seed, minimum=0)
        with self._problem(
            inputs, target, areas, additional_forward_args, game, perturbations_per_eval
        ) as (problem, watch):
            name = self.get_name()
            found = run(problem, self.solver, seed, show_progress, name, watch)
        settings = settings_of(
            self.get_name(),
            game=game,
            seed=seed,
            perturbation=self.perturbation,
            solver=self.solver,
            reward=self.reward,
            ended=found.ended,
        )
        result = ExtremalResult(
            masks=like_inputs(is_tuple, found.masks),
            areas=areas,
            **found.scores,
            history=found.history,
            settings=settings,
        )
        if found.ended == "interrupt":
            raise SearchInterrupted(result)
        return result

    def evaluate(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        masks: Tensor | tuple[Tensor, ...],
        target: Target = None,
        additional_forward_args: object = None,
        *,
        game: Game = "preservation",
        perturbations_per_eval: int = 16,
    ) -> Tensor:
        """What masks of any origin are worth: the reward that a solver maximises.

        Args:
            inputs: As in `attribute`.
            masks: (N, A, 1, *S) in [0, 1], 1 = kept; a tuple of them if ``inputs`` is
                one. Their areas are the caller's business.
            target: As in `attribute`.
            additional_forward_args: As in `attribute`.
            game: As in `attribute`.
            perturbations_per_eval: As in `attribute`.

        Returns:
            Rewards, (N, A).

        Raises:
            ValueError: If ``masks`` do not fit ``inputs`` or leave [0, 1], or another
                argument's value is out of range.
            TypeError: If an argument is of the wrong type.

        Example:
            >>> import torch
            >>> method = ExtremalPerturbation(lambda x: x.mean((1, 2)), "fade")
            >>> masks = torch.tensor([[[[1.0, 0.0, 0.0, 0.0]], [[1.0, 1.0, 0.0, 0.5]]]])
            >>> method.evaluate(torch.ones(1, 1, 4), masks)
            tensor([[0.2500, 0.6250]])
        """
        tensors = as_tuple(inputs)
        checks.check_inputs(tensors)
        _check_masks(masks, tensors, isinstance(inputs, tuple))
        given = masks if isinstance(masks, tuple) else (masks,)
        # Any areas will do: a problem is asked for rewards alone.
        areas = (1.0,) * given[0].shape[1]
        with self._problem(
            inputs, target, areas, additional_forward_args, game, perturbations_per_eval
        ) as (problem, watch):
            return rewards_of(problem, given, watch)

    @contextmanager
    def _problem(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        target: Target,
        areas: Sequence[float],
        additional_forward_args: object,
        game: Game,
        perturbations_per_eval: int,
    ) -> Iterator[tuple[Problem, Watch]]:
        """The checked arguments as a problem, while the model is left as found."""
        tensors = as_tuple(inputs)
        checks.check_inputs(tensors)
        checks.check_choice("game", game, tuple(GAMES))
        perturbations_per_eval = checks.check_count(
            "perturbations_per_eval", perturbations_per_eval
        )
        check_target(target, len(tensors[0]))
        check_differentiable(self.forward_func)
        device = tensors[0].device
        watch = Watch(self.forward_func, device, warned=self._warned_of_training)
        with as_found(self.forward_func, device), torch.inference_mode(False):
            with torch.no_grad():
                tensors = tuple(tensor.detach() for tensor in tensors)
                if not all(tensor.isfinite().all() for tensor in tensors):
                    raise ValueError("inputs must be finite, got NaN or infinity")
                levels = tuple(
                    levels_apart(self.perturbation, tensor) for tensor in tensors
                )
            score = reward_of_rows(
                self.forward_func,
                self.reward,
                target,
                additional_forward_args,
                len(tensors[0]),
                device,
            )
            try:
                yield Problem(score, levels, areas, game, perturbations_per_eval), watch
            finally:
                self._warned_of_training = watch.warned


def _perturbation(choice: str | Perturbation) -> Perturbation:
    if isinstance(choice, str):
        checks.check_choice("perturbation", choice, tuple(PERTURBATIONS))
        return PERTURBATIONS[choice]()
    checks.check_method("perturbation", choice, "levels")
    return choice


def _check_masks(
    masks: Tensor | tuple[Tensor, ...], tensors: tuple[Tensor, ...], is_tuple: bool
) -> None:
    if isinstance(masks, tuple) != is_tuple:
        raise TypeError(
            "masks must be a tuple if inputs are one, and a tensor if not, got "
            f"{type(masks).__name__}"
        )
    given = masks if isinstance(masks, tuple) else (masks,)
    if len(given) != len(tensors):
        raise ValueError(
            f"masks must be as many as inputs, {len(tensors)}, got {len(given)}"
        )
    for mask, tensor in zip(given, tensors, strict=True):
        checks.check_floating("masks", mask)
        num_areas = mask.shape[1] if mask.dim() > 1 else 0
        legal = (len(tensor), num_areas, 1, *tensor.shape[2:])
        if num_areas == 0 or tuple(mask.shape) != legal:
            sizes = ", ".join(map(str, tensor.shape[2:]))
            raise ValueError(
                f"masks must be of shape ({len(tensor)}, A, 1, {sizes}), got "
                f"{tuple(mask.shape)}"
            )
        if mask.shape[1] != given[0].shape[1]:
            raise ValueError("masks must be of the same number of areas for all inputs")
        if not ((mask >= 0) & (mask <= 1)).all():
            raise ValueError("masks must lie in [0, 1], got other values")
