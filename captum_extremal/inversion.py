r"""Activations of a layer, or one of its channels -> images that excite them.

Eq. 12 of the paper: the image

.. math:: I^* = \operatorname{argmax}_I
          \frac{(m \otimes \Phi_l(x)) \cdot \Phi_l(I)}{\|m \otimes \Phi_l(x)\|^2}

shows what a layer l keeps of x, and with a mask m over its channels what those channels
keep. The division makes 1 the score of x itself (for a mask of zeros and ones) and does
not move the maximum. The image obeys an `ImagePrior`, without which it would be noise.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from captum_extremal import _checks
from captum_extremal._captum import ProgressBar, progress_bar
from captum_extremal._model import (
    as_found,
    layer_output,
    made_in_inference_mode,
    training_layers,
)
from captum_extremal.image_priors import (
    ImagePrior,
    colour_root,
    random_views,
    spectrum_scale,
    spectrum_to_image,
    total_variation,
    view,
)

_START = 0.01  # standard deviation of the first coefficients: a nearly grey image
_SMALL = 1e-5  # share of the largest gradient below which Adam sees rounding errors
_AWAKE_BY = 15  # the step by which a score must have moved
_MOST_PREFIX_TOKENS = 8  # class and register tokens of a transformer


@dataclass(frozen=True, eq=False)
class Inversion:
    """Images made for a layer.

    Attributes:
        images: To be shown, in [0, 1], (N, C, H, W).
        inputs: The same normalised, as the model takes them, (N, C, H, W).
        scores: What was maximised, at the end and of the images as they are, (N,).
        history: The same at each step, of the view that the step saw, (N, iterations).

    Example:
        >>> grey = torch.full((1, 3, 2, 2), 0.5)
        >>> Inversion(grey, grey - 0.5, torch.ones(1), torch.ones(1, 4)).scores
        tensor([1.])
    """

    images: Tensor
    inputs: Tensor
    scores: Tensor
    history: Tensor


@dataclass(frozen=True, eq=False)
class ChannelComparison:
    """The three columns of Fig. 9 for N images.

    Attributes:
        images: What was explained, to be shown, in [0, 1], (N, C, H, W).
        saliency: Of the masked channels (eq. 11, `channel_saliency`), (N, 1, H, W).
        original: The inversion of the whole activation.
        masked: The inversion of the masked activation.

    Example:
        >>> grey = torch.full((1, 3, 2, 2), 0.5)
        >>> made = Inversion(grey, grey - 0.5, torch.ones(1), torch.ones(1, 4))
        >>> ChannelComparison(grey, grey[:, :1], made, made).saliency.shape
        torch.Size([1, 1, 2, 2])
    """

    images: Tensor
    saliency: Tensor
    original: Inversion
    masked: Inversion


def channel_saliency(
    activations: Tensor, masks: Tensor, size: tuple[int, int], channel_dim: int = 1
) -> Tensor:
    r"""Where the masked channels are active (eq. 11), over the image.

    .. math:: v = \sum_k m^k \otimes \Phi_l^k(x)

    Args:
        activations: Of a layer, with channels along ``channel_dim`` and besides either
            rows and columns or the tokens of a transformer, whose class and register
            tokens come first and are left out.
        masks: One value for each channel, (N, K).
        size: Height and width of the image in pixels, to which v is brought by bilinear
            interpolation.
        channel_dim: The dimension of the channels, 1 for convolutions.

    Returns:
        v, (N, 1, H, W). It is negative where the channels are.

    Raises:
        ValueError: If the shapes do not agree, or the activations have no place in the
            image.
        TypeError: If a tensor is not floating point.

    Example:
        >>> activations = torch.tensor([[[[1.0]], [[10.0]], [[100.0]]]])  # 3 channels
        >>> channel_saliency(activations, torch.tensor([[1.0, 0.0, 0.5]]), (1, 2))
        tensor([[[[51., 51.]]]])
    """
    size = _size(size)
    masked = _masked(activations, masks, channel_dim)
    summed = masked.sum(dim=channel_dim, keepdim=True).movedim(channel_dim, 1)
    if summed.dim() == 3:
        rows, columns = _token_grid(summed.shape[2], size)
        summed = summed[:, :, -rows * columns :].unflatten(2, (rows, columns))
    if summed.dim() != 4:
        raise ValueError(
            "activations must have rows and columns, or tokens, besides their "
            f"channels, got {tuple(activations.shape)}"
        )
    return F.interpolate(summed, size, mode="bilinear", align_corners=False)


class FeatureInversion:
    r"""Images that excite a layer as an activation does, or one of its channels.

    `invert` shows what a layer keeps of an image (eq. 12), with a mask over the
    channels what these keep, `compare` both side by side (Fig. 9), `channel` what a
    channel looks for (Fig. 10). Each image starts grey and climbs by Adam on the
    spectrum of its `ImagePrior`; the scale of a score does not matter. All images of
    one call see the same views by chance, so that none depends on the others.

    Args:
        forward_func: The model, or a function of images (N, C, H, W) that runs it. It
            is neither moved nor put in evaluation mode. Images are made on the device
            and in the precision of the first parameter of ``layer`` or the model; on
            the CPU in float32 where there is none.
        layer: A module that runs once in each call and gives one tensor.
        mean: Of the model's normalisation ``(image - mean) / std``, one value for each
            colour; as many as the images have colours.
        std: Of the model's normalisation, likewise.
        channel_dim: The dimension of the layer's channels: 1 for convolutions, 2 (or
            -1) for transformers' (N, tokens, features).
        prior: What the images must be like.
        iterations: Steps for each image, of one forward and backward each.
        learning_rate: Of Adam, with coefficients of a spectrum of variance 1 as unit.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If a value is out of range, or ``layer`` is no part of the model.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> model = nn.Conv2d(3, 2, 1, bias=False)
        >>> weight = torch.tensor([[1.0, -1.0, -1.0], [0.0, 0.0, 1.0]])
        >>> model.weight = nn.Parameter(weight[:, :, None, None])  # red, blue
        >>> inversion = FeatureInversion(model, model, iterations=40)
        >>> red, blue = inversion.channel([0, 1], size=(16, 16)).images
        >>> red.mean((1, 2)).argmax(), blue.mean((1, 2)).argmax()
        (tensor(0), tensor(2))

    References:
        Fong, Patrick, Vedaldi: Understanding Deep Networks via Extremal Perturbations
        and Smooth Masks. ICCV 2019, Sec. 5. Olah, Mordvintsev, Schubert: Feature
        Visualization. Distill, 2017.
    """

    def __init__(
        self,
        forward_func: Callable[..., object],
        layer: nn.Module,
        *,
        mean: Sequence[float] = (0.0, 0.0, 0.0),
        std: Sequence[float] = (1.0, 1.0, 1.0),
        channel_dim: int = 1,
        prior: ImagePrior | None = None,
        iterations: int = 256,
        learning_rate: float = 0.05,
    ) -> None:
        _checks.check_callable("forward_func", forward_func)
        _check_layer(forward_func, layer)
        self.forward_func = forward_func
        self.layer = layer
        self.mean, self.std = _normalisation(mean, std)
        self.channel_dim = _channel_dim(channel_dim)
        self.prior = ImagePrior() if prior is None else prior
        if not isinstance(self.prior, ImagePrior):
            raise TypeError(f"prior must be an ImagePrior, got {type(prior).__name__}")
        self.iterations = _checks.check_count("iterations", iterations)
        self.learning_rate = _checks.check_positive("learning_rate", learning_rate)

    @torch.inference_mode(False)
    def activations(self, inputs: Tensor) -> Tensor:
        """The layer's output, which `invert` takes.

        Args:
            inputs: Normalised images (N, C, H, W), as the model takes them.

        Returns:
            The layer's output, without a graph.

        Raises:
            TypeError: If ``inputs`` are not a floating point tensor, or the layer does
                not give one tensor.
            ValueError: If ``inputs`` are of another shape.
            RuntimeError: If the layer does not run exactly once.
        """
        self._check_inputs(inputs)
        with as_found(self.forward_func, inputs.device), torch.no_grad():
            return layer_output(self.forward_func, self.layer, inputs.detach().clone())

    @torch.inference_mode(False)
    def invert(
        self,
        activations: Tensor,
        masks: Tensor | None = None,
        *,
        size: tuple[int, int] = (224, 224),
        seed: int = 0,
        images_per_run: int = 8,
        show_progress: bool = False,
    ) -> Inversion:
        """An image for each activation (eq. 12).

        Args:
            activations: What `activations` gives for images of this size, (N, ...).
            masks: Weights of the channels, (N, K), for example the masks of a channel
                perturbation, in [0, 1]; None for the whole activation.
            size: Height and width of the images in pixels.
            seed: Where the images start and how they are moved: the same seed gives the
                same images.
            images_per_run: Bounds the images of one forward. The result is the same for
                every value.
            show_progress: Whether to show a progress bar (tqdm, on stderr).

        Returns:
            N images; their scores are 1 where they excite the (masked) channels as
            much as the activation itself.

        Raises:
            TypeError: If an argument is of the wrong type.
            ValueError: If shapes do not agree, a value is not finite or out of range,
                or nothing of an activation is left.
            RuntimeError: If the layer does not run exactly once, or no gradient reaches
                the image, as from a channel whose ReLU is off everywhere.
        """
        if masks is None:
            _checks.check_floating("activations", activations)
            target = activations.detach().clone()
        else:
            target = _masked(activations, masks, self.channel_dim)
        target = target.float()
        squares = target.flatten(1).square().sum(dim=1)
        if not squares.isfinite().all():
            raise ValueError("activations and masks must be finite, got NaN or inf")
        if not squares.all():
            row = int(squares.argmin())
            raise ValueError(
                f"activations must not be 0 everywhere, got 0 in row {row}"
                + (" once masked" if masks is not None else "")
            )

        def score(found: Tensor, rows: Tensor) -> Tensor:
            return (target[rows] * found).flatten(1).sum(dim=1) / squares[rows]

        def fits(found: Tensor) -> None:
            if found.shape[1:] != target.shape[1:]:
                raise ValueError(
                    f"activations must be of shape (N, "
                    f"{', '.join(map(str, found.shape[1:]))}), which the layer gives "
                    f"for images of size {tuple(size)}, got {tuple(target.shape)}"
                )

        rows = torch.arange(len(target), device=target.device)
        return self._make(score, fits, rows, size, seed, images_per_run, show_progress)

    @torch.inference_mode(False)
    def channel(
        self,
        channels: int | Sequence[int] | Tensor,
        *,
        size: tuple[int, int] = (224, 224),
        seed: int = 0,
        images_per_run: int = 8,
        show_progress: bool = False,
    ) -> Inversion:
        """An image for each channel, which maximises the channel's mean (Fig. 10).

        Args:
            channels: Indices of channels, from 0.
            size: As in `invert`.
            seed: As in `invert`.
            images_per_run: As in `invert`.
            show_progress: As in `invert`.

        Returns:
            An image for each channel; the scores are the means of the channels, in the
            layer's own units.

        Raises:
            TypeError: If an argument is of the wrong type.
            ValueError: If the layer has no such channel, or a value is out of range.
            RuntimeError: If the layer does not run exactly once, or no gradient reaches
                the image, as from a channel whose ReLU is off everywhere.
        """
        device, _ = self._place()
        chosen = _channels(channels).to(device)

        def means(found: Tensor) -> Tensor:
            first = found.movedim(self.channel_dim, 1)
            return first.reshape(*first.shape[:2], -1).mean(dim=2)

        def score(found: Tensor, rows: Tensor) -> Tensor:
            return means(found).gather(1, chosen[rows, None])[:, 0]

        def fits(found: Tensor) -> None:
            count = found.shape[self.channel_dim]
            wrong = [k for k in chosen.tolist() if not 0 <= k < count]
            if wrong:
                raise ValueError(
                    f"channels must lie in 0 to {count - 1}, got {wrong[0]}"
                )

        rows = torch.arange(len(chosen), device=device)
        return self._make(score, fits, rows, size, seed, images_per_run, show_progress)

    def compare(
        self,
        inputs: Tensor,
        masks: Tensor,
        *,
        seed: int = 0,
        images_per_run: int = 8,
        show_progress: bool = False,
    ) -> ChannelComparison:
        """The columns of Fig. 9: saliency, inversion, inversion of what a mask keeps.

        Args:
            inputs: Normalised images (N, C, H, W), as the model takes them.
            masks: One value for each channel, (N, K).
            seed: As in `invert`.
            images_per_run: As in `invert`; there are two for each image.
            show_progress: As in `invert`.

        Returns:
            The three columns, and the images for display.

        Raises:
            TypeError: As `invert`.
            ValueError: As `invert` and `channel_saliency`.
            RuntimeError: As `invert`.
        """
        activations = self.activations(inputs)
        size = (inputs.shape[2], inputs.shape[3])
        saliency = channel_saliency(activations, masks, size, self.channel_dim)
        both = self.invert(
            torch.cat([activations, activations]),
            torch.cat([torch.ones_like(masks), masks]),
            size=size,
            seed=seed,
            images_per_run=images_per_run,
            show_progress=show_progress,
        )
        original, masked = (
            Inversion(*parts)
            for parts in zip(
                *(
                    getattr(both, name).chunk(2)
                    for name in ("images", "inputs", "scores", "history")
                ),
                strict=True,
            )
        )
        mean, std = self._mean_and_std(inputs)
        images = (inputs.detach() * std + mean).clamp(0, 1)
        return ChannelComparison(images, saliency, original, masked)

    def _make(
        self,
        score: Callable[[Tensor, Tensor], Tensor],
        fits: Callable[[Tensor], None],
        rows: Tensor,
        size: tuple[int, int],
        seed: int,
        images_per_run: int,
        show_progress: bool,
    ) -> Inversion:
        """All checks, then the images of all rows, a few at a time.

        ``score`` maps the layer's output and the row of each image to what is to be
        maximised, ``fits`` raises if an output is not what was expected.
        """
        size = _size(size)
        images_per_run = _checks.check_count("images_per_run", images_per_run)
        self._check_model()
        if len(rows) == 0:
            raise ValueError("activations must hold at least one example, got none")
        chunks = rows.split(images_per_run)
        with (
            as_found(self.forward_func, rows.device),
            torch.enable_grad(),
        ):
            fits(self._probe(size, rows.device))
            bar = progress_bar(
                show_progress, "Feature Inversion", len(chunks) * self.iterations
            )
            try:
                runs = [self._climb(score, chunk, size, seed, bar) for chunk in chunks]
            finally:
                bar.close()
        images, scores, history = (torch.cat(part) for part in zip(*runs, strict=True))
        if not (scores.isfinite().all() and images.isfinite().all()):
            raise RuntimeError(
                "layer must give finite activations and gradients, got NaN or inf"
            )
        return Inversion(images, self._normalised(images), scores, history)

    def _probe(self, size: tuple[int, int], device: torch.device) -> Tensor:
        """The layer's output for a grey image, in a whole forward that is checked."""
        _, dtype = self._place()
        grey = torch.full((1, len(self.mean), *size), 0.5, device=device, dtype=dtype)
        inputs = self._normalised(grey).requires_grad_()
        found = layer_output(self.forward_func, self.layer, inputs)
        if not found.requires_grad:
            raise RuntimeError(
                "forward_func must let gradients pass from the image to layer, but the "
                "layer's output has none (torch.no_grad, or detached?)"
            )
        dim = self.channel_dim
        if not -found.dim() < dim < found.dim():
            raise ValueError(
                f"channel_dim must be a dimension of the layer's output after the "
                f"first, {tuple(found.shape)}, got {dim}"
            )
        return found

    def _climb(
        self,
        score: Callable[[Tensor, Tensor], Tensor],
        rows: Tensor,
        size: tuple[int, int],
        seed: int,
        bar: ProgressBar,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradient ascent for some rows: images, final scores, scores of each step."""
        device, (_, dtype) = rows.device, self._place()
        generator = torch.Generator().manual_seed(seed)
        colours = len(self.mean)
        shape = (1, colours, size[0], size[1] // 2 + 1, 2)
        start = _START * torch.randn(shape, generator=generator)
        views = random_views(self.iterations, size, self.prior, generator).to(device)
        scale = spectrum_scale(size, self.prior.decay).to(device)
        root = colour_root(colours, self.prior.decorrelate).to(device)
        spectrum = start.to(device).repeat(len(rows), 1, 1, 1, 1).requires_grad_()
        optimizer = torch.optim.Adam([spectrum], self.learning_rate, eps=_SMALL)
        history = torch.empty(len(rows), self.iterations, device=device)

        def score_of(images: Tensor) -> Tensor:
            inputs = self._normalised(images.to(dtype))
            found = layer_output(self.forward_func, self.layer, inputs, go_on=False)
            return score(found.float(), rows)

        for step in range(self.iterations):
            images = spectrum_to_image(spectrum, size, scale, root)
            found = score_of(view(images, views[step]))
            penalty = self.prior.total_variation * total_variation(images)
            (gradient,) = torch.autograd.grad((penalty - found).sum(), spectrum)
            spectrum.grad = gradient / _largest(gradient)
            optimizer.step()
            history[:, step] = found.detach()
            bar.update()
            if step == min(_AWAKE_BY, self.iterations - 1):
                _check_awake(history[:, : step + 1], rows)
        with torch.no_grad():
            images = spectrum_to_image(spectrum, size, scale, root)
            return images, score_of(images), history

    def _mean_and_std(self, like: Tensor) -> tuple[Tensor, Tensor]:
        mean, std = like.new_tensor(self.mean), like.new_tensor(self.std)
        return mean[:, None, None], std[:, None, None]

    def _normalised(self, images: Tensor) -> Tensor:
        mean, std = self._mean_and_std(images)
        return (images - mean) / std

    def _place(self) -> tuple[torch.device, torch.dtype]:
        """Where the model is and in what precision, by its first parameter."""
        model = self.forward_func
        modules = [self.layer, *([model] if isinstance(model, nn.Module) else [])]
        tensors = itertools.chain(*(m.parameters() for m in modules))
        first = next((t for t in tensors if t.is_floating_point()), torch.empty(0))
        return first.device, first.dtype

    def _check_inputs(self, inputs: Tensor) -> None:
        _checks.check_floating("inputs", inputs)
        colours = len(self.mean)
        if inputs.dim() != 4 or inputs.shape[1] != colours or 0 in inputs.shape:
            raise ValueError(
                f"inputs must be of shape (N, {colours}, H, W), as mean has {colours} "
                f"values, got {tuple(inputs.shape)}"
            )

    def _check_model(self) -> None:
        if made_in_inference_mode(self.forward_func):
            raise RuntimeError(
                "forward_func was made inside torch.inference_mode(), so no gradient "
                "can pass through it; create or load the model outside of it"
            )
        layers = training_layers(self.forward_func)
        if layers:
            warnings.warn(
                f"forward_func is in training mode (layers {', '.join(layers[:3])}"
                f"{', ...' if len(layers) > 3 else ''}): its activations depend on the "
                "batch or on chance. Call forward_func.eval() for meaningful images",
                stacklevel=4,
            )


def _check_layer(forward_func: Callable[..., object], layer: nn.Module) -> None:
    if not isinstance(layer, nn.Module):
        raise TypeError(
            f"layer must be a module of the model, got {type(layer).__name__}"
        )
    if isinstance(forward_func, nn.Module) and all(
        module is not layer for module in forward_func.modules()
    ):
        raise ValueError(
            f"layer must be a module of forward_func, got a {type(layer).__name__} "
            "that is not among its modules"
        )


def _normalisation(
    mean: Sequence[float], std: Sequence[float]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    if len(mean) != len(std) or len(mean) == 0:
        raise ValueError(
            f"mean and std must have one value for each colour, got {len(mean)} and "
            f"{len(std)}"
        )
    for value in mean:
        if not math.isfinite(value):
            raise ValueError(f"mean must be finite, got {value}")
    return (
        tuple(float(value) for value in mean),
        tuple(_checks.check_positive("std", value) for value in std),
    )


def _size(size: tuple[int, int]) -> tuple[int, int]:
    if len(size) != 2:
        raise ValueError(f"size must be (height, width), got {size}")
    return _checks.check_count("size", size[0]), _checks.check_count("size", size[1])


def _channel_dim(channel_dim: int) -> int:
    if isinstance(channel_dim, bool) or not isinstance(channel_dim, int):
        raise TypeError(f"channel_dim must be an int, got {channel_dim!r}")
    if channel_dim == 0:
        raise ValueError("channel_dim must not be 0, the dimension of the examples")
    return channel_dim


def _channels(channels: int | Sequence[int] | Tensor) -> Tensor:
    chosen = torch.as_tensor(channels).flatten()
    if chosen.is_floating_point() or chosen.dtype == torch.bool:
        raise TypeError(f"channels must be whole numbers, got {chosen.dtype}")
    return chosen.long()


def _masked(activations: Tensor, masks: Tensor, channel_dim: int) -> Tensor:
    """The activations with each channel times its mask; a copy."""
    _checks.check_floating("activations", activations)
    _checks.check_floating("masks", masks)
    dim = _channel_dim(channel_dim)
    if not -activations.dim() < dim < activations.dim():
        raise ValueError(
            f"channel_dim must be a dimension of activations after the first, "
            f"{tuple(activations.shape)}, got {dim}"
        )
    legal = (len(activations), activations.shape[dim])
    if tuple(masks.shape) != legal:
        raise ValueError(
            f"masks must be of shape {legal}, one value for each channel, got "
            f"{tuple(masks.shape)}"
        )
    shape = [1] * activations.dim()
    shape[0], shape[dim] = legal
    masks = masks.detach().to(activations.device, activations.dtype)
    return activations.detach() * masks.reshape(shape)


def _largest(gradient: Tensor) -> Tensor:
    """The largest absolute value of each image, to divide by."""
    largest = gradient.abs().flatten(1).amax(dim=1).clamp(min=1e-30)
    return largest.reshape(-1, *[1] * (gradient.dim() - 1))


def _check_awake(history: Tensor, rows: Tensor) -> None:
    """An error if a score is the same for all views and steps so far."""
    asleep = (history == history[:, :1]).all(dim=1)
    if history.shape[1] > 1 and asleep.any():
        row = int(rows[asleep][0])
        raise RuntimeError(
            f"layer must give a gradient, but the score of image {row} (from 0) is "
            f"{float(history[asleep][0, 0]):.3g} for every view of a grey image, as of "
            "a ReLU that is off everywhere; choose the module before it"
        )


def _token_grid(count: int, size: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of patches, of an image cut into ``count`` tokens or a few less.

    A patch is a square that fits both sides; of those with at most ``count`` patches
    the smallest counts.
    """
    height, width = size
    common = math.gcd(height, width)
    for patch in range(1, common + 1):
        rows, columns = height // patch, width // patch
        if common % patch == 0 and rows * columns <= count:
            if count - rows * columns <= _MOST_PREFIX_TOKENS:
                return rows, columns
            break
    raise ValueError(
        f"activations must have the tokens of square patches of an image of size "
        f"{size}, got {count} tokens"
    )
