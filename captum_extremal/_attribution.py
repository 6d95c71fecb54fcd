"""`attribute`, `optimize` and `evaluate`, once for all attribution methods.

A method lays masks on a `Site`: with the model and the target it becomes a `Problem`,
from which to masks and scores the way is the same, whatever the masks are laid on.
`MaskAttribution` is what all methods share, `LayerMasks` what those of a layer do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import version
from typing import Any, ClassVar, Generic, NoReturn, TypeVar

import torch
from captum.attr import LayerAttribution, PerturbationAttribution
from captum.log import log_usage
from torch import Tensor, nn

from captum_extremal._base import checks
from captum_extremal._base.captum_door import (
    Target,
    as_tuple,
    check_target,
    forward_of_rows,
    one_score_each,
    progress_bar,
)
from captum_extremal._base.causes import Score, batches_explained, may_be_of_the_batch
from captum_extremal._base.features import hint_at_features
from captum_extremal._base.layer import Layer, check_module
from captum_extremal._base.model import (
    Watch,
    as_found,
    check_differentiable,
    uncompiled,
)
from captum_extremal.results.channels import ChannelResult
from captum_extremal.results.extremal import ExtremalResult
from captum_extremal.sites.layer import (
    Baselines,
    LayerSite,
    Positions,
    check_activations,
)
from captum_extremal.sites.site import Site
from captum_extremal.solvers import (
    LevelSetSolver,
    Problem,
    Solution,
    Solver,
    SwapSolver,
)
from captum_extremal.solvers.problem import Ended
from captum_extremal.solvers.rewards import GAMES, Game, Reward, simple_reward

DEFAULT_AREAS = (0.05, 0.1, 0.2)


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


@dataclass(frozen=True, eq=False)
class Found:
    """Masks of N images and A areas, and their scores.

    Attributes:
        masks: For each tensor of the input (N, A, 1, *S).
        scores: Of what the masks keep, of what they leave out, of the untouched and of
            the fully perturbed inputs: (N, A), (N, A), (N,), (N,).
        history: Named series of the search, each (N, A, T).
        ended: What ended the search.
        areas: The areas, as asked for.
        settings: What the run was asked to do; JSON-serialisable.
    """

    masks: tuple[Tensor, ...]
    scores: dict[str, Tensor]
    history: dict[str, Tensor]
    ended: Ended
    areas: tuple[int | float, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)


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


def watched(
    watch: Watch, score: Score, levels: Sequence[Tensor], perturbations_per_eval: int
) -> Score:
    """The same score, which gives cause for a warning where there is any.

    For methods that do not score the untouched inputs: their first forward is looked
    at. Of a function that calls a model nothing is known, so that its first input is
    scored for this purpose, alone and beside its perturbed form.
    """
    if watch.warned or not watch.blind:
        return watch.first_call(score)
    kept = tuple(level[:1, -1] for level in levels)
    images = torch.zeros(1, dtype=torch.long, device=levels[0].device)
    first = together = None
    with torch.no_grad(), watch.forwards():
        try:
            first = score(kept, images)
            if perturbations_per_eval > 1:
                both = tuple(level[0, [-1, 0]] for level in levels)
                together = score(both, images.repeat(2))
        except Exception:  # the model's own, of any kind
            # It may take no such number of rows, and what else is wrong shows in the
            # run itself: to look for a warning must not fail it.
            if first is None:
                return score
    with torch.no_grad():
        watch.warn(first, lambda: score(kept, images), together)
    return score


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


# --- the methods ---

SiteT = TypeVar("SiteT", bound=Site)
Result = TypeVar("Result", ExtremalResult, ChannelResult)


class OnModel:
    """A method that runs the caller's model: it leaves it as found and warns once."""

    forward_func: Any
    _warned_of_training = False

    @property
    def multiplies_by_inputs(self) -> bool:
        """Always False, as attributions are not scaled by what they are of."""
        return False

    def attribute_future(self) -> NoReturn:
        """Not available, as for Captum's other perturbation methods."""
        raise NotImplementedError(
            f"attribute_future is not implemented for {type(self).__name__}"
        )

    @contextmanager
    def _model_as_found(self, device: torch.device) -> Iterator[Watch]:
        """Run the model, and put back what forwards change."""
        watch = Watch(self.forward_func, device, warned=self._warned_of_training)
        with as_found(self.forward_func, device), torch.inference_mode(False):
            try:
                yield watch
            finally:
                self._warned_of_training = watch.warned


