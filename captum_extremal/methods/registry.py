r"""A name and a model -> a function from inputs and targets to saliency maps.

Each row of the paper's Table 1 that Captum or this package can compute is an entry of
`METHODS`. What the published methods leave open is settled as follows:

====================  ==============================================================
centre                minus the distance to the middle: a guess without a model
gradient, deconvnet,  the largest absolute value over the channels
guided-backprop
mwp, cmwp             excitation backprop and its contrastive form, channels summed, at
                      the layer ``layer``; None: the last feature map, see
                      `last_feature_map`. Enlarged bilinearly
grad-cam              the ReLU of the sum, at the same layer. Enlarged bilinearly
rise                  4000 masks, of the probability
meaningful            Fong and Vedaldi's mask of 2017, of the probability
ig                    50 steps from 0, the mean colour; channels summed, signed
occlusion             a window of 1/7 of the shorter side, by half of it, filled with
                      0; signed
extremal              masks of the areas, summed and smoothed (`masks_to_saliency`)
extremal-search       the same without gradients (`SearchSolver`)
extremal-paper,       the same by the published descents (`presets`)
extremal-torchray
====================  ==============================================================
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from captum_extremal import presets
from captum_extremal._base.checks import check_choice, check_shape
from captum_extremal.methods.adapters import (
    Explain,
    Method,
    Options,
    centre,
    deconvnet,
    excitation,
    extremal,
    grad_cam,
    gradient,
    guided_backprop,
    integrated_gradients,
    occlusion,
    of_layer,
    of_probability,
)
from captum_extremal.methods.meaningful import MeaningfulPerturbation
from captum_extremal.methods.rise import RISE
from captum_extremal.solvers import LevelSetSolver, SearchSolver


def explainer(name: str, model: nn.Module, options: Options | None = None) -> Explain:
    """A method, ready for the inputs of a model.

    Args:
        name: A key of `METHODS`.
        model: Inputs (N, 3, H, W) -> scores (N, classes). It stays as it is; deconvnet
            and guided backprop work on a copy.
        options: None for the defaults.

    Returns:
        A function ``(inputs, target) -> Explained``.

    Raises:
        ValueError: If the name is unknown, ``layer`` is not a module of the model, or
            the model has no ReLU modules for a method that needs them.

    Example:
        >>> import torch
        >>> explain = explainer("centre", torch.nn.Identity())
        >>> explain(torch.zeros(1, 3, 3, 3), torch.tensor([0])).saliency[0, 0]
        tensor([[-1.4142, -1.0000, -1.4142],
                [-1.0000, -0.0000, -1.0000],
                [-1.4142, -1.0000, -1.4142]])
    """
    check_choice("method", name, tuple(METHODS))
    return METHODS[name].build(model, Options() if options is None else options)


def compare(
    model: nn.Module,
    inputs: Tensor,
    target: int | Sequence[int] | Tensor,
    methods: Sequence[str] = ("extremal", "grad-cam", "ig", "occlusion"),
    options: Options | None = None,
) -> dict[str, Tensor]:
    """Maps of several methods for the same inputs, ready to be drawn side by side.

    `captum_extremal.visualization.plot_methods` draws them, ``result.to_html(...,
    others=...)`` shows them on a page.

    Args:
        model: As in `explainer`.
        inputs: (N, 3, H, W), as the model takes them.
        target: The output to attribute, one for all inputs or one for each.
        methods: Keys of `METHODS`; what each computes stands at the top of this module.
        options: None for the defaults.

    Returns:
        Name of the method -> saliency (N, 1, H, W), in the order of ``methods``; of ig
        and occlusion it is signed.

    Raises:
        ValueError: If a name is unknown or there is none, the inputs, the target, the
            model or the layer do not fit a method, or the model is in training mode.
        TypeError: If the model is no module or the target no index.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 2))
        >>> maps = compare(model.eval(), torch.rand(1, 3, 4, 4), 1, ["gradient", "ig"])
        >>> {name: tuple(values.shape) for name, values in maps.items()}
        {'gradient': (1, 1, 4, 4), 'ig': (1, 1, 4, 4)}
    """
    names = names_of([methods] if isinstance(methods, str) else methods)
    check_evaluation(model)
    check_shape("inputs", inputs, "N C H W", filled=True)
    targets = _target_for_each(target, inputs)
    explain = {name: explainer(name, model, options) for name in names}
    targets = _in_range(targets, model, inputs)
    return {name: explain[name](inputs, targets).saliency for name in names}


def check_evaluation(model: nn.Module) -> None:
    """Refuse a model whose BatchNorms and Dropouts would change as it is run.

    Args:
        model: Any model.

    Raises:
        ValueError: If it, or a part of it, is in training mode.
        TypeError: If it is no module.

    Example:
        >>> check_evaluation(nn.Dropout())
        Traceback (most recent call last):
        ...
        ValueError: model must be in evaluation mode (model.eval()), got training mode
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if any(module.training for module in model.modules()):
        raise ValueError(
            "model must be in evaluation mode (model.eval()), got training mode"
        )


