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
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from captum_extremal._base import checks
from captum_extremal._base.captum_door import ProgressBar, progress_bar
from captum_extremal._base.causes import batches_explained, gradients_of
from captum_extremal._base.features import hint_at_features
from captum_extremal._base.layer import Layer, check_module
from captum_extremal._base.model import (
    Watch,
    as_found,
    check_differentiable,
    module_of,
    uncompiled,
)
from captum_extremal.channels.canvas import _Canvas
from captum_extremal.channels.image_priors import (
    ImagePrior,
    total_variation,
)
from captum_extremal.results.saliency import check_sufficient, masked, saliency

_SMALL = 1e-5  # share of the largest gradient below which Adam sees rounding errors
_VIEWS = 16  # of the first image: a score without gradient must differ among them
_PREFIX_TOKENS = (0, 1, 2, 4, 5, 8)  # class and register tokens of a transformer
_CUT = (
    "forward_func must let gradients pass from the image to layer, but the layer's "
    "output has none (torch.no_grad, detached, or inside of torch.utils.checkpoint "
    "without use_reentrant=False?)"
)


@dataclass(frozen=True, eq=False)
class Inversion:
    """Images made for a layer.

    Attributes:
        images: To be shown, in [0, 1], (N, C, H, W).
        inputs: The same normalised, as the model takes them, (N, C, H, W).
        scores: What was maximised, at the end and of the images as they are, (N,);
            without the total variation of the prior.
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
    activations: Tensor,
    masks: Tensor,
    size: tuple[int, int],
    channel_dim: int = 1,
    grid: tuple[int, int] | None = None,
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
        grid: Rows and columns of a transformer's patches; None for those of square
            patches that fit ``size`` and leave 0, 1, 2, 4, 5 or 8 tokens for the
            class and registers.

    Returns:
        v, (N, 1, H, W). It is negative where the channels are, NaN where a mask is.

    Raises:
        ValueError: If the shapes do not agree, or the activations have no place in the
            image, or no single one: then ``grid`` is needed.
        TypeError: If a tensor is not floating point.

    Example:
        >>> activations = torch.tensor([[[[1.0]], [[10.0]], [[100.0]]]])  # 3 channels
        >>> channel_saliency(activations, torch.tensor([[1.0, 0.0, 0.5]]), (1, 2))
        tensor([[[[51., 51.]]]])
    """
    size = _pair("size", size)
    with torch.no_grad():
        summed = saliency(activations, masks, channel_dim)
    if summed.dim() == 2:
        grid = _token_grid(summed.shape[1], size, grid)
        summed = summed[:, -grid[0] * grid[1] :].unflatten(1, grid)
    if summed.dim() != 3:
        raise ValueError(
            "activations must have rows and columns, or tokens, besides their "
            f"channels, got {tuple(activations.shape)}"
        )
    if grid is not None and tuple(summed.shape[1:]) != _pair("grid", grid):
        raise ValueError(
            f"grid must be that of the activations, {tuple(summed.shape[1:])}, got "
            f"{tuple(grid)}"
        )
    return F.interpolate(summed[:, None], size, mode="bilinear", align_corners=False)


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
            of the first parameter of the model, or of ``layer`` where the model has
            none or is not known, and seen by the model in the precision of that
            parameter; on the CPU in float32 where there is none.
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
        checks.check_callable("forward_func", forward_func)
        _check_layer(forward_func, layer)
        self.forward_func = forward_func
        self.layer = layer
        self.mean, self.std = _normalisation(mean, std)
        self.channel_dim = _channel_dim(channel_dim)
        self.prior = ImagePrior() if prior is None else prior
        if not isinstance(self.prior, ImagePrior):
            raise TypeError(f"prior must be an ImagePrior, got {type(prior).__name__}")
        self._warned_of_training = False
        self._hinted_at_features = False
        self.iterations = checks.check_count("iterations", iterations)
        self.learning_rate = checks.check_positive("learning_rate", learning_rate)

    def activations(self, inputs: Tensor) -> Tensor:
        """The layer's output, which `invert` takes.

        Args:
            inputs: Normalised images (N, C, H, W), as the model takes them. They are
                brought to the device and precision of its first parameter.

        Returns:
            The layer's output, without a graph.

        Raises:
            TypeError: If ``inputs`` are not a floating point tensor, or the layer does
                not give one tensor.
            ValueError: If ``inputs`` are of another shape, or the layer does not run
                exactly once.
            RuntimeError: If the model was made inside ``torch.inference_mode()``.
        """
        self._check_inputs(inputs)
        check_differentiable(self.forward_func)
        first = self._first_parameter()
        with torch.inference_mode(False), torch.no_grad():
            images = inputs.detach().clone()
            if first is not None:
                images = images.to(first.device, first.dtype)
            with as_found(self.forward_func, images.device), uncompiled():
                return self._watched(images)

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
            activations: What `activations` gives for images of this size, (N, ...), on
                any device.
            masks: Weights of the channels, (N, K), for example the masks of a channel
                perturbation, in [0, 1]; None for the whole activation.
            size: Height and width of the images in pixels.
            seed: Where the images start and how they are moved. The same seed gives the
                same images, exactly so on the CPU; elsewhere up to rounding.
            images_per_run: Bounds the images of one forward. It changes the result by
                rounding alone.
            show_progress: Whether to show a progress bar (tqdm, on stderr).

        Returns:
            N images; their scores are 1 where they excite the (masked) channels as
            much as the activation itself.

        Raises:
            TypeError: If an argument is of the wrong type.
            ValueError: If shapes do not agree, a value is not finite or out of range,
                nothing of an activation is left, or the layer does not run exactly
                once.
            RuntimeError: If no gradient reaches the image, as from a channel whose ReLU
                is off everywhere, or it is not finite.
        """
        size = _pair("size", size)
        with torch.inference_mode(False):
            if masks is None:
                checks.check_floating("activations", activations)
                target, after = activations.detach().clone(), ""
            else:
                target = _masked(activations, masks, self.channel_dim)
                self._hint_at_features(target)
                after = " once masked"
            _check_rows(target)
            called = [f"row {row}{after}" for row in range(len(target))]
            return self._invert(
                target, called, size, seed, images_per_run, show_progress
            )

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
            ValueError: If the layer has no such channel, a value is out of range, or
                the layer does not run exactly once.
            RuntimeError: If no gradient reaches the image, as from a channel whose ReLU
                is off everywhere, or it is not finite.
        """
        size = _pair("size", size)
        chosen = _channels(channels)

        def score(found: Tensor, rows: Tensor) -> Tensor:
            first = found.movedim(self.channel_dim, 1)
            means = first.reshape(*first.shape[:2], -1).mean(dim=2)
            wanted = chosen.to(means.device)[rows.to(means.device), None]
            return means.gather(1, wanted)[:, 0]

        def fits(found: Tensor) -> None:
            self._hint_at_features(found)
            count = found.shape[self.channel_dim]
            wrong = [k for k in chosen.tolist() if not 0 <= k < count]
            if wrong:
                raise ValueError(
                    f"channels must lie in 0 to {count - 1}, got {wrong[0]}"
                )

        called = [f"channel {channel}" for channel in chosen.tolist()]
        with torch.inference_mode(False):
            return self._make(
                score, fits, called, size, seed, images_per_run, show_progress
            )

    def compare(
        self,
        inputs: Tensor,
        masks: Tensor,
        *,
        grid: tuple[int, int] | None = None,
        seed: int = 0,
        images_per_run: int = 8,
        show_progress: bool = False,
    ) -> ChannelComparison:
        """The columns of Fig. 9: saliency, inversion, inversion of what a mask keeps.

        Args:
            inputs: As in `activations`.
            masks: One value for each channel, (N, K).
            grid: Of a transformer's patches, as in `channel_saliency`.
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
        self._check_inputs(inputs)
        checks.check_floating("masks", masks)
        with torch.inference_mode(False):
            if masks.dim() == 2:
                check_sufficient(masks)
            activations = self.activations(inputs)
            size = (inputs.shape[2], inputs.shape[3])
            saliency = channel_saliency(
                activations, masks, size, self.channel_dim, grid
            )
            kept = _masked(activations, masks, self.channel_dim)
            self._hint_at_features(kept)
            rows = range(len(inputs))
            both = self._invert(
                torch.cat([activations, kept]),
                [f"row {i}{after}" for after in ("", " once masked") for i in rows],
                size,
                seed,
                images_per_run,
                show_progress,
            )
            shown = inputs.detach().to(activations.device)
            mean, std = self._mean_and_std(shown)
            images = (shown * std + mean).clamp(0, 1)
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
        return ChannelComparison(images, saliency, original, masked)

    def _invert(
        self,
        target: Tensor,
        called: Sequence[str],
        size: tuple[int, int],
        seed: int,
        images_per_run: int,
        show_progress: bool,
    ) -> Inversion:
        """An image for each row of ``target``, which errors call ``called``."""
        # The squares of float32 leave its range; not every device has float64.
        precise = target.float().cpu().double().flatten(1)
        squares = precise.square().sum(dim=1)
        if not squares.isfinite().all():
            row = squares.isfinite().tolist().index(False)
            raise ValueError(
                f"activations and masks must be finite, got NaN or inf in {called[row]}"
            )
        if not squares.all():
            row = int(squares.argmin())
            raise ValueError(
                f"activations must not be 0 everywhere, got 0 in {called[row]}"
            )
        device, _ = self._place()
        weights = (precise / squares[:, None]).float().reshape(target.shape).to(device)

        def score(found: Tensor, rows: Tensor) -> Tensor:
            chosen = weights[rows].to(found.device)
            return (chosen * found).flatten(1).sum(dim=1)

        def fits(found: Tensor) -> None:
            if found.shape[1:] != target.shape[1:]:
                raise ValueError(
                    f"activations must be of shape (N, "
                    f"{', '.join(map(str, found.shape[1:]))}), which the layer gives "
                    f"for images of size {size}, got {tuple(target.shape)}"
                )

        return self._make(
            score, fits, called, size, seed, images_per_run, show_progress
        )

    def _make(
        self,
        score: Callable[[Tensor, Tensor], Tensor],
        fits: Callable[[Tensor], None],
        called: Sequence[str],
        size: tuple[int, int],
        seed: int,
        images_per_run: int,
        show_progress: bool,
    ) -> Inversion:
        """All checks, then the images of all rows, a few at a time.

        ``score`` maps the layer's output and the row of each image to what is to be
        maximised, ``fits`` raises if an output is not what was expected. ``called``
        names the rows.
        """
        seed = checks.check_count("seed", seed, minimum=0)
        images_per_run = checks.check_count("images_per_run", images_per_run)
        check_differentiable(self.forward_func)
        device, _ = self._place()
        chunks = torch.arange(len(called), device=device).split(images_per_run)
        canvas = _Canvas(
            self.prior, len(self.mean), size, self.iterations, seed, device
        )
        with (
            as_found(self.forward_func, device),
            uncompiled(),
            torch.enable_grad(),
        ):
            fits(self._probe(size))
            self._check_awake(score, chunks, called, canvas)
            bar = progress_bar(
                show_progress, "Feature Inversion", len(chunks) * self.iterations
            )
            try:
                runs = [self._climb(score, chunk, canvas, bar) for chunk in chunks]
            finally:
                bar.close()
        images, scores, history = (torch.cat(part) for part in zip(*runs, strict=True))
        if not (scores.isfinite().all() and images.isfinite().all()):
            raise RuntimeError(
                "layer must give finite activations and gradients, got NaN or inf"
            )
        return Inversion(images, self._normalised(images), scores, history)

    def _probe(self, size: tuple[int, int]) -> Tensor:
        """The layer's output for a grey image, in a whole forward that is checked."""
        device, dtype = self._place()
        grey = torch.full((1, len(self.mean), *size), 0.5, device=device, dtype=dtype)
        inputs = self._normalised(grey).requires_grad_()
        found = self._watched(inputs)
        if not found.requires_grad:
            raise RuntimeError(_CUT)
        checks.check_channel_dim(found.shape, self.channel_dim)
        return found

    def _watched(self, inputs: Tensor) -> Tensor:
        """The layer's output in a whole forward, of which a first warning may come."""
        watch = Watch(
            self.forward_func,
            inputs.device,
            "activations",
            "images",
            self._warned_of_training,
        )
        try:
            with watch.forwards():
                found = self._read(inputs)
            watch.warn(found[:1], lambda: self._read(inputs[:1]))
        finally:
            self._warned_of_training = watch.warned
        if found.dim() == 0 or len(found) != len(inputs):
            raise ValueError(
                f"layer must give one row for each of the {len(inputs)} images, got "
                f"an activation of shape {tuple(found.shape)}"
            )
        return found

    def _read(self, inputs: Tensor, go_on: bool = True) -> Tensor:
        layer = Layer(self.forward_func, self.layer)
        return layer.read_one(lambda: self.forward_func(inputs), go_on)

    def _check_awake(
        self,
        score: Callable[[Tensor, Tensor], Tensor],
        chunks: Sequence[Tensor],
        called: Sequence[str],
        canvas: _Canvas,
    ) -> None:
        """An error if a row has no gradient to climb, before any row climbs.

        All rows start at the same image and see it in the same views. A row without
        gradient in the first view is given up if its score is the same in the others.
        """
        asleep: list[int] = []
        for rows in chunks:
            spectrum = canvas.start.repeat(len(rows), 1, 1, 1, 1).requires_grad_()
            seen = canvas.seen(canvas.images(spectrum), 0)
            found = score(self._output(seen), rows)
            remedy = "An inversion needs a differentiable model"
            (gradient,) = gradients_of(found.sum(), (spectrum,), remedy)
            if gradient is None:
                raise RuntimeError(_CUT)
            gradient = gradient.flatten(1)
            finite = found.isfinite().to(rows.device) & gradient.isfinite().all(dim=1)
            if not finite.all():
                raise RuntimeError(
                    "layer must give finite activations and gradients, got NaN or inf "
                    f"for {_named(called, rows[~finite].tolist())}"
                )
            asleep += rows[(gradient == 0).all(dim=1)].tolist()
        values: dict[int, set[float]] = {row: set() for row in asleep}
        with torch.no_grad():
            image = canvas.images(canvas.start)
            for step in range(min(_VIEWS, self.iterations) if asleep else 0):
                output = self._output(canvas.seen(image, step))
                for row in asleep:
                    values[row] |= set(
                        score(output, chunks[0].new_tensor([row])).tolist()
                    )
        dead = [row for row in asleep if len(values[row]) == 1]
        if dead:
            raise RuntimeError(
                "layer must give a gradient, but none comes from "
                f"{_named(called, dead)} in any view of a grey image, as of a ReLU "
                "that is off everywhere; choose the module before it"
            )

    def _output(self, images: Tensor) -> Tensor:
        """The layer's output for images in [0, 1]."""
        _, dtype = self._place()
        inputs = self._normalised(images.to(dtype))
        run = batches_explained(
            lambda shown, _: self._read(shown[0], go_on=False),
            "images_per_run",
            rows_of_outputs=True,
        )
        return run((inputs,), torch.arange(len(inputs))).float()

    def _climb(
        self,
        score: Callable[[Tensor, Tensor], Tensor],
        rows: Tensor,
        canvas: _Canvas,
        bar: ProgressBar,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradient ascent for some rows: images, final scores, scores of each step."""
        spectrum = canvas.start.repeat(len(rows), 1, 1, 1, 1).requires_grad_()
        optimizer = torch.optim.Adam([spectrum], self.learning_rate, eps=_SMALL)
        history = spectrum.new_empty(len(rows), self.iterations)
        for step in range(self.iterations):
            images = canvas.images(spectrum)
            found = score(self._output(canvas.seen(images, step)), rows)
            penalty = self.prior.total_variation * total_variation(images)
            loss = (penalty - found.to(penalty.device)).sum()
            (gradient,) = torch.autograd.grad(loss, spectrum)
            spectrum.grad = gradient / _largest(gradient)
            optimizer.step()
            history[:, step] = found.detach()
            bar.update()
        with torch.no_grad():
            images = canvas.images(spectrum)
            scores = score(self._output(images), rows).to(images.device)
        return images, scores, history

    def _mean_and_std(self, like: Tensor) -> tuple[Tensor, Tensor]:
        mean, std = like.new_tensor(self.mean), like.new_tensor(self.std)
        return mean[:, None, None], std[:, None, None]

    def _normalised(self, images: Tensor) -> Tensor:
        mean, std = self._mean_and_std(images)
        return (images - mean) / std

    def _place(self) -> tuple[torch.device, torch.dtype]:
        """Where images are made, and in what precision the model sees them."""
        first = self._first_parameter()
        if first is None:
            first = torch.empty(0, dtype=torch.float32)
        return first.device, first.dtype

    def _first_parameter(self) -> Tensor | None:
        """Of the model, whose inputs must fit it, or else of the layer."""
        model = module_of(self.forward_func)
        modules = [self.layer] if model is None else [model, self.layer]
        tensors = itertools.chain(*(module.parameters() for module in modules))
        return next((t for t in tensors if t.is_floating_point()), None)

    def _check_inputs(self, inputs: Tensor) -> None:
        checks.check_floating("inputs", inputs)
        colours = len(self.mean)
        fitting = f", as mean has {colours} values"
        checks.check_shape("inputs", inputs, "N C H W", fitting, filled=True, C=colours)

    def _hint_at_features(self, found: Tensor) -> None:
        if self.channel_dim == 1 and not self._hinted_at_features:
            self._hinted_at_features = hint_at_features(
                found.shape, self.layer, self.forward_func
            )


def _check_layer(forward_func: Callable[..., object], layer: nn.Module) -> None:
    check_module(layer)
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
    means, stds = _numbers("mean", mean), _numbers("std", std)
    if len(means) != len(stds) or not means:
        raise ValueError(
            f"mean and std must have one value for each colour, got {len(means)} and "
            f"{len(stds)}"
        )
    return (
        tuple(checks.check_finite("mean", value) for value in means),
        tuple(checks.check_positive("std", value) for value in stds),
    )


def _numbers(name: str, values: Sequence[float]) -> Sequence[float]:
    """The values of a sequence, or of a tensor or array."""
    plain = values.tolist() if hasattr(values, "tolist") else values
    if not isinstance(plain, Sequence) or isinstance(plain, str):
        raise TypeError(
            f"{name} must be a sequence of one number for each colour, got {values!r}"
        )
    return plain


def _pair(name: str, pair: tuple[int, int]) -> tuple[int, int]:
    if not hasattr(pair, "__len__"):
        raise TypeError(f"{name} must be (height, width), got {pair!r}")
    if len(pair) != 2:
        raise ValueError(f"{name} must be (height, width), got {pair}")
    return checks.check_count(name, pair[0]), checks.check_count(name, pair[1])


def _channel_dim(channel_dim: int) -> int:
    dim = checks.check_count("channel_dim", channel_dim, minimum=-(10**6))
    if dim == 0:
        raise ValueError("channel_dim must not be 0, the dimension of the examples")
    return dim


def _channels(channels: int | Sequence[int] | Tensor) -> Tensor:
    chosen = torch.as_tensor(channels).flatten()
    if len(chosen) == 0:
        raise ValueError("channels must name at least one channel, got none")
    if chosen.is_floating_point() or chosen.dtype == torch.bool:
        raise TypeError(f"channels must be whole numbers, got {chosen.dtype}")
    return chosen.long().cpu()


def _masked(activations: Tensor, masks: Tensor, channel_dim: int) -> Tensor:
    """The activations with each channel times its mask; a copy."""
    with torch.no_grad():
        kept = masked(activations, masks, channel_dim)
    check_sufficient(masks)
    return kept


def _check_rows(target: Tensor) -> None:
    if target.dim() < 2:
        raise ValueError(
            "activations must be of shape (N, ...), with values for each example, got "
            f"{tuple(target.shape)}"
        )
    if len(target) == 0:
        raise ValueError("activations must hold at least one example, got none")


def _named(called: Sequence[str], rows: Sequence[int]) -> str:
    few = ", ".join(called[row] for row in rows[:5])
    return few + (", ..." if len(rows) > 5 else "")


def _largest(gradient: Tensor) -> Tensor:
    """The largest absolute value of each image, to divide by."""
    largest = gradient.abs().flatten(1).amax(dim=1).clamp(min=1e-30)
    return largest.reshape(-1, *[1] * (gradient.dim() - 1))


def _token_grid(
    count: int, size: tuple[int, int], grid: tuple[int, int] | None
) -> tuple[int, int]:
    """Rows and columns of the patches among ``count`` tokens of an image.

    Patches are squares, and what they leave over at the right and the lower border is
    not seen.
    """
    if grid is not None:
        rows, columns = _pair("grid", grid)
        if rows * columns > count:
            raise ValueError(
                f"grid must have at most as many patches as there are tokens, {count}, "
                f"got {rows} x {columns}"
            )
        return rows, columns
    height, width = size
    grids = {(height // p, width // p) for p in range(1, min(size) + 1)}
    fits = sorted(g for g in grids if count - g[0] * g[1] in _PREFIX_TOKENS)
    if not fits:
        raise ValueError(
            f"activations must have the tokens of square patches of an image of size "
            f"{size}, got {count} tokens; another grid is named with grid"
        )
    if len(fits) > 1:
        several = " or ".join(f"{rows} x {columns}" for rows, columns in fits)
        raise ValueError(
            f"grid must say how the {count} tokens lie on an image of size {size}: "
            f"{several} patches"
        )
    return fits[0]
