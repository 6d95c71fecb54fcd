r"""Attributions and a model -> the area under its score while pixels come or go.

With the pixels ranked by attribution, the first :math:`n_k = k P / K` of :math:`P`
(rounded) and :math:`k = 0, .., K`, and baseline :math:`b`:

.. math::
    \text{insertion:} \quad x_k = x \text{ on the first } n_k, \; b \text{ elsewhere},
    \qquad
    \text{deletion:} \quad x_k = b \text{ on the first } n_k, \; x \text{ elsewhere},

    \mathrm{AUC} = \sum_{k=1}^{K} \tfrac{1}{2} (\Phi(x_{k-1}) + \Phi(x_k))
                   \frac{n_k - n_{k-1}}{P}.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from captum_extremal._base.captum_door import Target, as_tuple, score_of_rows
from captum_extremal._base.checks import check_callable, check_count, check_inputs
from captum_extremal._base.model import as_found
from captum_extremal.metrics._maps import attribution_maps, like_parts

Baselines = float | Tensor | tuple[float | Tensor, ...] | None


def insertion_auc(
    forward_func: Callable[..., Tensor],
    inputs: Tensor | tuple[Tensor, ...],
    attributions: Tensor | tuple[Tensor, ...],
    baselines: Baselines = None,
    additional_forward_args: object = None,
    target: Target = None,
    *,
    steps: int = 100,
    perturbations_per_eval: int = 16,
) -> Tensor:
    """Area under the score while the best pixels are put in: higher is better.

    Petsiuk et al. measure the softmax probability, so let ``forward_func`` return that
    (logits give an area without bounds), and insert into a blurred image:
    ``baselines=gaussian_blur(inputs, sigma)``, theirs with a sigma of 5 and a kernel
    cut to 11 pixels.

    Rules:
        - Channels of an attribution are summed; a pixel comes with all its channels.
        - Equal pixels come in row-major order. Binary masks go through
          `masks_to_saliency` first.
        - An attribution with a NaN has no order: NaN.

    Args:
        forward_func: The model or any function of it. It runs without gradient and is
            left as found, its training mode included.
        inputs: Inputs of N examples, or a tuple of them, whose pixels are ranked
            together.
        attributions: Their attributions; any number of channels, a tuple if ``inputs``
            is one.
        baselines: What a missing pixel looks like: a number, a tensor of the shape of
            ``inputs`` or with a first dimension of 1, a tuple of these. None is 0, as
            in Captum.
        additional_forward_args: As in Captum.
        target: As in Captum, see :meth:`captum.attr.Saliency.attribute`.
        steps: K, at most the number of pixels. 100 is ours; Petsiuk et al. take one
            row of the image at a time, 224 steps.
        perturbations_per_eval: The most perturbed inputs that one forward may hold.

    Returns:
        One area for each example, on the device of ``inputs``, of the dtype of the
        outputs, at least float32.

    Raises:
        TypeError: If an argument is of another type.
        ValueError: If shapes do not agree, a count is below 1, or there is not one
            score an example.
        AssertionError: Captum's, where ``inputs`` is a list or ``target`` does not fit.

    Shape:
        inputs (N, C, *S), attributions (N, D, *S) with 1, 2 or 3 spatial sizes -> (N,).

    Example:
        >>> import torch
        >>> def share_of_ones(inputs):
        ...     return inputs.mean(dim=(1, 2))
        >>> inputs = torch.tensor([[[0.0, 1.0, 0.0, 1.0]]])
        >>> insertion_auc(share_of_ones, inputs, attributions=inputs)
        tensor([0.3750])
        >>> insertion_auc(share_of_ones, inputs, attributions=-inputs)
        tensor([0.1250])

    References:
        Petsiuk et al., RISE: randomized input sampling for explanation of black-box
        models, BMVC 2018.
    """
    return _auc(
        forward_func,
        inputs,
        attributions,
        baselines,
        additional_forward_args,
        target,
        steps=steps,
        perturbations_per_eval=perturbations_per_eval,
        inserting=True,
    )


def deletion_auc(
    forward_func: Callable[..., Tensor],
    inputs: Tensor | tuple[Tensor, ...],
    attributions: Tensor | tuple[Tensor, ...],
    baselines: Baselines = None,
    additional_forward_args: object = None,
    target: Target = None,
    *,
    steps: int = 100,
    perturbations_per_eval: int = 16,
) -> Tensor:
    """Area under the score while the best pixels are taken away: lower is better.

    Petsiuk et al. put 0 in their place, after normalisation the mean colour. Everything
    else is as in `insertion_auc`.

    Args:
        forward_func: As in `insertion_auc`.
        inputs: As in `insertion_auc`.
        attributions: As in `insertion_auc`.
        baselines: As in `insertion_auc`; None is 0.
        additional_forward_args: As in Captum.
        target: As in Captum.
        steps: As in `insertion_auc`.
        perturbations_per_eval: As in `insertion_auc`.

    Returns:
        One area for each example, as in `insertion_auc`.

    Raises:
        TypeError: As in `insertion_auc`.
        ValueError: As in `insertion_auc`.
        AssertionError: As in `insertion_auc`.

    Shape:
        inputs (N, C, *S), attributions (N, D, *S) with 1, 2 or 3 spatial sizes -> (N,).

    Example:
        >>> import torch
        >>> def share_of_ones(inputs):
        ...     return inputs.mean(dim=(1, 2))
        >>> inputs = torch.tensor([[[0.0, 1.0, 0.0, 1.0]]])
        >>> deletion_auc(share_of_ones, inputs, attributions=inputs)
        tensor([0.1250])
    """
    return _auc(
        forward_func,
        inputs,
        attributions,
        baselines,
        additional_forward_args,
        target,
        steps=steps,
        perturbations_per_eval=perturbations_per_eval,
        inserting=False,
    )


def _auc(
    forward_func: Callable[..., Tensor],
    inputs: Tensor | tuple[Tensor, ...],
    attributions: Tensor | tuple[Tensor, ...],
    baselines: Baselines,
    additional_forward_args: object,
    target: Target,
    *,
    steps: int,
    perturbations_per_eval: int,
    inserting: bool,
) -> Tensor:
    check_callable("forward_func", forward_func)
    check_count("steps", steps)
    check_count("perturbations_per_eval", perturbations_per_eval)
    is_tuple = isinstance(inputs, tuple)
    tensors = as_tuple(inputs)
    check_inputs(tensors)
    device = tensors[0].device
    maps = _maps_of(attributions, tensors, is_tuple)
    bases = _bases(baselines, tensors, is_tuple)
    score = score_of_rows(
        forward_func, len(tensors[0]), target, additional_forward_args, device
    )

    num_pixels = sum(single[0].numel() for single in maps)
    counts = _counts(num_pixels, steps).to(device)
    sources = list(zip(tensors, bases, _ranks(maps), strict=True))
    scores = []
    with torch.no_grad(), as_found(forward_func, device):
        cells = torch.arange(len(tensors[0]) * len(counts), device=device)
        for chunk in cells.split(perturbations_per_eval):
            images = chunk // len(counts)
            shown = counts[chunk % len(counts)]
            perturbed = tuple(
                x[images].where(_is_first(rank[images], shown) == inserting, b[images])
                for x, b, rank in sources
            )
            scores.append(score(perturbed, images))
    curves = torch.cat(scores).unflatten(0, (-1, len(counts)))
    # The trapezoids, as a mean of scores: no sum is larger than the largest of them.
    half_steps = (counts.to(curves) / num_pixels).diff() / 2
    shares = F.pad(half_steps, (1, 0)) + F.pad(half_steps, (0, 1))
    areas: Tensor = (curves * shares).sum(dim=1)
    ordered = torch.stack([~m.flatten(1).isnan().any(dim=1) for m in maps]).all(dim=0)
    return areas.where(ordered, torch.nan)


def _maps_of(
    attributions: Tensor | tuple[Tensor, ...],
    inputs: tuple[Tensor, ...],
    is_tuple: bool,
) -> list[Tensor]:
    """Attributions as one map for each input tensor, (N, *S), on its device."""
    maps = attribution_maps(attributions)
    wanted = [(len(tensor), *tensor.shape[2:]) for tensor in inputs]
    found = [tuple(single.shape) for single in maps]
    if isinstance(attributions, tuple) != is_tuple or found != wanted:
        raise ValueError(
            f"attributions must match the inputs {_shapes(inputs, is_tuple)} in all "
            "but the number of channels, got "
            f"{_shapes(attributions, isinstance(attributions, tuple))}"
        )
    return [m.detach().to(x.device) for m, x in zip(maps, inputs, strict=True)]


def _shapes(tensors: Tensor | tuple[Tensor, ...], is_tuple: bool) -> str:
    several = tensors if isinstance(tensors, tuple) else (tensors,)
    shapes = [str(tuple(tensor.shape)) for tensor in several]
    return f"a tuple of {', '.join(shapes)}" if is_tuple else shapes[0]


def _bases(
    baselines: Baselines, inputs: tuple[Tensor, ...], is_tuple: bool
) -> list[Tensor]:
    """Captum's baselines, expanded to the inputs."""
    if baselines is None:
        baselines = (0.0,) * len(inputs) if is_tuple else 0.0
    several: tuple[float | Tensor, ...] = like_parts(
        "baselines", baselines, "inputs", len(inputs), is_tuple
    )
    return [_base(one, tensor) for one, tensor in zip(several, inputs, strict=True)]