def _target_for_each(target: int | Sequence[int] | Tensor, inputs: Tensor) -> Tensor:
    count = len(inputs)
    legal = f"one index, or one for each of {count} inputs"
    if target is None or isinstance(target, bool):
        raise TypeError(f"target must be {legal}, got {target}")
    targets = torch.as_tensor(target, device=inputs.device)
    if targets.is_floating_point() or targets.shape not in ((), (1,), (count,)):
        raise ValueError(f"target must be {legal}, got {target}")
    return targets.expand(count)


def _in_range(targets: Tensor, model: nn.Module, inputs: Tensor) -> Tensor:
    """Indices from 0; negative ones count from the model's last output."""
    with torch.no_grad():
        outputs = model(inputs[:1]).shape[-1]
    wrong = targets[(targets < -outputs) | (targets >= outputs)]
    if len(wrong):
        raise ValueError(
            f"target must lie in {-outputs}..{outputs - 1}, as the model has {outputs} "
            f"outputs, got {int(wrong[0])}"
        )
    return targets.remainder(outputs)


def settings_of(name: str, options: Options) -> dict[str, Any]:
    """The options that matter to a method, in a form that JSON can hold.

    Args:
        name: A key of `METHODS`.
        options: The options.

    Returns:
        The method's name and its options: equal for two runs that compute the same.

    Raises:
        ValueError: If the name is unknown.

    Example:
        >>> settings_of("grad-cam", Options(layer="features", seed=7))
        {'method': 'grad-cam', 'layer': 'features'}
    """
    check_choice("method", name, tuple(METHODS))
    given = {option: getattr(options, option) for option in METHODS[name].options}
    if "areas" in given:
        given["areas"] = list(options.areas)
    if METHODS[name].arguments:
        given["arguments"] = METHODS[name].arguments
    return {"method": name, **given}


METHODS: dict[str, Method] = {
    "centre": Method(centre),
    "gradient": Method(gradient),
    "deconvnet": Method(deconvnet),
    "guided-backprop": Method(guided_backprop),
    "mwp": of_layer("mwp", excitation),
    "cmwp": of_layer("cmwp", partial(excitation, contrastive=True)),
    "rise": Method(of_probability(RISE), ("seed",)),
    "grad-cam": of_layer("grad-cam", grad_cam),
    "meaningful": Method(of_probability(MeaningfulPerturbation), ("seed",)),
    "ig": Method(integrated_gradients),
    "occlusion": Method(occlusion),
    "extremal": extremal(solver=LevelSetSolver()),
    "extremal-search": extremal(solver=SearchSolver()),
    "extremal-paper": extremal(**presets.paper()),
    "extremal-torchray": extremal(**presets.torchray()),
}
"""Name -> method, in the order of the rows of a table."""


def names_of(methods: Sequence[str]) -> tuple[str, ...]:
    """Checked names of methods, each once, in the order given.

    Args:
        methods: Keys of `METHODS`.

    Returns:
        The names.

    Raises:
        ValueError: If one is unknown or there is none.

    Example:
        >>> names_of(["ig", "centre", "ig"])
        ('ig', 'centre')
    """
    if not methods:
        raise ValueError("methods must name at least one method, got none")
    for name in methods:
        check_choice("method", name, tuple(METHODS))
    return tuple(dict.fromkeys(methods))
