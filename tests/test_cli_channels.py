"""`captum-extremal channels` with a small network."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from torchvision.models import get_model

from captum_extremal import ChannelResult
from captum_extremal.cli.main import main
from captum_extremal.models import load_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("channels")
    torch.manual_seed(0)
    model = get_model("squeezenet1_1", num_classes=3)
    with torch.no_grad():
        model.classifier[1].weight *= 10
        model.classifier[1].bias += 10
    torch.save(model.state_dict(), path / "weights.pt")
    noise = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path / "photo.png")
    return path


@pytest.fixture
def run(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def invoke(*args, layer="features.9"):
        return CliRunner().invoke(
            main,
            [
                "channels",
                str(folder / "photo.png"),
                "--model=torchvision:squeezenet1_1",
                f"--weights={folder / 'weights.pt'}",
                "--size=64",
                "--steps=2",
                f"--layer={layer}",
                *args,
            ],
        )

    return invoke


def test_the_table_the_list_and_the_figure(run, tmp_path):
    done = run("--areas=1,10,0.5,1.0", "--save=result.safetensors")
    assert done.exit_code == 0, done.output
    result = ChannelResult.load(tmp_path / "result.safetensors")
    assert result.counts == (1, 10, 192, 384)
    rows = re.findall(r"^ +(\d+) +(-?[\d.]+) +(-?[\d.]+) +([\d.]+)", done.output, re.M)
    assert [int(row[0]) for row in rows] == [1, 10, 192, 384]
    assert [float(row[1]) for row in rows] == [
        pytest.approx(float(score), abs=0.006) for score in result.scores[0]
    ]
    probabilities = [float(row[3]) for row in rows]
    assert all(0 <= p <= 1 for p in probabilities)
    shown = float(re.search(r"p = ([\d.]+)", done.output)[1])
    assert probabilities[-1] == pytest.approx(shown, abs=0.002)
    kept = result.masks[0, 0].nonzero().flatten().tolist()
    assert f"\n1: {kept[0]}\n" in done.output
    assert re.search(r"^192: (\d+, ){19}\d+ and 172 more$", done.output, re.M)
    with Image.open(tmp_path / "photo-channels.png") as figure:
        assert figure.width > figure.height > 200


def test_options_reach_the_search(run, tmp_path):
    done = run(
        "--areas=0.5", "--layer-input", "--game=deletion", "--seed=3", "--target=1",
        "--save=a.safetensors", "--output=here/figure.pdf", "--threads=1",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    result = ChannelResult.load(tmp_path / "a.safetensors")
    assert result.settings["game"] == "deletion"
    assert result.settings["seed"] == 3
    assert result.settings["at_input"] is True
    assert "iterations=2" in result.settings["solver"]
    assert result.masks.shape == (1, 1, 256)
    assert "class 1" in done.output
    assert (tmp_path / "here" / "figure.pdf").exists()


@pytest.mark.parametrize(
    ("layer", "hint"),
    [
        ("feature.9", "; close: features.9"),
        ("features9", "; close: features.9"),
        ("squeeze_activation", "; close: features."),
        ("model.features.9", "; close: features.9"),
        ("zzz", ""),
        ("", ""),
    ],
)
def test_a_layer_that_does_not_exist(run, tmp_path, layer, hint):
    done = run(layer=layer)
    assert done.exit_code == 2
    expected = f"--layer must name a module of the model, got {layer!r}{hint}"
    assert expected in done.output
    assert done.output.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("option", "text"),
    [
        ("--areas=one", "'--areas': areas must be numbers of channels or, with a poi"),
        (
            "--areas=+2.5",
            "in (0, 1], separated by commas, such as '1, 5, 0.1', got '+2",
        ),
        ("--areas=0", "separated by commas, such as '1, 5, 0.1', got '0'"),
        ("--areas=1.5", "separated by commas, such as '1, 5, 0.1', got '1.5'"),
        ("--areas=9999", "area must be at most the layer's 384 channels, got 9999"),
        ("--channel-dim=7", "channel_dim must lie in [1, 3]"),
        ("--target=9", "target must lie in 0..2, got 9"),
        ("--output=a.txt", "output must be a folder or end in"),
    ],
)
def test_a_bad_option_is_one_line(run, option, text):
    done = run(option)
    assert done.exit_code == 2
    assert text in done.output.replace("\n", " ")


def test_areas_of_one_count_are_one_row(run):
    done = run("--areas=1,0.001,0.002,+2")
    assert done.exit_code == 0, done.output
    rows = re.findall(r"^ +(\d+) +-?[\d.]+ +-?[\d.]+ +[\d.]+", done.output, re.M)
    assert [int(row) for row in rows] == [1, 2]
    assert len(re.findall(r"^1: ", done.output, re.M)) == 1


def test_maps_have_their_channels_in_dimension_1(run):
    done = run("--areas=1")
    assert "\nchannels: the 384 of dimension 1 of (1, 384, 3, 3)\n" in done.output


@pytest.fixture(scope="module")
def transformer(tmp_path_factory):
    pytest.importorskip("timm")
    import timm

    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", num_classes=3)
    path = tmp_path_factory.mktemp("vit") / "weights.pt"
    torch.save(model.state_dict(), path)
    return "timm:vit_tiny_patch16_224", path


@pytest.mark.parametrize(
    ("option", "count", "dim"),
    [(None, 192, 2), ("auto", 192, 2), ("-1", 192, 2), ("1", 197, 1)],
)
@pytest.mark.filterwarnings("ignore:channel_dim=1 takes")
def test_the_features_of_tokens(folder, tmp_path, transformer, option, count, dim):
    model, weights = transformer
    done = CliRunner().invoke(
        main,
        [
            "channels", str(folder / "photo.png"), f"--model={model}",
            f"--weights={weights}", "--layer=blocks.11", "--areas=1", "--steps=1",
            f"--output={tmp_path}/", *([f"--channel-dim={option}"] if option else []),
        ],
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    told = f"\nchannels: the {count} of dimension {dim} of (1, 197, 192)\n"
    assert told in done.output


def test_where_no_width_tells_the_dimension_must_be_given(run, monkeypatch):
    monkeypatch.setattr("captum_extremal.cli.channels.channel_dim_of", lambda *_: None)
    assert "dimension 1 of (1, 384, 3, 3)" in run("--areas=1").output
    load = load_model

    def flat(*names):
        loaded = load(*names)
        loaded.model.features[9].register_forward_hook(
            lambda _m, _a, out: out.flatten(2)
        )
        loaded.model.features[10].register_forward_pre_hook(
            lambda _m, args: args[0].unflatten(2, (3, 3))
        )
        return loaded

    monkeypatch.setattr("captum_extremal.cli.channels.load_model", flat)
    done = run()
    assert done.exit_code == 2
    assert "--channel-dim must say which dimension the channels are" in done.output


def test_a_layer_of_two_tensors_is_one_line(run, monkeypatch):
    load = load_model

    def pairs(*names):
        loaded = load(*names)
        loaded.model.features[9].register_forward_hook(lambda _m, _a, out: (out, out))
        loaded.model.features[10].register_forward_pre_hook(lambda _m, args: args[0])
        return loaded

    monkeypatch.setattr("captum_extremal.cli.channels.load_model", pairs)
    for option, way in ((), "return"), (("--layer-input",), "take"):
        done = run(*option, layer="features.10" if option else "features.9")
        assert done.exit_code == 2
        assert f"--layer: layer must {way} one tensor, got Tensor, T" in done.output
        assert done.output.count("\n") == 1


def test_a_dimension_that_is_no_number(run):
    done = run("--channel-dim=last")
    assert done.exit_code == 2
    assert "--channel-dim: must be auto or a whole number, got 'last'" in done.output