def _base(baseline: float | Tensor, of: Tensor) -> Tensor:
    shapes = tuple(of.shape), (1, *of.shape[1:])
    if isinstance(baseline, Tensor) and tuple(baseline.shape) in shapes:
        return baseline.detach().to(of).expand_as(of)
    if isinstance(baseline, int | float) and not isinstance(baseline, bool):
        return torch.full_like(of, baseline)
    came = type(baseline).__name__
    if isinstance(baseline, Tensor):
        came = f"a tensor of shape {tuple(baseline.shape)}"
    raise ValueError(
        f"baselines must be numbers or tensors of shape {shapes[0]} or {shapes[1]}, "
        f"got {came}"
    )


def _ranks(maps: list[Tensor]) -> list[Tensor]:
    """0 for the highest pixel over all maps of an example, the first of equals."""
    flat = torch.cat([single.flatten(1) for single in maps], dim=1)
    order = flat.argsort(dim=1, descending=True, stable=True)
    places = torch.arange(flat.shape[1], device=flat.device).expand_as(order)
    ranks = torch.empty_like(order).scatter_(1, order, places)
    parts = ranks.split([single[0].numel() for single in maps], dim=1)
    return [p.reshape(m.shape) for p, m in zip(parts, maps, strict=True)]


def _counts(num_pixels: int, steps: int) -> Tensor:
    """How many pixels have come after each step, from none to all of them."""
    steps = min(steps, num_pixels)  # more would add steps of no pixel
    return torch.tensor([round(k * num_pixels / steps) for k in range(steps + 1)])


def _is_first(ranks: Tensor, counts: Tensor) -> Tensor:
    """Which pixels are among the first: (K, *S) and (K,) -> (K, 1, *S)."""
    return (ranks < counts.reshape(-1, *[1] * (ranks.dim() - 1))).unsqueeze(1)
