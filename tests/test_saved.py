"""What can be saved: read again as it was, and everything else is one clear error."""

from __future__ import annotations

import json
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file

from captum_extremal import (
    ChannelResult,
    ClassChannels,
    ExcitingImages,
    ExtremalResult,
)
from captum_extremal._base import files

NAN = float("nan")
SETTINGS = {"game": "hybrid", "seed": 3, "nested": {"a": [1, None, True]}, "ü": 0.5}


def randoms(*shapes):
    generator = torch.Generator().manual_seed(1)
    return tuple(torch.rand(shape, generator=generator) for shape in shapes)


def result(kind=ExtremalResult, **changes):
    """Two images and three areas, of 64 bits here and there, with NaN and settings."""
    masks, scores, reward = randoms((2, 3, 1, 5, 7), (2, 3), (2, 3, 4))
    fields = {
        "masks": masks,
        "areas": (0.05, 1 / 3, 1.0),
        "scores": scores.double(),
        "complement_scores": -scores,
        "input_score": scores[:, 0],
        "perturbed_score": scores[:, 1],
        "history": {"reward": reward, "area.loss/x": torch.full((2, 3, 4), NAN)},
        "settings": SETTINGS,
    }
    return kind(**(fields | changes))


def channels(**changes):
    masks, activations = randoms((2, 3, 4), (2, 4, 2))
    own = {"masks": masks, "activations": activations, "areas": (1, 0.5, 3)}
    return result(ChannelResult, **(own | changes))


MASKS = torch.tensor([[1.0, 0.0, 0.5], [0.0, 1.0, 0.5], [0.0, 0.0, 1.0]])


def classes(labels=(7, "cat", "cat")):
    found = ClassChannels()
    found.update(MASKS, labels)
    return found


def images():
    found = ExcitingImages(num_images=2)
    found.update(MASKS, ["a", "b", 3])
    return found


SAVED = {
    "result": result,
    "results of a tuple": lambda: result(masks=randoms((2, 3, 1, 5, 7), (2, 3, 1, 9))),
    "results of a tuple of one": lambda: result(masks=randoms((2, 3, 1, 5))),
    "results of a dozen": lambda: result(masks=randoms(*[(2, 3, 1, 9)] * 12)),
    "results without more": lambda: result(history={}, settings={}),
    "channels": channels,
    "channels of tokens": lambda: channels(
        channel_dim=2, activations=torch.ones(2, 9, 4)
    ),
    "channels of a tuple": lambda: channels(
        masks=randoms((2, 3, 4), (2, 3, 2)), activations=randoms((2, 4, 2), (2, 2))
    ),
    "classes": classes,
    "no classes": ClassChannels,
    "images": images,
    "no images": lambda: ExcitingImages(3, "max"),
}  # fmt: skip
ONES = ("result", "channels", "classes", "images")
each = pytest.mark.parametrize("make", [SAVED[name] for name in ONES], ids=ONES)


def assert_equal(one, other):
    assert type(one) is type(other)
    if isinstance(one, torch.Tensor):
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)
    elif isinstance(one, dict):
        assert set(one) == set(other)
        for name, value in one.items():
            assert_equal(value, other[name])
    elif isinstance(one, tuple | list):
        for pair in zip(one, other, strict=True):
            assert_equal(*pair)
    elif hasattr(one, "__dict__"):
        assert_equal(vars(one), vars(other))
    else:
        assert one == other


@pytest.mark.parametrize("make", SAVED.values(), ids=SAVED)
@pytest.mark.parametrize("as_path", [str, lambda path: path])
def test_what_is_saved_is_read(tmp_path, make, as_path):
    saved, path = make(), tmp_path / "a result.safetensors"
    saved.save(as_path(path))
    assert_equal(type(saved).load(as_path(path)), saved)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@each
def test_an_existing_file_is_replaced(tmp_path, make):
    path = tmp_path / "file"
    path.write_text("something else")
    make().save(path)
    assert_equal(type(make()).load(path), make())


@each
def test_the_file_is_safetensors_with_json_and_no_pickle(tmp_path, make):
    path = tmp_path / "file"
    make().save(path)
    tensors, content = load_file(path), path.read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    about = json.loads(header["__metadata__"]["captum_extremal"])
    assert about["format"] == f"captum_extremal.{type(make()).__name__}/1"
    if isinstance(make(), ExtremalResult):
        assert set(tensors) >= {"masks.0", "scores", "input_score", "history.reward"}
        assert about["areas"] == [0.05, 1 / 3, 1.0]
        assert about["settings"]["nested"] == {"a": [1, None, True]}


def test_tensors_of_any_layout_can_be_saved(tmp_path, device):
    shared = torch.rand(2, 6, 5, 1).to(device)
    masks = shared.permute(0, 3, 2, 1)[:, :, None, :, ::2].expand(2, 3, 1, 5, 3)
    scores = shared[:, :3, 0, 0].requires_grad_()
    whole = dict.fromkeys(("input_score", "perturbed_score"), scores[:, 0])
    found = result(masks=masks, scores=scores, complement_scores=scores, **whole)
    found.save(tmp_path / "result")
    again = ExtremalResult.load(tmp_path / "result")
    assert torch.equal(again.masks, masks.cpu())
    assert torch.equal(again.scores, scores.detach().cpu())
    assert again.scores.device.type == "cpu"
    assert not again.scores.requires_grad
    assert scores.requires_grad


