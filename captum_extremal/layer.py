"""`LayerExtremalPerturbation`: a layer -> the places of its activation a model needs.

The way of the data: the layer's activation (N, ..., K, ...) is read once, its places
become the positions of a mask, the same for all channels: (N, K, *places) -> a
`Problem` of N * A masks -> the solver's masks -> `ExtremalResult` (`optimize`) -> one
attribution of the shape of the activation (`attribute`).
"""

from __future__ import annotations

from captum_extremal.attribution.layer_masks import LayerMasks
from captum_extremal.attribution.running import Found
from captum_extremal.results.extremal import ExtremalResult
from captum_extremal.sites.layer import LayerSite


class LayerExtremalPerturbation(LayerMasks[ExtremalResult]):
    r"""The places of a layer, of a given area, that keep the score highest.

    For each area :math:`a` it looks for

    .. math:: m_a = \operatorname{argmax}_{m, |m| = a} \Phi_{l+}(m \otimes \Phi_l(x))

    as eq. 9 of the paper, but with a mask over the places of the activation
    :math:`\Phi_l(x)` instead of its channels: at a place all channels are kept, or all
    are left out and become 0, or ``layer_baselines``. Places along rows and columns get
    a smooth mask; the tokens of a transformer, which are no neighbours (one axis of
    places before the channels, ``channel_dim`` 2 or -1), are kept or left out one by
    one. Convention: mask 1 = kept, 0 = left out; an area is a number of places (int) or
    a fraction of them (float).

    Args:
        forward_func: The model, or any function of its inputs, as everywhere in
            Captum. It is neither moved nor put in evaluation mode.
        layer: The module whose places are meant. It must be called once in a forward
            and give one row for each example.
        device_ids: Only for a ``forward_func`` that applies a ``DataParallel`` model:
            its device ids. Not needed where it is that model itself.
        solver: How masks are searched; None for `LevelSetSolver`, or `SwapSolver` for
            tokens, with their defaults.
        reward: What is to be maximised of the model's output: ``(outputs, target) ->
            (K,)``; None for the target's score.

    Raises:
        TypeError: If an argument is of a kind that cannot work.

    Example:
        Of four tokens the model looks at the second, most of all.

        >>> import torch
        >>> from captum_extremal import LayerExtremalPerturbation
        >>> layer = torch.nn.Identity()
        >>> def model(x):
        ...     return layer(x)[:, 1:3].sum(dim=2) @ torch.tensor([[2.0], [1.0]])
        >>> method = LayerExtremalPerturbation(model, layer)
        >>> tokens = torch.ones(1, 4, 3)
        >>> attribution = method.attribute(tokens, 0, areas=1, channel_dim=-1)
        >>> attribution.shape, attribution[0, :, 0]
        (torch.Size([1, 4, 3]), tensor([0., 1., 0., 0.]))

    References:
        R. Fong, M. Patrick, A. Vedaldi: Understanding Deep Networks via Extremal
        Perturbations and Smooth Masks. ICCV 2019, Section 5.
    """

    positions = "places"

    def _result(self, found: Found, site: LayerSite) -> ExtremalResult:
        areas = site.fractions(found.areas)
        return found.result(ExtremalResult, one=len(found.masks) == 1, areas=areas)
