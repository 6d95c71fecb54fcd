"""An image and its masks, of pixels or of channels -> a matplotlib figure.

`plot_result` draws one image of an `ExtremalResult` as the paper's Figures 1 and 3:
what each mask keeps, the masks themselves, and the scores of the kept and of the
remaining part over the area. `plot_channels` draws one of a `ChannelResult` as Figure
8: where the kept channels see something, and the scores over their number.
`plot_methods` sets maps of several methods side by side, as Figure 2, and
`plot_area_growth` shows what masks of growing area keep of several images, as Figure 5.
`plot_comparison` draws the columns of Figure 9, `plot_class_channels` channels and what
excites them, as Figure 10. No window is opened and pyplot is not touched: a `Figure`
comes back, to be saved or shown by the caller.

Convention:
    Images are (C, H, W) with 1 or 3 channels and values in [0, 1], a mask is (1, H, W):
    1 = kept, 0 = fully perturbed. The outline of a mask is its level 0.5.
"""

from captum_extremal.visualization._drawing import (
    DELETED,
    PERTURBED,
    PRESERVED,
    UNTOUCHED,
)
from captum_extremal.visualization.growth import plot_area_growth
from captum_extremal.visualization.inversions import (
    plot_class_channels,
    plot_comparison,
)
from captum_extremal.visualization.overlays import (
    denormalize,
    overlay_mask,
    overlay_saliency,
    overlay_signed,
)
from captum_extremal.visualization.results import plot_channels, plot_result
from captum_extremal.visualization.side_by_side import plot_methods

__all__ = [
    "DELETED",
    "PERTURBED",
    "PRESERVED",
    "UNTOUCHED",
    "denormalize",
    "overlay_mask",
    "overlay_saliency",
    "overlay_signed",
    "plot_area_growth",
    "plot_channels",
    "plot_class_channels",
    "plot_comparison",
    "plot_methods",
    "plot_result",
]
