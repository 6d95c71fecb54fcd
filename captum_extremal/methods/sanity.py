r"""A model whose layers lose their weights one by one -> maps that follow, or not.

The sanity check of Adebayo et al. (Fig. 7): from the output down, one layer after the
other is randomised, those above staying so, and each time the map of a method is
compared with the one of the intact model by Spearman's rank correlation over pixels. A
method that explains the model loses its map; one that redraws the image keeps it.

Randomised means: the entries of each parameter of the layer, and of each statistic that
its normalisations keep, in a random order. Nothing learned is left but the scale,
without which the signal of a deep network dies.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from captum_extremal._base.checks import check_count
from captum_extremal.methods.adapters import Options
from captum_extremal.methods.registry import explainer

if TYPE_CHECKING:
    pass

INTACT = "intact"


def randomised(
    model: nn.Module, layers: Sequence[str] | None = None, seed: int = 0
) -> Iterator[tuple[str, nn.Module]]:
    """Copies of a model in which more and more layers are randomised.

    Args:
        model: Any model; it stays as it is.
        layers: Names of modules, from the output down; each is randomised with all
            that is in it. None for every module that holds parameters itself, in the
            reverse of the order in which the model lists them.
        seed: Of the random orders.

    Yields:
        The name of the last layer that was randomised, and the copy; first
        ``"intact"``. It is one and the same copy, changed when the next is asked for.

    Raises:
        ValueError: If a layer is not a module of the model, or holds no parameter.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> for name, changed in randomised(model):
        ...     kept = [torch.equal(a, b) for a, b in
        ...             zip(model.parameters(), changed.parameters())]
        ...     print(name, kept)
        intact [True, True, True, True]
        2 [True, True, False, False]
        0 [False, False, False, False]
    """
    check_count("seed", seed, minimum=0)
    model = copy.deepcopy(model)
    modules = dict(model.named_modules())
    if layers is None:
        own = [it for it in modules if list(modules[it].parameters(recurse=False))]
        layers = own[::-1]
    for layer in layers:
        if layer not in modules or not list(modules[layer].parameters()):
            raise ValueError(f"layers must name modules with parameters, got {layer!r}")
    generator = torch.Generator().manual_seed(seed)

    def walk() -> Iterator[tuple[str, nn.Module]]:
        yield INTACT, model
        for layer in layers:
            module = modules[layer]
            learned = [it for it in module.buffers() if it.is_floating_point()]
            for tensor in [*module.parameters(), *learned]:
                order = torch.randperm(tensor.numel(), generator=generator)
                values = tensor.detach().reshape(-1)[order.to(tensor.device)]
                with torch.no_grad():
                    tensor.copy_(values.reshape(tensor.shape))
            yield layer, model

    return walk()


def rank_correlation(first: Tensor, second: Tensor) -> Tensor:
    """Spearman's rank correlation of each pair of maps; ties share their mean rank.

    Args:
        first: N maps.
        second: As many, of the same shape.

    Returns:
        (N,) in [-1, 1], float64; NaN where a map is constant or holds a NaN.

    Raises:
        ValueError: If the shapes differ.

    Shape:
        (N, ...) and (N, ...) -> (N,).

    Example:
        >>> first = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
        >>> rank_correlation(first, torch.tensor([[4.0, 1.0, 2.0, 3.0]]))
        tensor([-0.2000], dtype=torch.float64)
    """
    if first.shape != second.shape or first.dim() < 2:
        raise ValueError(
            f"maps must be of one shape (N, ...), got {tuple(first.shape)} and "
            f"{tuple(second.shape)}"
        )
    ranks = [
        torch.stack([_ranks(one.flatten()) for one in maps]) for maps in (first, second)
    ]
    centred = [it - it.mean(dim=1, keepdim=True) for it in ranks]
    products = (centred[0] * centred[1]).sum(dim=1)
    norms = (
        centred[0].square().sum(dim=1).sqrt() * centred[1].square().sum(dim=1).sqrt()
    )
    valid = torch.stack([it.flatten(1).isnan().any(dim=1) for it in (first, second)])
    return (products / norms).masked_fill(valid.any(dim=0), torch.nan).clamp(-1, 1)


def sanity_check(
    model: nn.Module,
    inputs: Tensor,
    target: Tensor,
    methods: Sequence[str],
    options: Options | None = None,
    *,
    layers: Sequence[str] | None = None,
    seed: int = 0,
) -> dict[str, dict[str, list[float]]]:
    """How much of each method's maps survives as layers are randomised.

    Args:
        model: Inputs (N, 3, H, W) -> scores, in evaluation mode.
        inputs: Its inputs.
        target: The output to attribute for each, (N,).
        methods: Keys of `METHODS`.
        options: Of the methods. The paper plays the extremal ones with
            ``game="hybrid"``.
        layers: As for `randomised`.
        seed: As for `randomised`.

    Returns:
        Method -> last randomised layer (first ``"intact"``, 1 by definition) -> rank
        correlation with the intact model's map, one for each input; NaN for a map that
        is constant.

    Raises:
        ValueError: If a method or a layer is unknown.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), head).eval()
        >>> x, target = torch.rand(1, 3, 8, 8), torch.tensor([0])
        >>> found = sanity_check(model, x, target, ["gradient"], layers=["2", "0"])
        >>> list(found["gradient"]), round(found["gradient"]["intact"][0], 6)
        (['intact', '2', '0'], 1.0)
    """
    found: dict[str, dict[str, list[float]]] = {name: {} for name in methods}
    originals: dict[str, Tensor] = {}
    for layer, changed in randomised(model, layers, seed):
        for name in methods:
            saliency = explainer(name, changed, options)(inputs, target).saliency
            original = originals.setdefault(name, saliency)
            found[name][layer] = rank_correlation(original, saliency).tolist()
    return found


def _ranks(values: Tensor) -> Tensor:
    """Mean ranks of a flat tensor, float64."""
    _, group, counts = values.unique(return_inverse=True, return_counts=True)
    last = counts.cumsum(dim=0).double()
    ranks: Tensor = (last - (counts.double() - 1) / 2)[group]
    return ranks
