"""`ChannelExtremalPerturbation`: a layer -> the smallest set of channels a model needs.

The way of the data: the layer's activation (N, ..., K, ...) is read once, its channels
become the positions of a mask, everything else the "colours" of a position:
(N, rest, K) -> a `Problem` of N * A masks -> the solver's masks -> `ChannelResult`
(`optimize`) -> one attribution of the shape of the activation (`attribute`).
"""

from __future__ import annotations

from captum_extremal.attribution.layer_masks import LayerMasks
from captum_extremal.attribution.running import Found
from captum_extremal.results.channels import ChannelResult
from captum_extremal.sites.layer import LayerSite
from captum_extremal.solvers import SwapSolver


class ChannelExtremalPerturbation(LayerMasks[ChannelResult]):
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
        solver: How channels are searched; None for `SwapSolver` with its defaults.
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

    positions = "channels"
    usual_solver = SwapSolver

    def _result(self, found: Found, site: LayerSite) -> ChannelResult:
        one = len(found.masks) == 1
        read = site.activations[0] if one else site.activations
        return found.result(ChannelResult, one, activations=read, channel_dim=site.dim)
