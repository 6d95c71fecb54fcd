"""Attribution classes -> functions from inputs and targets to a map for each input."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from captum.attr import (
    Deconvolution,
    GuidedBackprop,
    IntegratedGradients,
    LayerGradCam,
    Occlusion,
    Saliency,
)
from torch import Tensor, nn
from torch.nn import functional as F

from captum_extremal._base import files
from captum_extremal._base.checks import check_areas, check_choice, check_count
from captum_extremal._base.model import uncompiled
from captum_extremal.attribution.masks import DEFAULT_AREAS
from captum_extremal.extremal import ExtremalPerturbation
from captum_extremal.methods.excitation import ExcitationBackprop
from captum_extremal.methods.meaningful import MeaningfulPerturbation
from captum_extremal.methods.relus import with_hookable_relus
from captum_extremal.methods.rise import RISE
from captum_extremal.metrics import masks_to_saliency
from captum_extremal.models.networks import named_layer
from captum_extremal.models.probabilities import RULES, Rule, probabilities
from captum_extremal.solvers.rewards import GAMES, Game

_SEEDS = 2**63  # of torch.Generator


class Explained(NamedTuple):
    """What a method says of N inputs.

    Attributes:
        saliency: (N, 1, H, W) in the size of the inputs; the highest value is the point
            of the pointing game.
        masks: (N, A, 1, H, W), for methods that make some.
        curve: Numbers of each area by name, for methods that have areas.

    Example:
        >>> Explained(torch.zeros(1, 1, 2, 2)).masks is None
        True
    """

    saliency: Tensor
    masks: Tensor | None = None
    curve: dict[str, list[Any]] | None = None


Explain = Callable[[Tensor, Tensor], Explained]
"""Inputs (N, 3, H, W) and the output to attribute for each, (N,) -> saliency."""


@dataclass(frozen=True)
class Options:
    """What methods can be told; each takes what concerns it.

    Attributes:
        layer: Of grad-cam, mwp and cmwp: the name of a module, None for the last
            feature map.
        areas: Of the extremal methods.
        game: Of the extremal methods.
        seed: Of the extremal methods, rise and meaningful.
        steps: Of the extremal methods: the solver's iterations or evaluations, None for
            its own.
        probability: Of rise and meaningful, and of the rows of a benchmark: how outputs
            become probabilities, see `captum_extremal.models.probabilities`.

    Raises:
        ValueError: If a value is out of range.
        TypeError: If a value is of the wrong type.

    Example:
        >>> Options(steps=0)
        Traceback (most recent call last):
        ...
        ValueError: steps must be at least 1, got 0
    """

    layer: str | None = None
    areas: tuple[float, ...] = DEFAULT_AREAS
    game: Game = "preservation"
    seed: int = 0
    steps: int | None = None
    probability: Rule = "auto"

    def __post_init__(self) -> None:
        object.__setattr__(self, "areas", check_areas(self.areas))
        check_choice("game", self.game, tuple(GAMES))
        check_choice("probability", self.probability, RULES)
        check_count("seed", self.seed, minimum=0)
        if self.seed >= _SEEDS:
            raise ValueError(f"seed must be below 2**63, got {self.seed}")
        if self.steps is not None:
            check_count("steps", self.steps)


class Method(NamedTuple):
    """An entry of `METHODS`.

    Attributes:
        build: Model and options -> the function.
        options: Names of the options that change what the method gives.
        arguments: What else it was made with, of which results depend too.
    """

    build: Callable[[nn.Module, Options], Explain]
    options: tuple[str, ...] = ()
    arguments: str = ""


def last_feature_map(model: nn.Module, inputs: Tensor) -> nn.Module:
    """The module that is the last to give maps (N, C, h, w) with h w > 1.

    For torchvision's ResNets this is ``layer4``, for EfficientNet-Lite the activation
    after ``conv_head``, for VGG the pooling after ``features``. A model that turns its
    last convolution into tokens, as ViTs and Swin Transformers do, has none.

    Args:
        model: A convolutional network.
        inputs: (N, C, H, W), passed to the model once.

    Returns:
        The module, the outermost of those that end together.

    Raises:
        ValueError: If the model gives no such map, or goes on with tokens after its
            last convolution.

    Example:
        >>> from torch import nn
        >>> pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), pool)
        >>> last_feature_map(model, torch.zeros(1, 3, 8, 8))
        ReLU()
    """
    found: list[nn.Module] = []
    tokens: list[nn.Module] = []  # since the last convolution

    def note(module: nn.Module, _inputs: Any, output: Any) -> None:  # noqa: ANN401
        if not isinstance(output, Tensor):
            return
        if isinstance(module, nn.Conv2d):
            tokens.clear()
        if output.dim() == 3:
            tokens.append(module)
        if output.dim() == 4 and output.shape[2:].numel() > 1:
            found.append(module)

    inner = [module for module in model.modules() if module is not model]
    handles = [module.register_forward_hook(note) for module in inner]
    try:
        with torch.no_grad():
            model(inputs)
    finally:
        for handle in handles:
            handle.remove()
    if not found or tokens:
        raise ValueError(
            "layer must be given for a model that does not end with feature maps "
            "(N, C, h, w)"
        )
    return found[-1]


# --- the methods ---


def centre(_model: nn.Module, _options: Options) -> Explain:
    """Minus the distance to the middle."""

    def explain(inputs: Tensor, _target: Tensor) -> Explained:
        count, _, *size = inputs.shape
        rows, columns = (
            torch.arange(side, device=inputs.device) - (side - 1) / 2 for side in size
        )
        distance = torch.hypot(rows[:, None], columns[None])
        return Explained(-distance.expand(count, 1, *size))

    return explain


def gradient(model: nn.Module, _options: Options) -> Explain:
    """The gradient of the score."""
    return _largest(Saliency(model))


def deconvnet(model: nn.Module, _options: Options) -> Explain:
    """Captum's Deconvolution, on a copy."""
    return _largest(Deconvolution(with_hookable_relus(model)))