class MaskAttribution(OnModel, PerturbationAttribution):
    """What methods share that look for masks: the model, the solver, the reward.

    Args:
        forward_func: The model, or any function of its inputs.
        solver: How masks are searched; None for the default of what they are laid on.
        reward: What is to be maximised; None for the target's score.

    Raises:
        TypeError: If an argument is of a kind that cannot work.
    """

    is_free: ClassVar[bool] = False  # whether positions usually are no neighbours

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
        return self._solver_for(self.is_free)

    @solver.setter
    def solver(self, solver: Solver) -> None:
        self._solver = solver

    def _solver_for(self, is_free: bool) -> Solver:
        """The caller's; else smooth masks, or free ones where nothing neighbours."""
        default = SwapSolver() if is_free else LevelSetSolver()
        return default if self._solver is None else self._solver

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
        **about: Any,  # noqa: ANN401
    ) -> Found:
        """The masks of a problem in the form that a result holds, judged."""
        solver = self._solver_for(site.is_free)
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
        return replace(found, masks=site.laid(found.masks), settings=settings)


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


class LayerMasks(LayerAttribution, MaskAttribution, Generic[Result]):
    """Masks over the activation of a layer; `positions` says of what.

    Args:
        forward_func: The model, or any function of its inputs.
        layer: A module, called once in a forward, that gives one row an example.
        device_ids: Of a ``DataParallel`` model that ``forward_func`` applies.
        solver: As of `MaskAttribution`.
        reward: As of `MaskAttribution`.

    Raises:
        TypeError: If an argument is of a kind that cannot work.
    """

    positions: ClassVar[Positions]

    def __init__(
        self,
        forward_func: Callable[..., Tensor],
        layer: nn.Module,
        device_ids: list[int] | None = None,
        solver: Solver | None = None,
        reward: Reward | None = None,
    ) -> None:
        checks.check_callable("forward_func", forward_func)
        check_module(layer)
        if isinstance(layer, torch.jit.ScriptModule):
            raise TypeError(
                "layer must not be a scripted or traced module, on which PyTorch "
                f"allows no hooks, got {type(layer).__name__}"
            )
        LayerAttribution.__init__(self, forward_func, layer, device_ids)
        MaskAttribution.__init__(self, forward_func, solver, reward)
        self._hinted_at_features = False

    @log_usage(part_of_slo=True)  # type: ignore[untyped-decorator]
    def attribute(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        target: Target = None,
        areas: float | Sequence[float] = DEFAULT_AREAS,
        additional_forward_args: object = None,
        attribute_to_layer_input: bool = False,
        *,
        layer_baselines: Baselines = 0.0,
        channel_dim: int = 1,
        game: Game = "preservation",
        perturbations_per_eval: int = 16,
        seed: int = 0,
        show_progress: bool = False,
    ) -> Tensor | tuple[Tensor, ...]:
        """The mean of the masks over the areas, in the shape of the activation.

        What is kept even at the smallest area gets the highest value; with one area the
        attribution is the mask itself. Everything else that a run finds comes from
        `optimize`, which takes the same arguments.

        Args:
            inputs: What the model takes, a tensor or a tuple of tensors of any shape
                and type, with one entry an example in the first dimension.
            target: Captum's ``target``: which output to explain, see
                :meth:`captum.attr.Saliency.attribute`.
            areas: One or more; an int is a number of channels (or places, for a method
                of places), a float a fraction of them in (0, 1]. So 1 is one and 1.0
                all.
            additional_forward_args: Further arguments of the model; tensors with one
                entry an example are repeated along with the inputs.
            attribute_to_layer_input: Mask what the layer takes in (its positional
                arguments) instead of what it gives out.
            layer_baselines: What becomes of what is left out: a number, or a tensor
                that broadcasts to the activation; a tuple of them, one for each tensor,
                if the layer has several.
            channel_dim: Which dimension of the activation the channels are; 1 for
                (N, K, H, W), 2 or -1 for a transformer's (N, tokens, K), of which a
                warning reminds where the activation may be one.
            game: ``"preservation"`` keeps the score high with what the mask keeps,
                ``"deletion"`` low without it, ``"hybrid"`` both (Sec. 3.2).
            perturbations_per_eval: The most activations that one forward of the model
                holds. It bounds memory and does not change the result.
            seed: Of the solver's own random generator; the global ones stay untouched.
            show_progress: Show a progress bar on stderr.

        Returns:
            Attributions in [0, 1] with shape, dtype and device of the activation: equal
            over its places for masks over channels, over its channels for masks over
            places; a tuple if the layer has several tensors, as in Captum.

        Raises:
            ValueError: If an argument's value is out of range, or the layer is not
                called once or gives something else than one row an example; the message
                names it.
            TypeError: If an argument is of the wrong type, or the layer's tensors are
                not floating point.
            AssertionError: Captum's, if ``target`` does not fit the model's output.
            RuntimeError: If the model cuts the gradient, or its score becomes NaN or
                infinite during the search.
            SearchInterrupted: At Ctrl-C; its ``result`` holds the masks found until
                then.

        Example:
            See the class.
        """
        asked = Asked(target, additional_forward_args, game, perturbations_per_eval)
        about = (attribute_to_layer_input, layer_baselines, channel_dim)
        found, site = self._optimize(inputs, areas, asked, about, seed, show_progress)
        if found.ended == "interrupt":
            raise SearchInterrupted(self._result(found, site))
        attributions = tuple(
            site.on_activation(mask.mean(dim=1), activation)
            for mask, activation in zip(found.masks, site.activations, strict=True)
        )
        return attributions if len(attributions) > 1 else attributions[0]

    def optimize(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        target: Target = None,
        areas: float | Sequence[float] = DEFAULT_AREAS,
        additional_forward_args: object = None,
        attribute_to_layer_input: bool = False,
        *,
        layer_baselines: Baselines = 0.0,
        channel_dim: int = 1,
        game: Game = "preservation",
        perturbations_per_eval: int = 16,
        seed: int = 0,
        show_progress: bool = False,
    ) -> Result:
        """The masks themselves, their scores and how they were found.

        Takes the arguments of `attribute` and raises the same errors.

        Returns:
            A `ChannelResult` for masks over channels, an `ExtremalResult` for masks
            over places, (N, A, 1, *places).
        """
        asked = Asked(target, additional_forward_args, game, perturbations_per_eval)
        about = (attribute_to_layer_input, layer_baselines, channel_dim)
        found, site = self._optimize(inputs, areas, asked, about, seed, show_progress)
        result = self._result(found, site)
        if found.ended == "interrupt":
            raise SearchInterrupted(result)
        return result

    def evaluate(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        masks: Tensor | tuple[Tensor, ...],
        target: Target = None,
        additional_forward_args: object = None,
        attribute_to_layer_input: bool = False,
        *,
        layer_baselines: Baselines = 0.0,
        channel_dim: int = 1,
        game: Game = "preservation",
        perturbations_per_eval: int = 16,
    ) -> Tensor:
        """What masks of any origin are worth: the reward of the game.

        Args:
            inputs: As in `attribute`.
            masks: In [0, 1], 1 = kept: (N, A, K) over channels, (N, A, 1, *places) over
                places; a tuple of them if the layer has several tensors.
            target: As in `attribute`, as are all further arguments.
            additional_forward_args: See there.
            attribute_to_layer_input: See there.
            layer_baselines: See there.
            channel_dim: See there.
            game: See there.
            perturbations_per_eval: See there.

        Returns:
            Rewards, (N, A).

        Raises:
            ValueError: If ``masks`` do not fit the activation or leave [0, 1], or
                another argument's value is out of range.
            TypeError: If an argument is of the wrong type.
            RuntimeError: If a score is NaN or infinite.

        Example:
            >>> import torch
            >>> from captum_extremal import ChannelExtremalPerturbation
            >>> layer = torch.nn.Identity()
            >>> def model(x):
            ...     return layer(x).sum(dim=1)
            >>> method = ChannelExtremalPerturbation(model, layer)
            >>> masks = torch.tensor([[[1.0, 0.0, 0.0], [1.0, 0.0, 1.0]]])
            >>> method.evaluate(torch.tensor([[1.0, 2.0, 4.0]]), masks)
            tensor([[1., 5.]])
        """
        given = masks if isinstance(masks, tuple) else (masks,)
        for mask in given:
            checks.check_floating("masks", mask)
        asked = Asked(target, additional_forward_args, game, perturbations_per_eval)
        about = (attribute_to_layer_input, layer_baselines, channel_dim)
        # Any areas will do: a problem is asked for rewards alone.
        areas = (1.0,) * (given[0].shape[1] if given and given[0].dim() > 1 else 1)
        with self._on_layer(inputs, areas, asked, *about) as (problem, site, watch):
            return rewards_of(problem, site.read(given), watch)

    def _optimize(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        areas: float | Sequence[float],
        asked: Asked,
        about: tuple[bool, Baselines, int],
        seed: int,
        show_progress: bool,
    ) -> tuple[Found, LayerSite]:
        areas = checks.check_channel_areas(areas, self.positions[:-1])
        seed = checks.check_count("seed", seed, minimum=0)
        with self._on_layer(inputs, areas, asked, *about) as (problem, site, watch):
            found = self._run(
                problem,
                site,
                watch,
                seed,
                show_progress,
                layer=type(self.layer).__name__,
                at_input=about[0],
            )
        return replace(found, areas=areas), site

    def _result(self, found: Found, site: LayerSite) -> Result:
        """The result of the kind of the method."""
        raise NotImplementedError

    @contextmanager
    def _on_layer(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        areas: Sequence[int | float],
        asked: Asked,
        at_input: bool,
        baselines: Baselines,
        channel_dim: int,
    ) -> Iterator[tuple[Problem, LayerSite, Watch]]:
        """The checked arguments as a problem, while the model is left as found."""
        tensors = as_tuple(inputs)
        _check_examples(tensors)
        if not isinstance(at_input, bool):
            raise TypeError(
                f"attribute_to_layer_input must be True or False, got {at_input!r}"
            )

        def lay(watch: Watch) -> AbstractContextManager[LayerSite]:
            return self._lay(tensors, asked, at_input, baselines, channel_dim, watch)

        with self._problem(tensors, asked, areas, lay) as laid:
            yield laid

    @contextmanager
    def _lay(
        self,
        tensors: tuple[Tensor, ...],
        asked: Asked,
        at_input: bool,
        baselines: Baselines,
        channel_dim: int,
        watch: Watch,
    ) -> Iterator[LayerSite]:
        """Read the layer, and let it pass on what the site tells it to."""
        device, batch = tensors[0].device, asked.perturbations_per_eval
        with uncompiled():
            tensors = tuple(tensor.detach().clone() for tensor in tensors)
            rows = torch.arange(len(tensors[0]), device=device)
            forward = forward_of_rows(
                self.forward_func,
                None,
                asked.additional_forward_args,
                len(rows),
                device,
            )
            outputs = batches_explained(lambda *part: forward(*part)[0])
            layer = Layer(self.forward_func, self.layer, at_input, self.device_ids)
            with watch.forwards():
                activations = layer.read(
                    [
                        partial(outputs, tuple(t[part] for t in tensors), part)
                        for part in rows.split(batch)
                    ]
                )
            dim = check_activations(activations, len(rows), channel_dim, batch)
            if not self._hinted_at_features:
                # Whoever names another dimension once needs no hint.
                self._hinted_at_features = channel_dim != 1 or any(
                    hint_at_features(
                        activation.shape, self.layer, self.forward_func, at_input
                    )
                    for activation in activations
                )
            # In another order and number than any part that was read.
            others = torch.cat([rows.flip(0), rows[:1]])[-batch:]
            layer.compare(
                lambda: forward(tuple(t[others] for t in tensors), others),
                *(activation[others] / 2 for activation in activations),
            )
            site = LayerSite(
                layer, tensors, activations, dim, self.positions, baselines
            )
            with layer.overwritten():
                yield site


def _check_examples(tensors: tuple[Tensor, ...]) -> None:
    if not tensors:
        raise ValueError("inputs must hold at least one tensor, got none")
    sizes = {len(tensor) if tensor.dim() else 0 for tensor in tensors}
    if len(sizes) > 1 or 0 in sizes:
        raise ValueError(
            "inputs must agree in their first dimension N, one example or more, got "
            f"shapes {' and '.join(str(tuple(tensor.shape)) for tensor in tensors)}"
        )
