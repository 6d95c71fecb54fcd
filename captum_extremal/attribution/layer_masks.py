"""`LayerMasks`: masks over what a layer gives, of its channels or of its places."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import partial
from typing import ClassVar, Generic, TypeVar

import torch
from captum.attr import LayerAttribution
from captum.log import log_usage
from torch import Tensor, nn

from captum_extremal._base import checks
from captum_extremal._base.captum_door import (
    Target,
    as_tuple,
    forward_of_rows,
)
from captum_extremal._base.causes import batches_explained
from captum_extremal._base.features import hint_at_features
from captum_extremal._base.layer import Layer, check_module
from captum_extremal._base.model import (
    Watch,
    uncompiled,
)
from captum_extremal.attribution.masks import (
    DEFAULT_AREAS,
    Asked,
    MaskAttribution,
    any_areas,
)
from captum_extremal.attribution.running import (
    Found,
    SearchInterrupted,
    rewards_of,
)
from captum_extremal.results.channels import ChannelResult
from captum_extremal.results.extremal import ExtremalResult
from captum_extremal.sites.layer import (
    Baselines,
    LayerSite,
    Positions,
    check_activations,
)
from captum_extremal.solvers import (
    Problem,
    Solver,
)
from captum_extremal.solvers.rewards import Game, Reward

Result = TypeVar("Result", ExtremalResult, ChannelResult)


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
        attributions = site.attributions(found.of_images(ranks=False))
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
            over places, ``(N, A, 1, *places)``.
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
            masks: In [0, 1], 1 = kept: (N, A, K) over channels, or over places
                ``(N, A, 1, *places)``; a tuple if the layer has several tensors.
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
        asked = Asked(target, additional_forward_args, game, perturbations_per_eval)
        about = (attribute_to_layer_input, layer_baselines, channel_dim)
        areas = any_areas(given)
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
        checks.check_bool("attribute_to_layer_input", at_input)

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
