"""`ChannelExtremalPerturbation`: a layer -> the smallest set of channels a model needs.

The way of the data: the layer's activation (N, ..., K, ...) is read once, its channels
become the positions of a mask, everything else the "colours" of a position:
(N, rest, K) -> a `Problem` of N * A masks -> the solver's masks -> `ChannelResult`
(`optimize`) -> one attribution of the shape of the activation (`attribute`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NoReturn

import torch
from captum.attr import LayerAttribution, PerturbationAttribution
from captum.log import log_usage
from torch import Tensor, nn

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
    forward_of_rows,
)
from captum_extremal._base.causes import batches_explained
from captum_extremal._base.features import hint_at_features
from captum_extremal._base.layer import Layer
from captum_extremal._base.model import (
    Watch,
    as_found,
    check_differentiable,
    uncompiled,
)
from captum_extremal.masks.area import area_count
from captum_extremal.results.channels import ChannelResult
from captum_extremal.solvers import ChannelSolver, Problem, Solver
from captum_extremal.solvers.rewards import GAMES, Game, Reward, simple_reward

Baselines = float | Tensor | tuple[float | Tensor, ...]
DEFAULT_AREAS = (0.05, 0.1, 0.2)


class ChannelExtremalPerturbation(LayerAttribution, PerturbationAttribution):
    r"""The channels of a layer, of a given number, that keep the score highest.

    For each area :math:`a` it looks for

    .. math:: m_a = \operatorname{argmax}_{m \in \{0, 1\}^K, |m| = a}
        \Phi_{l+}(m \otimes \Phi_l(x))

    (eq. 9), where :math:`\Phi_l(x)` is the layer's activation with K channels,
    :math:`\Phi_{l+}` the model behind it, and the mask has one value for each channel
    at all places. Channels that are left out become 0, or ``layer_baselines``.
    Convention: mask 1 = kept, 0 = left out; an area is a number of channels (int) or a
    fraction of them (float).

    Args:
        forward_func: The model, or any function of its inputs, as everywhere in
            Captum. It is neither moved nor put in evaluation mode.
        layer: The module whose channels are meant. It must be called once in a forward
            and give one row for each example.
        device_ids: Only for a ``forward_func`` that applies a ``DataParallel`` model:
            its device ids. Not needed where it is that model itself.
        solver: How channels are searched; None for `ChannelSolver` with its defaults.
        reward: What is to be maximised of the model's output: ``(outputs, target) ->
            (K,)``; None for the target's score.

    Raises:
        TypeError: If an argument is of a kind that cannot work.

    Example:
        Class 0 is the sum of the first three channels, so these are what it needs.

        >>> import torch
        >>> from torch import nn
        >>> class Model(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.features = nn.Identity()
        ...
        ...     def forward(self, x):
        ...         maps = self.features(x)
        ...         return maps[:, :3].sum((1, 2, 3)), maps[:, 3:].sum((1, 2, 3))
        >>> model = Model()
        >>> def classify(x):
        ...     return torch.stack(model(x), dim=1)
        >>> method = ChannelExtremalPerturbation(classify, model.features)
        >>> attribution = method.attribute(torch.ones(1, 8, 2, 2), target=0, areas=3)
        >>> attribution.shape, attribution[0, :, 0, 0]
        (torch.Size([1, 8, 2, 2]), tensor([1., 1., 1., 0., 0., 0., 0., 0.]))

    References:
        R. Fong, M. Patrick, A. Vedaldi: Understanding Deep Networks via Extremal
        Perturbations and Smooth Masks. ICCV 2019, Section 5.
    """

    def __init__(
        self,
        forward_func: Callable[..., Tensor],
        layer: nn.Module,
        device_ids: list[int] | None = None,
        solver: Solver | None = None,
        reward: Reward | None = None,
    ) -> None:
        checks.check_callable("forward_func", forward_func)
        if not isinstance(layer, nn.Module):
            raise TypeError(
                f"layer must be a torch.nn.Module, got {type(layer).__name__}"
            )
        if isinstance(layer, torch.jit.ScriptModule):
            raise TypeError(
                "layer must not be a scripted or traced module, on which PyTorch "
                f"allows no hooks, got {type(layer).__name__}"
            )
        LayerAttribution.__init__(self, forward_func, layer, device_ids)
        PerturbationAttribution.__init__(self, forward_func)
        self.solver = ChannelSolver() if solver is None else solver
        self.reward = simple_reward if reward is None else reward
        checks.check_callable("reward", self.reward)
        checks.check_method("solver", self.solver, "solve")
        self._warned_of_training = False
        self._hinted_at_features = False

    @property
    def multiplies_by_inputs(self) -> bool:
        """Always False, as a mask is not scaled by the activation."""
        return False

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

        A channel that is kept even at the smallest area gets the highest value; with
        one area the attribution is the mask itself. Everything else that a run finds
        comes from `optimize`, which takes the same arguments.

        Args:
            inputs: What the model takes, a tensor or a tuple of tensors of any shape
                and type, with one entry an example in the first dimension.
            target: Captum's ``target``: which output to explain, see
                :meth:`captum.attr.Saliency.attribute`.
            areas: One or more; an int is a number of channels in [1, K], a float a
                fraction of them in (0, 1]. So 1 is one channel and 1.0 all of them.
            additional_forward_args: Further arguments of the model; tensors with one
                entry an example are repeated along with the inputs.
            attribute_to_layer_input: Mask the channels of what the layer takes in (its
                positional arguments) instead of what it gives out.
            layer_baselines: What a channel that is left out becomes: a number, or a
                tensor that broadcasts to the activation; a tuple of them, one for each
                tensor, if the layer has several.
            channel_dim: Which dimension of the activation the channels are; 1 for
                (N, K, H, W), 2 or -1 for a transformer's (N, tokens, K), of which a
                warning reminds where the activation may be one.
            game: ``"preservation"`` keeps the score high with the channels of the mask
                alone, ``"deletion"`` low without them, ``"hybrid"`` both (Sec. 3.2).
            perturbations_per_eval: The most activations that one forward of the model
                holds. It bounds memory and does not change the result.
            seed: Of the solver's own random generator; the global ones stay untouched.
            show_progress: Show a progress bar on stderr.

        Returns:
            Attributions in [0, 1] with shape, dtype and device of the activation, equal
            over all its dimensions but the batch and the channels; a tuple if the layer
            has several tensors, as in Captum.

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
            See `ChannelExtremalPerturbation`.
        """
        result = self.optimize(
            inputs,
            target,
            areas,
            additional_forward_args,
            attribute_to_layer_input,
            layer_baselines=layer_baselines,
            channel_dim=channel_dim,
            game=game,
            perturbations_per_eval=perturbations_per_eval,
            seed=seed,
            show_progress=show_progress,
        )
        if isinstance(result.masks, tuple):
            assert isinstance(result.activations, tuple)
            return tuple(
                _spread(mask, tensor, result.channel_dim)
                for mask, tensor in zip(result.masks, result.activations, strict=True)
            )
        assert isinstance(result.activations, Tensor)
        return _spread(result.masks, result.activations, result.channel_dim)

    def attribute_future(self) -> NoReturn:
        """Not available, as for Captum's other perturbation methods."""
        raise NotImplementedError(
            "attribute_future is not implemented for ChannelExtremalPerturbation"
        )

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
    ) -> ChannelResult:
        """The masks themselves, their scores and the activation that they are for.

        Takes the arguments of `attribute` and raises the same errors.

        Returns:
            A `ChannelResult`.
        """
        areas = checks.check_channel_areas(areas)
        seed = checks.check_count("seed", seed, minimum=0)
        with self._channels(
            inputs,
            target,
            areas,
            additional_forward_args,
            attribute_to_layer_input,
            layer_baselines,
            channel_dim,
            game,
            perturbations_per_eval,
        ) as channels:
            name = self.get_name()
            found = run(
                channels.problem,
                self.solver,
                seed,
                show_progress,
                name,
                channels.watch,
            )
        masks = tuple(mask.squeeze(2) for mask in found.masks)
        several = len(masks) > 1
        settings = settings_of(
            name,
            layer=type(self.layer).__name__,
            at_input=attribute_to_layer_input,
            game=game,
            seed=seed,
            solver=self.solver,
            reward=self.reward,
            ended=found.ended,
        )
        result = ChannelResult(
            masks=masks if several else masks[0],
            areas=areas,
            **found.scores,
            activations=channels.activations if several else channels.activations[0],
            channel_dim=channels.dim,
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
        attribute_to_layer_input: bool = False,
        *,
        layer_baselines: Baselines = 0.0,
        channel_dim: int = 1,
        game: Game = "preservation",
        perturbations_per_eval: int = 16,
    ) -> Tensor:
        """What channel masks of any origin are worth: the reward of the game.

        Args:
            inputs: As in `attribute`.
            masks: (N, A, K) in [0, 1], 1 = kept; a tuple of them if the layer has
                several tensors.
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
        areas = (1.0,) * (given[0].shape[1] if given and given[0].dim() == 3 else 1)
        with self._channels(
            inputs,
            target,
            areas,  # any will do: a problem is asked for rewards alone
            additional_forward_args,
            attribute_to_layer_input,
            layer_baselines,
            channel_dim,
            game,
            perturbations_per_eval,
        ) as channels:
            _check_masks(given, channels, len(areas))
            return rewards_of(
                channels.problem,
                tuple(mask.unsqueeze(2) for mask in given),
                channels.watch,
            )

    @contextmanager
    def _channels(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        target: Target,
        areas: tuple[int | float, ...],
        additional_forward_args: object,
        at_input: bool,
        baselines: Baselines,
        channel_dim: int,
        game: Game,
        perturbations_per_eval: int,
    ) -> Iterator[_Channels]:
        """The checked arguments as a problem, while the model is left as found."""
        tensors = as_tuple(inputs)
        num_images = _num_examples(tensors)
        if not isinstance(at_input, bool):
            raise TypeError(
                f"attribute_to_layer_input must be True or False, got {at_input!r}"
            )
        checks.check_choice("game", game, tuple(GAMES))
        batch = checks.check_count("perturbations_per_eval", perturbations_per_eval)
        check_target(target, num_images)
        check_differentiable(self.forward_func)
        device = tensors[0].device
        watch = Watch(self.forward_func, device, warned=self._warned_of_training)
        with (
            as_found(self.forward_func, device),
            torch.inference_mode(False),
            uncompiled(),
        ):
            tensors = tuple(tensor.detach().clone() for tensor in tensors)
            rows = torch.arange(num_images, device=device)
            forward = forward_of_rows(
                self.forward_func, None, additional_forward_args, num_images, device
            )
            outputs = batches_explained(lambda *part: forward(*part)[0])
            layer = Layer(self.forward_func, self.layer, at_input, self.device_ids)
            with watch.forwards():
                activations = layer.read(
                    [
                        lambda part=part: outputs(tuple(t[part] for t in tensors), part)  # type: ignore[misc]
                        for part in rows.split(batch)
                    ]
                )
            dim = _check_activations(activations, num_images, channel_dim, batch)
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
            reward = reward_of_rows(
                self.forward_func,
                self.reward,
                target,
                additional_forward_args,
                num_images,
                device,
            )

            def score(perturbed: tuple[Tensor, ...], images: Tensor) -> Tensor:
                layer.values = tuple(
                    _as_activation(values, activation, dim)
                    for values, activation in zip(perturbed, activations, strict=True)
                )
                images = images.to(device)
                return reward(tuple(tensor[images] for tensor in tensors), images)

            problem = Problem(
                score,
                tuple(
                    _levels(activation, baseline, dim)
                    for activation, baseline in zip(
                        activations, _baselines(baselines, activations), strict=True
                    )
                ),
                _fractions(areas, [tensor.shape[dim] for tensor in activations]),
                game,
                batch,
            )
            try:
                with layer.overwritten():
                    yield _Channels(problem, activations, dim, watch)
            finally:
                self._warned_of_training = watch.warned


@dataclass(frozen=True, eq=False)
class _Channels:
    """What there is to search, and the activation that it stands for."""

    problem: Problem
    activations: tuple[Tensor, ...]
    dim: int
    watch: Watch


# --- checks ---


def _num_examples(tensors: tuple[Tensor, ...]) -> int:
    if not tensors:
        raise ValueError("inputs must hold at least one tensor, got none")
    sizes = {len(tensor) if tensor.dim() else 0 for tensor in tensors}
    if len(sizes) > 1 or 0 in sizes:
        raise ValueError(
            "inputs must agree in their first dimension N, one example or more, got "
            f"shapes {' and '.join(str(tuple(tensor.shape)) for tensor in tensors)}"
        )
    return sizes.pop()


def _check_activations(
    activations: tuple[Tensor, ...], num_images: int, channel_dim: int, batch: int
) -> int:
    """The channel dimension, counted from the front."""
    checks.check_count("channel_dim", channel_dim, minimum=-(10**6))
    found = set()
    for activation in activations:
        checks.check_floating("what layer gives", activation)
        shape = tuple(activation.shape)
        if not shape or shape[0] != num_images or 0 in shape:
            raise ValueError(
                f"layer must give one row for each of the {num_images} examples, got "
                f"an activation of shape {shape}{_one_at_a_time(num_images, batch)}"
            )
        if len(shape) < 2:
            raise ValueError(f"layer must give channels, got values of shape {shape}")
        dim = checks.check_channel_dim(shape, channel_dim)
        if not activation.isfinite().all():
            raise ValueError("layer must give finite values, got NaN or infinity")
        found.add(dim)
    if len(found) > 1:
        raise ValueError(
            "channel_dim must mean the same dimension of each of the layer's tensors, "
            f"got {channel_dim} for shapes "
            f"{' and '.join(str(tuple(tensor.shape)) for tensor in activations)}"
        )
    return found.pop()


def _one_at_a_time(num_images: int, batch: int) -> str:
    if min(num_images, batch) == 1:
        return ""
    return "; if forward_func takes batches of one alone: perturbations_per_eval=1"


def _check_masks(
    masks: tuple[Tensor, ...], channels: _Channels, num_areas: int
) -> None:
    if len(masks) != len(channels.activations):
        raise ValueError(
            f"masks must be as many as the layer's tensors, {len(channels.activations)}"
            f", got {len(masks)}"
        )
    for mask, activation in zip(masks, channels.activations, strict=True):
        legal = (len(activation), num_areas, activation.shape[channels.dim])
        if tuple(mask.shape) != legal or num_areas == 0:
            raise ValueError(
                f"masks must be of shape ({legal[0]}, A, {legal[2]}), got "
                f"{tuple(mask.shape)}"
            )
        if not ((mask >= 0) & (mask <= 1)).all():
            raise ValueError("masks must lie in [0, 1], got other values")


def _fractions(
    areas: tuple[int | float, ...], channels: Sequence[int]
) -> tuple[float, ...]:
    """Areas as fractions, of which a number of channels comes out as it was asked."""
    for area in areas:
        if isinstance(area, int) and area > min(channels):
            raise ValueError(
                f"area must be at most the layer's {min(channels)} channels, got "
                f"{area}; a fraction is a float, and 1.0 is all channels"
            )
        if isinstance(area, int) and len(set(channels)) > 1:
            raise ValueError(
                "area must be a fraction for a layer whose tensors differ in their "
                f"number of channels, {' and '.join(map(str, channels))}, got {area}"
            )
    fractions = [a / channels[0] if isinstance(a, int) else a for a in areas]
    for area, fraction in zip(areas, fractions, strict=True):
        assert isinstance(area, float) or area_count(channels[0], fraction) == area
    return tuple(fractions)


def _baselines(
    baselines: Baselines, activations: tuple[Tensor, ...]
) -> tuple[float | Tensor, ...]:
    """One baseline for each tensor of the layer."""
    if not isinstance(baselines, tuple):
        return (baselines,) * len(activations)
    if len(baselines) != len(activations):
        raise ValueError(
            "layer_baselines must be as many as the layer's tensors, "
            f"{len(activations)}, got {len(baselines)}"
        )
    return baselines


# --- activations and the rows that a mask is laid on ---


def _levels(activation: Tensor, baseline: float | Tensor, dim: int) -> Tensor:
    """The baseline and the activation, channels last, (N, 2, rest, K)."""
    if not isinstance(baseline, Tensor) and (
        isinstance(baseline, bool) or not isinstance(baseline, (int, float))
    ):
        raise TypeError(
            f"layer_baselines must be numbers or tensors, got {type(baseline).__name__}"
        )
    left_out = torch.as_tensor(baseline).detach().to(activation)
    try:
        left_out = left_out.expand_as(activation)
    except RuntimeError:
        raise ValueError(
            "layer_baselines must broadcast to the activation, "
            f"{tuple(activation.shape)}, got {tuple(left_out.shape)}"
        ) from None
    if not left_out.isfinite().all():
        raise ValueError("layer_baselines must be finite, got NaN or infinity")
    both = torch.stack([left_out, activation], dim=1).movedim(dim + 1, -1)
    return both.flatten(2, -2) if both.dim() > 3 else both.unsqueeze(2)


def _as_activation(values: Tensor, activation: Tensor, dim: int) -> Tensor:
    """Masked rows (M, rest, K) in the layout of the activation."""
    rest = activation.movedim(dim, -1).shape[1:-1]
    masked = values.reshape(len(values), *rest, values.shape[2]).movedim(-1, dim)
    # The model behind the layer may take a view that needs this order of memory.
    return masked.contiguous() if activation.is_contiguous() else masked


def _spread(masks: Tensor, activation: Tensor, dim: int) -> Tensor:
    """The mean of the masks (N, A, K), repeated to the shape of the activation."""
    shape = [1] * activation.dim()
    shape[0], shape[dim] = len(masks), masks.shape[2]
    mean = masks.mean(dim=1).view(shape).to(activation.dtype)
    return mean.expand_as(activation).contiguous().clone()
