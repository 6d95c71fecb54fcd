"""`ExtremalResult`: a* (eq. 3) and monotonicity (eq. 8) by hand, and its file."""

from __future__ import annotations

import dataclasses
import json
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file

from captum_extremal._base import files
from captum_extremal.results import extremal as module
from captum_extremal.results.extremal import ExtremalResult

NAN = float("nan")


def result_of(scores, areas, input_score, masks=None, **others):
    """A result with these scores (N, A) and masks of zeros."""
    scores = torch.as_tensor(scores)
    if masks is None:
        masks = torch.zeros(*scores.shape, 1, 4, 4)
    return ExtremalResult(
        masks=masks,
        areas=areas,
        scores=scores,
        complement_scores=-scores,
        input_score=torch.as_tensor(input_score),
        perturbed_score=torch.zeros(len(scores)),
        **others,
    )


# --- a* ---

SCORES = [
    [1.0, 2.0, 3.0],  # reaches 2.5 at 0.4
    [3.0, 1.0, 0.0],  # at 0.1 already, whatever comes after
    [0.0, 2.5, 2.0],  # equal counts as reached
    [0.0, 1.0, 2.0],  # never
]
AREAS = (0.1, 0.2, 0.4)


def test_a_star_is_the_smallest_area_that_reaches_the_input_score():
    found = result_of(SCORES, AREAS, [2.5] * 4).smallest_sufficient_area()
    torch.testing.assert_close(
        found, torch.tensor([0.4, 0.1, 0.2, NAN]), equal_nan=True
    )


def test_a_star_of_each_images_own_score():
    found = result_of(SCORES, AREAS, [1.0, 9.0, 0.0, 2.0]).smallest_sufficient_area()
    torch.testing.assert_close(
        found, torch.tensor([0.1, NAN, 0.1, 0.4]), equal_nan=True
    )


@pytest.mark.parametrize(
    ("threshold", "expected"),
    [
        (2.0, [0.2, 0.1, 0.2, 0.4]),
        (0, [0.1, 0.1, 0.1, 0.1]),
        (3.5, [NAN] * 4),
        (-torch.inf, [0.1] * 4),
        (torch.tensor(2.0), [0.2, 0.1, 0.2, 0.4]),
        (torch.tensor([3.0, 3.5, 2.0, 1.0]), [0.4, NAN, 0.2, 0.2]),
        (torch.tensor([3, 3, 2, 1]), [0.4, 0.1, 0.2, 0.2]),
    ],
    ids=repr,
)
def test_a_star_of_another_threshold(threshold, expected):
    found = result_of(SCORES, AREAS, [99.0] * 4).smallest_sufficient_area(threshold)
    torch.testing.assert_close(found, torch.tensor(expected), equal_nan=True)


def test_a_star_does_not_depend_on_the_order_of_the_areas():
    found = result_of([[3.0, 1.0, 2.5]], (0.4, 0.1, 0.2), [2.5])
    assert found.smallest_sufficient_area().item() == pytest.approx(0.2)


def test_a_score_that_is_nan_suffices_for_nothing():
    found = result_of([[NAN, 2.0], [NAN, NAN]], (0.1, 0.2), [1.0, 1.0])
    torch.testing.assert_close(
        found.smallest_sufficient_area(), torch.tensor([0.2, NAN]), equal_nan=True
    )


def test_a_star_of_one_area():
    found = result_of([[1.0], [2.0]], (0.3,), [1.5, 1.5]).smallest_sufficient_area()
    torch.testing.assert_close(found, torch.tensor([NAN, 0.3]), equal_nan=True)


def test_a_star_has_dtype_and_device_of_the_scores(dtype, device):
    scores = torch.tensor(SCORES, dtype=dtype, device=device)
    found = result_of(scores, AREAS, scores[:, 0])
    area = found.smallest_sufficient_area(2)
    assert (area.dtype, area.device) == (dtype, scores.device)
    assert area.tolist() == torch.tensor([0.2, 0.1, 0.2, 0.4], dtype=dtype).tolist()


# --- monotonicity ---


@pytest.mark.parametrize(
    ("scores", "input_score", "expected"),
    [
        ([1.0, 2.0, 3.0, 4.0], 9.0, True),  # nothing suffices: all pairs, all grow
        ([1.0, 2.0, 1.5, 4.0], 9.0, False),
        ([1.0, 2.0, 3.0, 2.0], 9.0, False),  # the last pair counts as well
        ([1.0, 1.0, 1.0, 1.0], 9.0, True),  # eq. 8 allows equality
        ([1.0, 5.0, 0.0, 0.0], 4.5, True),  # a* is the second: one area is below it
        ([1.0, 2.0, 5.0, 0.0], 4.5, True),  # what comes at and after a* is free
        ([2.0, 1.0, 5.0, 6.0], 4.5, False),
        ([9.0, 1.0, 0.0, 3.0], 4.5, True),  # a* is the first: nothing below it
        ([1.0, 3.0, 2.0, 4.5], 4.5, False),
        ([1.0, 2.0, 3.0, 4.5], 4.5, True),
    ],
)
def test_monotonicity_by_hand(scores, input_score, expected):
    found = result_of([scores], (0.1, 0.2, 0.3, 0.4), [input_score]).is_monotonic()
    assert found.dtype == torch.bool
    assert found.tolist() == [expected]