def guided_backprop(model: nn.Module, _options: Options) -> Explain:
    """Captum's GuidedBackprop, on a copy."""
    return _largest(GuidedBackprop(with_hookable_relus(model)))


def _largest(method: Saliency | Deconvolution | GuidedBackprop) -> Explain:
    """Gradients of some kind, by their largest absolute value over the channels."""

    def explain(inputs: Tensor, target: Tensor) -> Explained:
        with _without_hook_warning(), uncompiled():
            gradients = method.attribute(_leaf(inputs), target)
        return Explained(gradients.abs().amax(dim=1, keepdim=True).detach())

    return explain


def of_layer(
    name: str, attribute: Callable[[nn.Module, nn.Module, Tensor, Tensor], object]
) -> Method:
    """What a method says of a layer, summed over its channels and enlarged."""

    def build(model: nn.Module, options: Options) -> Explain:
        layer = None if options.layer is None else named_layer(model, options.layer)

        def explain(inputs: Tensor, target: Tensor) -> Explained:
            nonlocal layer
            with uncompiled():
                layer = last_feature_map(model, inputs) if layer is None else layer
                maps = attribute(model, layer, inputs, target)
            if not isinstance(maps, Tensor) or maps.dim() != 4:
                raise ValueError(f"layer must give one map (N, C, h, w) for {name}")
            total = maps.detach().sum(dim=1, keepdim=True)
            return Explained(F.interpolate(total, inputs.shape[2:], mode="bilinear"))

        return explain

    return Method(build, ("layer",))


def grad_cam(
    model: nn.Module, layer: nn.Module, inputs: Tensor, target: Tensor
) -> object:
    """Captum's LayerGradCam, enlarged."""
    return LayerGradCam(model, layer).attribute(
        _leaf(inputs), target, relu_attributions=True
    )


def excitation(
    model: nn.Module,
    layer: nn.Module,
    inputs: Tensor,
    target: Tensor,
    contrastive: bool = False,
) -> object:
    """MWP or contrastive MWP of a layer, enlarged."""
    return ExcitationBackprop(model, layer).attribute(
        inputs, target, contrastive=contrastive
    )


def of_probability(
    method: type[RISE | MeaningfulPerturbation],
) -> Callable[[nn.Module, Options], Explain]:
    """RISE or meaningful perturbation, of the probability."""

    def build(model: nn.Module, options: Options) -> Explain:
        rule = options.probability
        attributed = method(lambda inputs: probabilities(model(inputs), rule))

        def explain(inputs: Tensor, target: Tensor) -> Explained:
            maps = attributed.attribute(inputs, target, seed=options.seed)
            assert isinstance(maps, Tensor)  # one input tensor
            # The channels share their value.
            return Explained(maps[:, :1].detach())

        return explain

    return build


def integrated_gradients(model: nn.Module, _options: Options) -> Explain:
    """Captum's IntegratedGradients, channels summed."""
    method = IntegratedGradients(model)

    def explain(inputs: Tensor, target: Tensor) -> Explained:
        attributions: Tensor = method.attribute(  # type: ignore[has-type]
            _leaf(inputs), target=target, n_steps=50, internal_batch_size=_BATCH
        )
        return Explained(attributions.sum(dim=1, keepdim=True).detach().to(inputs))

    return explain


def occlusion(model: nn.Module, _options: Options) -> Explain:
    """Captum's Occlusion, a window of a seventh of the shorter side."""
    method = Occlusion(model)

    def explain(inputs: Tensor, target: Tensor) -> Explained:
        side = max(1, min(inputs.shape[2:]) // 7)
        step = max(1, side // 2)
        attributions = method.attribute(
            inputs,
            sliding_window_shapes=(inputs.shape[1], side, side),
            strides=(inputs.shape[1], step, step),
            target=target,
            perturbations_per_eval=_BATCH,
        )
        # A window covers all channels, which share its value.
        return Explained(attributions[:, :1].detach())

    return explain


def extremal(**arguments: Any) -> Method:  # noqa: ANN401
    """One of the solvers; ``arguments`` are those of `ExtremalPerturbation`."""

    def build(model: nn.Module, options: Options) -> Explain:
        method = ExtremalPerturbation(model, **arguments)
        if options.steps is not None:
            method.solver = arguments["solver"].with_steps(options.steps)

        def explain(inputs: Tensor, target: Tensor) -> Explained:
            result = method.optimize(
                inputs, target, options.areas, game=options.game, seed=options.seed
            )
            assert isinstance(result.masks, Tensor)  # one input tensor
            saliency = masks_to_saliency(result.masks)
            assert isinstance(saliency, Tensor)
            curve: dict[str, list[Any]] = {"areas": list(result.areas)}
            curve |= {name: getattr(result, name).tolist() for name in files.SCORES}
            return Explained(saliency, result.masks, curve)

        return explain

    return Method(build, _AREAS, repr(arguments))


_AREAS = ("areas", "game", "seed", "steps")

_BATCH = 16  # images in one forward: bounds memory


# --- helpers ---


def _leaf(inputs: Tensor) -> Tensor:
    """A copy that gradients can be taken of; Captum would warn and do the same."""
    return inputs.detach().clone().requires_grad_()


@contextmanager
def _without_hook_warning() -> Iterator[None]:
    """Captum warns of hooks that it takes off again."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Setting backward hooks on ReLU")
        yield
