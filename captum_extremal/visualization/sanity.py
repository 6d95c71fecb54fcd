"""A sanity check's correlations -> a figure, as the paper's Figure 7."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_sanity(
    correlations: Mapping[str, Mapping[str, Sequence[float]]],
    chance: Mapping[str, float] | None = None,
) -> Figure:
    """A line for each method: the mean rank correlation over the layers.

    Args:
        correlations: What `sanity_check` returns.
        chance: Method -> the rank correlation of unrelated maps, those of different
            inputs; a dotted line where it is given. Smooth maps, and maps with much in
            the middle, correlate more than 0.

    Returns:
        A figure; the layers from the output down, the band is a standard error.

    Example:
        >>> figure = plot_sanity({"ig": {"intact": [1.0, 1.0], "fc": [0.5, 0.7]}})
        >>> [line.get_label() for line in figure.axes[0].lines]
        ['0', 'ig']
    """
    from matplotlib.figure import Figure

    layers = list(next(iter(correlations.values())))
    width = max(5.0, 0.22 * len(layers) + 2.5)
    figure = Figure(figsize=(width, 4.0), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    axes.axhline(0, color="#8A8A8A", linewidth=0.8, label="0")
    lowest = -0.3
    for place, (name, by_layer) in enumerate(correlations.items()):
        values = torch.tensor([list(by_layer[layer]) for layer in layers])
        known = values.isfinite()
        count = known.sum(dim=1)
        mean = values.nanmean(dim=1)
        spread = (values - mean[:, None]).square().nansum(dim=1)
        error = (spread / (count * (count - 1)).clamp(min=1)).sqrt()
        lowest = min(lowest, float((mean - error).nan_to_num(0).min()))
        style = _STYLES[place % len(_STYLES)]
        places = range(len(layers))
        (line,) = axes.plot(places, mean.tolist(), style, label=name, markersize=4)
        low, high = (mean - error).tolist(), (mean + error).tolist()
        axes.fill_between(places, low, high, color=line.get_color(), alpha=0.15)
        if chance and name in chance:
            axes.axhline(chance[name], color=line.get_color(), ls=":", label="chance")
    axes.set_xticks(range(len(layers)), layers, rotation=90, fontsize=7)
    axes.set_ylabel("rank correlation with the intact model's map")
    axes.set_xlabel("randomised down to this layer")
    axes.set_ylim(lowest - 0.05, 1.05)
    handles = [line for line in axes.lines if line.get_label() in correlations]
    axes.legend(handles=handles, frameon=False)
    return figure


_STYLES = ("o-", "s--", "^-.", "v:", "D-", "x--", "P-.", "*:")
