"""`ChannelResult`: the channels that a run kept and what can be read off them.

The masks of all areas together show how many channels a model needs (paper eq. 10 and
Fig. 8, right), and laid on the activation they show where these see something (eq. 11
and Fig. 8, left).
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from captum_extremal._base import files
from captum_extremal.curve import Curve, monotonic, smallest_sufficient
from captum_extremal.results.saliency import saliency
from captum_extremal.results.stability import Stability

_FORMAT = "captum_extremal.ChannelResult/1"


@dataclass(frozen=True, eq=False)
class ChannelResult:
    """Channel masks for N images and A areas, their scores and how they were found.

    Scores are what the reward function makes of the model's output: with the default
    reward the output of the target, unscaled (logits if the model returns logits).

    Attributes:
        masks: (N, A, K) float32, 1 = kept, for the K channels of the layer; a tuple of
            such tensors if the layer has several. Zeros and ones from the solvers of
            channels; at 0.5 exactly of the asked area from any.
        areas: The A areas, as asked for: an int is a number of channels, a float a
            fraction of them.
        scores: Scores of what each mask keeps, Phi(m * a), (N, A).
        complement_scores: Scores of what it leaves out, Phi((1 - m) * a), (N, A).
        input_score: Scores of the untouched inputs, Phi(a), (N,).
        perturbed_score: Scores where no channel is kept, (N,).
        activations: The layer's activation a, (N, ..., K, ...); a tuple if masks are.
        channel_dim: Which dimension of it the channels are, from 1.
        history: Named series of the search, each (N, A, T) for T iterations, NaN after
            a search's early end.
        settings: What the run was asked to do; JSON-serialisable.
        stability: How far several runs agree; None but with the solver `Restarts`.

    Example:
        >>> import torch
        >>> result = ChannelResult(
        ...     masks=torch.tensor([[[0.0, 1.0, 0.0], [1.0, 1.0, 0.0]]]),
        ...     areas=(1, 2),
        ...     scores=torch.tensor([[1.0, 3.0]]),
        ...     complement_scores=torch.tensor([[2.0, 0.0]]),
        ...     input_score=torch.tensor([2.5]),
        ...     perturbed_score=torch.tensor([0.0]),
        ...     activations=torch.tensor([[[5.0, 6.0], [7.0, 8.0], [9.0, 9.0]]]),
        ... )
        >>> result.counts, result.smallest_sufficient_count()
        ((1, 2), tensor([2.]))
        >>> result.smallest_sufficient_mask()
        tensor([[1., 1., 0.]])
        >>> result.saliency()
        tensor([[12., 14.]])
    """

    masks: Tensor | tuple[Tensor, ...]
    areas: tuple[float, ...]
    scores: Tensor
    complement_scores: Tensor
    input_score: Tensor
    perturbed_score: Tensor
    activations: Tensor | tuple[Tensor, ...]
    channel_dim: int = 1
    history: dict[str, Tensor] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    stability: Stability | None = None

    @property
    def counts(self) -> tuple[int, ...]:
        """The channels that each area keeps, of all the layer's tensors together.

        With `scores` the curve of the paper's Fig. 8.
        """
        kept = [(mask[0] >= 0.5).sum(dim=1) for mask in _tuple(self.masks)]
        return tuple(torch.stack(kept).sum(dim=0).tolist())

    def smallest_sufficient_count(
        self, threshold: float | Tensor | None = None
    ) -> Tensor:
        """a* = min{a : Phi(m_a * a) >= Phi_0}, in channels (eq. 10).

        Args:
            threshold: Phi_0, one number or one for each image (N,). None for the score
                of the untouched input, as in the paper.

        Returns:
            (N,), NaN where none of the areas reaches the threshold.
        """
        phi_0 = self.input_score if threshold is None else threshold
        return smallest_sufficient(self.counts, self.scores, phi_0)

    def smallest_sufficient_mask(
        self, threshold: float | Tensor | None = None
    ) -> Tensor | tuple[Tensor, ...]:
        """The mask m_{a*} of the smallest sufficient set of channels (eq. 10).

        Args:
            threshold: As in `smallest_sufficient_count`.

        Returns:
            (N, K), NaN where none of the areas reaches the threshold; a tuple if
            ``masks`` is one.
        """
        a_star = self.smallest_sufficient_count(threshold).reshape(-1, 1)
        counts = torch.tensor(self.counts).to(a_star)
        place = self.scores.where(counts == a_star, -torch.inf).argmax(dim=1)
        images = torch.arange(len(place), device=place.device)
        chosen = tuple(
            torch.where(a_star.isnan().to(mask.device), torch.nan, mask[images, place])
            for mask in _tuple(self.masks)
        )
        return chosen if isinstance(self.masks, tuple) else chosen[0]

    def saliency(self, masks: Tensor | None = None) -> Tensor:
        """Where the kept channels see something: v = sum_k m^k * a^k (eq. 11).

        Args:
            masks: (N, K), for example ``result.masks[:, 0]``; None for
                `smallest_sufficient_mask`.

        Returns:
            The activation without its channel dimension, (N, ...); NaN where a mask is.

        Raises:
            TypeError: If the layer has several tensors: a map of each is meant then;
                or ``masks`` are not a floating point tensor.
            ValueError: If ``masks`` is not (N, K).
        """
        if not isinstance(self.activations, Tensor):
            raise TypeError(
                "saliency needs a layer with one tensor, got "
                f"{len(self.activations)}: take one of each with dataclasses.replace"
            )
        chosen = self.smallest_sufficient_mask() if masks is None else masks
        assert isinstance(chosen, Tensor)
        return saliency(self.activations, chosen, self.channel_dim)

    def curve(self, index: int = 0) -> Curve:
        """The scores of one of the images over its counts, in growing order."""
        rows = [getattr(self, name)[index] for name in files.SCORES]
        runs = None if self.stability is None else self.stability.of_image(index)
        return Curve.of(self.counts, *rows, runs=runs)

    def is_monotonic(self) -> Tensor:
        """Whether the score grows with the count below a*, for each image (eq. 8).

        Returns:
            (N,) bool. True where fewer than two areas are left to compare.
        """
        return monotonic(self.counts, self.scores, self.smallest_sufficient_count())

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything to one safetensors file; its JSON sits in the metadata.

        The file appears only once it is complete.

        Args:
            path: Where to; an existing file is replaced.

        Raises:
            OSError: If the folder does not exist or cannot be written to.
            TypeError: If JSON cannot hold the settings.
        """
        tensors = {name: getattr(self, name) for name in files.SCORES}
        tensors |= files.packed("masks", self.masks)
        tensors |= files.packed("activations", self.activations)
        tensors |= {f"history.{name}": s for name, s in self.history.items()}
        if self.stability is not None:
            tensors |= self.stability.packed()
        about = {
            "format": _FORMAT,
            "is_tuple": isinstance(self.masks, tuple),
            "areas": self.areas,
            "channel_dim": self.channel_dim,
            "settings": self.settings,
        }
        files.write(path, tensors, about)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ChannelResult:
        """Read what `save` wrote; nothing in the file is executed.

        Args:
            path: A file written by `save`.

        Returns:
            The same result, on the CPU.

        Raises:
            OSError: If there is no such file, or it cannot be read.
            ValueError: If the file is not one of `save`.
        """
        return files.load(path, "ChannelResult", _FORMAT, cls._from_file)

    @classmethod
    def _from_file(
        cls, about: dict[str, Any], tensors: dict[str, Tensor]
    ) -> ChannelResult:
        is_tuple = about["is_tuple"]
        return cls(
            masks=files.unpacked("masks", tensors, is_tuple),
            activations=files.unpacked("activations", tensors, is_tuple),
            areas=tuple(about["areas"]),
            channel_dim=about["channel_dim"],
            **{name: tensors[name] for name in files.SCORES},
            history=files.named("history.", tensors),
            settings=about["settings"],
            stability=Stability.from_file(tensors),
        )


def _tuple(tensors: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tensors if isinstance(tensors, tuple) else (tensors,)