# --- files that are none of ours, or damaged ---


class Planted:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


BROKEN = {
    "empty": lambda path, good: b"",
    "two letters": lambda path, good: b"no",
    "text": lambda path, good: b"a line of text that is no result",
    "cut off": lambda path, good: good[:-10],
    "cut in the header": lambda path, good: good[:40],
    "pickled": lambda path, good: pickle.dumps(Planted(path.with_name("planted"))),
}
METADATA = {
    "no metadata": {},
    "metadata of others": {"other": "x"},
    "no json": {"captum_extremal": "{"},
    "json of another kind": {"captum_extremal": "[1, 2]"},
    "json without fields": {"captum_extremal": "{}"},
    "another format": {"captum_extremal": '{"format": "Other"}'},
}


def refused(kind, path):
    text = f"^path must be a saved {kind.__name__}, got .*{path.name}"
    with pytest.raises(ValueError, match=text):
        kind.load(path)


@each
@pytest.mark.parametrize("name", [*BROKEN, *METADATA])
def test_a_broken_file_is_one_clear_error(tmp_path, make, name):
    path = tmp_path / "broken"
    make().save(path)
    if name in BROKEN:
        path.write_bytes(BROKEN[name](path, path.read_bytes()))
    else:
        save_file(load_file(path), path, metadata=METADATA[name])
    refused(type(make()), path)
    assert [p.name for p in tmp_path.iterdir()] == ["broken"]


DAMAGES = {
    "result": [{"format": "captum_extremal.ExtremalResult/9"}, {"areas": None}]
    + [{"tensors": {name: None}} for name in ("masks.0", "scores", "input_score")],
    "channels": [{"format": "captum_extremal.ExtremalResult/1"}, {"areas": None}]
    + [{"tensors": {name: None}} for name in ("masks.0", "scores", "activations.0")],
    "classes": [
        {"counts": [2]},
        {"counts": [2, 0]},
        {"counts": [2, "1"]},
        {"labels": [7, 7]},
        {"labels": [7, None]},
        {"labels": None},
        {"format": "captum_extremal.ExcitingImages/1"},
        {"tensors": {"sums": None}},
        {"tensors": {"sums": torch.ones(2)}},
        {"tensors": {"sums": torch.ones(3, 3)}},
    ],
    "images": [
        {"num_images": 0},
        {"num_images": 1},
        {"reduction": "sum"},
        {"images": ["a"]},
        {"images": [None, "b", "c"]},
        {"images": None},
        {"tensors": {"values": None}},
        {"tensors": {"values": torch.ones(3)}},
        {"tensors": {"places": torch.full((3, 2), -1)}},
        {"tensors": {"places": torch.ones(3, 2)}},
    ],
}


@pytest.mark.parametrize(
    ("name", "damage"), [(n, it) for n, some in DAMAGES.items() for it in some], ids=str
)
def test_a_damaged_file_is_one_clear_error(tmp_path, name, damage):
    saved, path = SAVED[name](), tmp_path / "file"
    saved.save(path)
    tensors, about = files.read(path)
    tensors |= damage.get("tensors", {})
    about |= {key: value for key, value in damage.items() if key != "tensors"}
    files.write(  # None takes a part away
        path,
        {key: tensor for key, tensor in tensors.items() if tensor is not None},
        {key: fact for key, fact in about.items() if fact is not None},
    )
    refused(type(saved), path)


@each
def test_files_of_another_kind_and_paths_that_cannot_be(tmp_path, make):
    kind, nowhere = type(make()), tmp_path / "nowhere"
    for other in (SAVED[name]() for name in ONES):
        if type(other) is not kind:
            other.save(tmp_path / "other")
            refused(kind, tmp_path / "other")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        kind.load(nowhere)
    with pytest.raises(FileNotFoundError, match=r"in an existing folder.*nowhere"):
        make().save(nowhere / "file")
    with pytest.raises(OSError, match=tmp_path.name):
        make().save(tmp_path)


@pytest.mark.parametrize("make", [result, channels])
def test_settings_that_json_cannot_hold_leave_no_file(tmp_path, make):
    with pytest.raises(TypeError, match="JSON"):
        make(settings={"solver": object()}).save(tmp_path / "result")
    assert list(tmp_path.iterdir()) == []


@each
@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_a_crash_leaves_the_old_file_and_no_partial_one(
    tmp_path, monkeypatch, make, error
):
    path = tmp_path / "result"
    make().save(path)

    def crash(tensors, filename, metadata=None):
        with open(filename, "wb") as file:
            file.write(b"half of")
        raise error

    monkeypatch.setattr(files, "save_file", crash)
    with pytest.raises(type(error)):
        make().save(path)
    assert [p.name for p in tmp_path.iterdir()] == ["result"]
    assert_equal(type(make()).load(path), make())
