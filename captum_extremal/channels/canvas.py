"""Coefficients -> images under an `ImagePrior`, and the optimiser that moves them."""

from __future__ import annotations

import torch
from torch import Tensor

from captum_extremal.channels.image_priors import (
    ImagePrior,
    colour_root,
    random_views,
    spectrum_scale,
    spectrum_to_image,
    view,
)

_START = 0.01  # standard deviation of the first coefficients: a nearly grey image


class _Canvas:
    """The images of one call: where all start, and the views of each step.

    They are float32 whatever the default type and the caller's autocast.
    """

    def __init__(
        self,
        prior: ImagePrior,
        colours: int,
        size: tuple[int, int],
        steps: int,
        seed: int,
        device: torch.device,
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        shape = (1, colours, size[0], size[1] // 2 + 1, 2)
        start = torch.randn(shape, generator=generator, dtype=torch.float32)
        self.start = (_START * start).to(device)
        self._views = random_views(steps, size, prior, generator).to(device)
        self._scale = spectrum_scale(size, prior.decay).to(device)
        self._root = colour_root(colours, prior.decorrelate).to(device)
        self._size = size

    def images(self, spectrum: Tensor) -> Tensor:
        with torch.autocast(spectrum.device.type, enabled=False):
            return spectrum_to_image(spectrum, self._size, self._scale, self._root)

    def seen(self, images: Tensor, step: int) -> Tensor:
        with torch.autocast(images.device.type, enabled=False):
            return view(images, self._views[step])
