"""Activations and masks over channels -> where the kept channels see something."""

from __future__ import annotations

from torch import Tensor

from captum_extremal._base import checks


def masked(activations: Tensor, masks: Tensor, channel_dim: int = 1) -> Tensor:
    """Activations with each channel times its mask, m * a.

    Args:
        activations: Of a layer, (N, ...) with K channels along ``channel_dim``.
        masks: One value for each channel, (N, K), on any device.
        channel_dim: The dimension of the channels.

    Returns:
        A tensor like ``activations``; NaN where a mask is.

    Raises:
        ValueError: If the shapes do not agree.
        TypeError: If a tensor is not floating point.

    Example:
        >>> import torch
        >>> masked(torch.tensor([[1.0, 10.0, 100.0]]), torch.tensor([[1.0, 0.0, 0.5]]))
        tensor([[ 1.,  0., 50.]])
    """
    checks.check_floating("activations", activations)
    checks.check_floating("masks", masks)
    dim = checks.check_channel_dim(activations.shape, channel_dim)
    legal = (len(activations), activations.shape[dim])
    each = ", one value for each channel"
    checks.check_shape("masks", masks, "N K", each, N=legal[0], K=legal[1])
    shape = [1] * activations.dim()
    shape[0], shape[dim] = legal
    return activations * masks.to(activations).reshape(shape)


def saliency(activations: Tensor, masks: Tensor, channel_dim: int = 1) -> Tensor:
    """Where masked channels are active: v = sum_k m^k * a^k (eq. 11).

    Args:
        activations: As in `masked`.
        masks: As in `masked`.
        channel_dim: As in `masked`.

    Returns:
        The activations without their channels, (N, ...); NaN where a mask is.

    Raises:
        ValueError: If the shapes do not agree.
        TypeError: If a tensor is not floating point.

    Example:
        >>> import torch
        >>> activations = torch.tensor([[[1.0, 2.0], [10.0, 20.0]]])  # 2 channels
        >>> saliency(activations, torch.tensor([[1.0, 0.5]]))
        tensor([[ 6., 12.]])
    """
    return masked(activations, masks, channel_dim).sum(dim=channel_dim)


def check_sufficient(masks: Tensor) -> None:
    """Refuse the rows of `smallest_sufficient_mask` for which no area sufficed.

    Args:
        masks: (N, K).

    Raises:
        ValueError: If a row holds NaN; it names the first.

    Example:
        >>> import torch
        >>> check_sufficient(torch.tensor([[1.0, 0.0], [torch.nan, torch.nan]]))
        Traceback (most recent call last):
        ...
        ValueError: masks must not be NaN, got NaN in row 1: no area sufficed for that image (smallest_sufficient_mask); leave its row out
    """  # noqa: E501
    missing = masks.detach().isnan().any(dim=1).tolist()
    if any(missing):
        raise ValueError(
            f"masks must not be NaN, got NaN in row {missing.index(True)}: no area "
            "sufficed for that image (smallest_sufficient_mask); leave its row out"
        )