def test_monotonicity_of_areas_in_any_order():
    areas, input_score = (0.3, 0.1, 0.4, 0.2), [9.0]
    assert result_of([[3.0, 1.0, 4.0, 2.0]], areas, input_score).is_monotonic().all()
    falls = result_of([[1.0, 2.0, 3.0, 4.0]], areas, input_score)
    assert not falls.is_monotonic().any()


def test_monotonicity_of_each_image():
    found = result_of(SCORES, AREAS, [9.0] * 4).is_monotonic()
    assert found.tolist() == [True, False, False, True]


def test_one_area_is_monotonic():
    assert result_of([[1.0]], (0.3,), [9.0]).is_monotonic().tolist() == [True]


def test_monotonicity_is_that_of_all_pairs():
    generator = torch.Generator().manual_seed(3)
    scores = torch.randint(0, 5, (200, 5), generator=generator).float()
    areas = (0.4, 0.1, 0.5, 0.2, 0.3)
    result = result_of(scores, areas, torch.full((200,), 4.0))
    a_star = result.smallest_sufficient_area().tolist()
    found = result.is_monotonic().tolist()
    for image, row in enumerate(scores.tolist()):
        limit = torch.inf if a_star[image] != a_star[image] else a_star[image]
        pairs = [(a, s) for a, s in zip(areas, row, strict=True) if a < limit - 1e-6]
        expected = all(s <= t for a, s in pairs for b, t in pairs if a <= b)
        assert found[image] == expected
    assert {True, False} == set(found)


# --- the object ---


def full_result(is_tuple=False):
    generator = torch.Generator().manual_seed(1)
    masks = torch.rand(2, 3, 1, 5, 7, generator=generator)
    if is_tuple:
        masks = (masks, torch.rand(2, 3, 1, 9, generator=generator))
    scores = torch.rand(2, 3, generator=generator)
    history = {
        "reward": torch.rand(2, 3, 4, generator=generator),
        "area.loss/x": torch.full((2, 3, 4), NAN),
    }
    settings = {"game": "hybrid", "seed": 3, "nested": {"a": [1, None, True]}, "ü": 0.5}
    return result_of(
        scores,
        (0.05, 1 / 3, 1.0),
        [0.1, 0.2],
        masks,
        history=history,
        settings=settings,
    )


def assert_equal(one, other):
    for name in ("masks", "scores", "complement_scores", "input_score", "history"):
        found, expected = getattr(one, name), getattr(other, name)
        assert type(found) is type(expected)
        torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(one.perturbed_score, other.perturbed_score)
    assert one.areas == other.areas
    assert one.settings == other.settings


def test_it_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        full_result().areas = (0.1,)


def test_results_do_not_share_their_empty_dictionaries():
    one, other = (
        result_of(SCORES, AREAS, [1.0] * 4),
        result_of(SCORES, AREAS, [1.0] * 4),
    )
    assert one.history == {}
    assert one.history is not other.history
    assert one.settings is not other.settings


# --- the file ---


@pytest.mark.parametrize("is_tuple", [False, True])
def test_what_is_saved_is_read(tmp_path, is_tuple):
    result = full_result(is_tuple)
    path = tmp_path / "a result.safetensors"
    result.save(path)
    assert_equal(ExtremalResult.load(path), result)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_tuple_of_one_stays_a_tuple_and_many_stay_in_order(tmp_path):
    path = tmp_path / "result"
    for count in (1, 12):
        masks = tuple(torch.full((1, 1, 1, i + 1), i / 12) for i in range(count))
        result_of([[1.0]], (0.1,), [1.0], masks).save(path)
        again = ExtremalResult.load(path).masks
        assert isinstance(again, tuple)
        assert all(torch.equal(a, b) for a, b in zip(again, masks, strict=True))


def test_without_history_and_settings(tmp_path):
    result = result_of(SCORES, AREAS, [1.0] * 4)
    result.save(tmp_path / "result")
    assert_equal(ExtremalResult.load(tmp_path / "result"), result)


def test_areas_and_dtypes_survive_exactly(tmp_path):
    result = result_of(torch.rand(1, 2, dtype=torch.float64), (0.1, 1 / 3), [0.5])
    result.save(str(tmp_path / "result"))
    again = ExtremalResult.load(str(tmp_path / "result"))
    assert again.areas == (0.1, 1 / 3)
    assert again.scores.dtype == torch.float64


