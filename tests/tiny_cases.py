"""The attribution classes as cases: one table, from which `test_contract` tests all.

A case explains a model of four classes, each of which needs one of four parts of the
inputs: quarters of an image, or channels. A method of layers explains a layer in front
of the model (`Front`), so that its attributions have the shape of the inputs as well.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from captum.attr import LayerAttribution, PerturbationAttribution
from torch import Tensor, nn

from captum_extremal import (
    AreaWeight,
    ChannelExtremalPerturbation,
    ChannelSolver,
    ExtremalPerturbation,
    GradientSolver,
    LayerExtremalPerturbation,
)
from captum_extremal.peers import RISE, ExcitationBackprop, MeaningfulPerturbation
from captum_extremal.perturbations.levels import FadePerturbation
from captum_extremal.solvers.rewards import GAMES
from tiny_models import Blocks, Weighted, constant, varied

STEPS = GradientSolver(
    area_weight=AreaWeight(growth=1.1), score_weight=None, iterations=8, mirror=False
)


class Front(nn.Module):
    """A layer that hands the first input on to a model, which takes them all."""

    def __init__(self, model: Callable[..., Any]):
        super().__init__()
        self.layer = nn.Identity()
        self.model = model

    def forward(self, first: Tensor, *others: Any) -> Any:
        return self.model(self.layer(first), *others)


def channels(scale: float = 300.0) -> Weighted:
    """Class c is the mean of channel c, and a little of the next one's."""
    eye = torch.eye(4)
    return Weighted((scale * eye + 0.1 * scale * eye.roll(1, dims=1)).tolist())


@dataclass(frozen=True)
class Case:
    """A class, how its few steps are made, and what it costs and can do."""

    method: type[Any]
    name: str  # as it calls itself
    kinds: tuple[type, ...] = (PerturbationAttribution,)
    made: dict[str, Any] = field(default_factory=dict)  # arguments of the class
    options: dict[str, Any] = field(default_factory=dict)  # arguments of attribute
    chance: dict[str, Any] = field(default_factory=dict)  # arguments that add chance
    model: Callable[..., Any] = lambda scale=300.0: Blocks(scale=scale)
    num_channels: int = 3
    parts: Callable[[Tensor], Tensor] = lambda found: blocks(found)
    share: float = 0.0  # of the attribution that lies, at least, in the right part
    shape: Callable[[Tensor], tuple[int, ...]] = lambda inputs: tuple(inputs.shape)
    games: tuple[str | None, ...] = (None,)
    calls: tuple[int, int] = (0, 0)  # forwards and backwards of one example
    fails: tuple[int, ...] = (0,)  # forwards, from 0, at which the model may fail
    rows: int = 0  # of the largest forward, with three examples
    bar: str = ""  # the end of the progress bar
    smooth: bool = True  # a little noise in the inputs shows
    trains: bool = True  # a model in training mode is a warning, else an error
    scripts: bool = True  # the model may be scripted

    def __str__(self) -> str:
        return self.method.__name__

    def takes(self, name: str) -> bool:
        """Whether the class or its `attribute` has this argument."""
        calls = self.method, self.method.attribute
        return any(name in inspect.signature(call).parameters for call in calls)

    def inputs(self, images: int = 1, make: Callable[..., Tensor] = constant) -> Tensor:
        return make((images, self.num_channels, 12, 12))

    def varied(self, images: int = 1) -> Tensor:
        return self.inputs(images, varied)

    def front(self, model: Callable[..., Any]) -> Callable[..., Any]:
        """The model, behind a layer if the method is one of layers."""
        behind = isinstance(model, Front) or not self.takes("layer")
        return model if behind else Front(model)

    def make(self, model: Any, layer: nn.Module | None = None, **made: Any) -> Any:
        if not self.takes("layer"):
            return self.method(model, **self.made | made)
        model = model if layer is not None else self.front(model)
        layer = model.layer if layer is None else layer
        return self.method(model, layer, **self.made | made)

    def call(self, method: Any, inputs: Any, target: Any = 0, **options: Any) -> Any:
        """What `attribute` gives; an option that is None is left out."""
        given = {k: v for k, v in (self.options | options).items() if v is not None}
        return method.attribute(inputs, target, **given)

    def attribute(
        self, model: Any, inputs: Any, target: Any = 0, **options: Any
    ) -> Any:
        return self.call(self.make(model), inputs, target, **options)


def blocks(found: Tensor) -> Tensor:
    """The mean of each block, in reading order: (C, *S) -> (2 ** axes,)."""
    return Blocks(found.dim() - 1, scale=1.0)(found[None].float())[0].detach()


def means(found: Tensor) -> Tensor:
    """The mean of each channel: (C, *S) -> (C,)."""
    return found.flatten(1).float().mean(dim=1)


def assert_same(one: object, other: object) -> None:
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


CASES = (
    Case(
        ExtremalPerturbation, "Extremal Perturbation",
        made={"perturbation": "fade", "solver": STEPS},
        options={"areas": (0.1, 0.2)},
        chance={"solver": GradientSolver(iterations=8, jitter=0.2)},
        games=tuple(GAMES),
        # Two forwards score the inputs, 8 are steps, two judge the masks.
        share=0.3, calls=(12, 8), fails=(0, 1, 2, 5, 11), rows=6, bar="8/8",
    ),
    Case(
        ChannelExtremalPerturbation, "Channel Extremal Perturbation",
        kinds=(LayerAttribution, PerturbationAttribution),
        made={"solver": ChannelSolver(iterations=8, rounds=2)},
        options={"areas": (1, 2)},
        model=channels, num_channels=4, parts=means, share=0.6,
        games=tuple(GAMES),
        calls=(31, 14), fails=(0, 1, 3, 9, 20), rows=24, bar="9/10", smooth=False,
    ),
    Case(
        LayerExtremalPerturbation, "Layer Extremal Perturbation",
        kinds=(LayerAttribution, PerturbationAttribution),
        made={"solver": STEPS},
        options={"areas": (0.1, 0.2)},
        games=tuple(GAMES),
        share=0.3, calls=(13, 8), fails=(0, 1, 2, 5, 11), rows=6, bar="8/8",
    ),
    Case(
        ExcitationBackprop, "Excitation Backprop",
        kinds=(LayerAttribution,),
        share=0.999, calls=(1, 0), trains=False, scripts=False,
    ),
    Case(
        RISE, "RISE",
        options={"num_masks": 60, "grid_size": 4},
        share=0.26, calls=(4, 0), fails=(0, 2), rows=180, bar="4/4",
    ),
    Case(
        MeaningfulPerturbation, "Meaningful Perturbation",
        made={"perturbation": FadePerturbation()},
        options={"iterations": 20, "l1_weight": 0.1}
        | {"mask_size": 12, "mask_sigma": 0.5},
        games=("deletion", "preservation"),
        # Eleven forwards find the disk to start from.
        share=0.7, calls=(11 + 20, 20), fails=(0, 2, 12), rows=3, bar="20/20",
        smooth=False,
    ),
)  # fmt: skip