def test_tensors_of_any_layout_can_be_saved(tmp_path, device):
    shared = torch.rand(2, 6, 5, 1).to(device)
    masks = shared.permute(0, 3, 2, 1)[:, :, None, :, ::2].expand(2, 3, 1, 5, 3)
    scores = shared[:, :3, 0, 0].requires_grad_()
    result = ExtremalResult(masks, AREAS, scores, scores, scores[:, 0], scores[:, 0])
    result.save(tmp_path / "result")
    again = ExtremalResult.load(tmp_path / "result")
    assert torch.equal(again.masks, masks.cpu())
    assert torch.equal(again.scores, scores.detach().cpu())
    assert again.scores.device.type == "cpu"
    assert not again.scores.requires_grad
    assert scores.requires_grad


def test_an_existing_file_is_replaced(tmp_path):
    path = tmp_path / "result"
    full_result().save(path)
    other = result_of(SCORES, AREAS, [1.0] * 4)
    other.save(path)
    assert_equal(ExtremalResult.load(path), other)


def test_the_file_is_safetensors_with_json_and_no_pickle(tmp_path):
    path = tmp_path / "result"
    full_result().save(path)
    tensors = load_file(path)
    assert set(tensors) >= {"masks.0", "scores", "input_score", "history.reward"}
    content = path.read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    about = json.loads(header["__metadata__"]["captum_extremal"])
    assert about["areas"] == [0.05, 1 / 3, 1.0]
    assert about["settings"]["nested"] == {"a": [1, None, True]}


class Planted:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def broken_files(tmp_path):
    """Names and contents that `save` never writes."""
    good = tmp_path / "good"
    full_result().save(good)
    content = good.read_bytes()
    tensors = load_file(good)
    about = {
        "format": module._FORMAT,
        "is_tuple": False,
        "areas": [0.1],
        "settings": {},
    }

    def saved(tensors, **metadata):
        save_file(tensors, good, metadata=metadata)
        return good.read_bytes()

    def described(tensors, **changes):
        return saved(tensors, captum_extremal=json.dumps(about | changes))

    without_masks = {k: v for k, v in tensors.items() if not k.startswith("masks")}
    without_scores = {k: v for k, v in tensors.items() if k != "scores"}
    return {
        "empty": b"",
        "text": b"a line of text that is no result",
        "cut off": content[:-10],
        "cut in the header": content[:40],
        "pickled": pickle.dumps(Planted(tmp_path / "planted")),
        "no metadata": saved(tensors),
        "metadata of others": saved(tensors, other="x"),
        "no json": saved(tensors, captum_extremal="{"),
        "json of another kind": saved(tensors, captum_extremal="[1, 2]"),
        "json without fields": saved(tensors, captum_extremal="{}"),
        "another format": described(tensors, format="captum_extremal.ExtremalResult/9"),
        "no masks": described(without_masks),
        "no scores": described(without_scores),
    }


@pytest.mark.parametrize(
    "name",
    [
        "empty", "text", "cut off", "cut in the header", "pickled", "no metadata",
        "metadata of others", "no json", "json of another kind", "json without fields",
        "another format", "no masks", "no scores",
    ],
)  # fmt: skip
def test_a_broken_file_is_one_clear_error(tmp_path, name):
    path = tmp_path / "broken"
    path.write_bytes(broken_files(tmp_path)[name])
    with pytest.raises(ValueError, match=r"^path must be a saved ExtremalResult, got "):
        ExtremalResult.load(path)
    assert not (tmp_path / "planted").exists()


def test_a_missing_file_is_pythons_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        ExtremalResult.load(tmp_path / "nowhere")


def test_a_folder_that_is_not_there_is_an_error_that_names_the_path(tmp_path):
    with pytest.raises(OSError, match="nowhere"):
        full_result().save(tmp_path / "nowhere" / "result")


def test_settings_that_json_cannot_hold_leave_no_file(tmp_path):
    result = dataclasses.replace(full_result(), settings={"solver": object()})
    with pytest.raises(TypeError, match="JSON"):
        result.save(tmp_path / "result")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_a_crash_leaves_the_old_file_and_no_partial_one(tmp_path, monkeypatch, error):
    path = tmp_path / "result"
    old = full_result()
    old.save(path)

    def crash(tensors, filename, metadata=None):
        with open(filename, "wb") as file:
            file.write(b"half of")
        raise error

    monkeypatch.setattr(files, "save_file", crash)
    with pytest.raises(type(error)):
        result_of(SCORES, AREAS, [1.0] * 4).save(path)
    monkeypatch.undo()
    assert [p.name for p in tmp_path.iterdir()] == ["result"]
    assert_equal(ExtremalResult.load(path), old)
