"""Mean masks of classes and the images that excite channels, batch by batch."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from captum.attr import ClassSummarizer
from captum.attr._utils.stat import Mean

from captum_extremal import ClassChannels, ExcitingImages

MASKS = torch.tensor([[1.0, 0.0, 0.5], [0.0, 1.0, 0.5], [0.0, 0.0, 1.0]])


NO_AREA = torch.where(torch.tensor([[False], [True], [False]]), torch.nan, MASKS)


def gathered(masks=MASKS, labels=(7, 7, 9)):
    found = ClassChannels()
    found.update(masks, list(labels))
    return found


def random_masks(count=40, channels=6):
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(4, (count,), generator=generator)
    return torch.rand(count, channels, generator=generator), labels


# --- means of classes ---


def test_means_and_channels_by_hand():
    found = gathered()
    assert found.mean(7).tolist() == [0.5, 0.5, 0.5]
    assert found.mean(9).tolist() == [0, 0, 1]
    assert found.channels() == {7: 0, 9: 2}  # of equal channels the first
    assert found.counts == {7: 2, 9: 1}
    assert found.num_channels == 3
    assert repr(found) == "ClassChannels({7: 2, 9: 1})"


def test_the_means_are_those_of_captum():
    masks, labels = random_masks()
    found, captums = ClassChannels(), ClassSummarizer([Mean()])
    for rows in torch.arange(40).split(7):
        found.update(masks[rows], labels[rows])
        captums.update(masks[rows], labels[rows].tolist())
    for label, summary in captums.class_summaries.items():
        torch.testing.assert_close(found.mean(label), summary[0]["mean"])
    assert set(found.counts) == set(captums.class_summaries)


def test_the_order_of_the_batches_does_not_matter():
    masks, labels = random_masks()
    expected = gathered(masks, labels.tolist())
    order = torch.tensor(random.Random(0).sample(range(40), 40))
    found = ClassChannels()
    for rows in order.split(3):
        found.update(masks[rows], labels[rows])
    for label in range(4):
        assert torch.equal(found.mean(label), expected.mean(label))


@pytest.mark.parametrize(
    ("labels", "counts"),
    [
        ([1, "cat", 1], {1: 2, "cat": 1}),
        ((1, 2, 3), {1: 1, 2: 1, 3: 1}),
        (torch.tensor([5, 5, 6]), {5: 2, 6: 1}),
        (torch.tensor([5, 5, 6], dtype=torch.uint8), {5: 2, 6: 1}),
        (torch.tensor(5), {5: 3}),
        (5, {5: 3}),
        ("cat", {"cat": 3}),
        (np.array([5, 5, 6]), {5: 2, 6: 1}),
        ([np.int64(5), torch.tensor(5), 6], {5: 2, 6: 1}),
        (np.int32(5), {5: 3}),
        ([Path("a"), Path("a"), np.str_("b")], {"a": 2, "b": 1}),
    ],
)
def test_labels(labels, counts):
    found = ClassChannels()
    found.update(MASKS, labels)
    assert found.counts == counts
    assert all(type(label) in (int, str) for label in found.counts)


def test_masks_on_each_device_and_with_gradients(device, dtype):
    masks = MASKS.to(device, dtype).requires_grad_()
    mean = gathered(masks).mean(7)
    assert (mean.device.type, mean.dtype, mean.requires_grad) == (
        "cpu",
        torch.float32,
        False,
    )
    assert mean.tolist() == [0.5, 0.5, 0.5]


def test_later_changes_of_the_masks_do_not_matter():
    masks = MASKS.double()
    found = gathered(masks)
    masks.zero_()
    assert found.mean(9).tolist() == [0, 0, 1]


def test_nothing_yet():
    found = ClassChannels()
    found.update(torch.empty(0, 3), [])
    assert (found.counts, found.num_channels, found.channels()) == ({}, None, {})


def test_merging_is_as_one():
    masks, labels = random_masks()
    one, other = (gathered(masks[r], labels[r].tolist()) for r in ([0, 1, 2], [3, 9]))
    whole = gathered(masks[[0, 1, 2, 3, 9]], labels[[0, 1, 2, 3, 9]].tolist())
    before = other.counts
    one.merge(other)
    assert one.counts == whole.counts
    for label in whole.counts:
        assert torch.equal(one.mean(label), whole.mean(label))
    assert other.counts == before
    one.merge(ClassChannels())
    assert one.counts == whole.counts


@pytest.mark.parametrize(
    ("masks", "labels", "error", "message"),
    [
        ([[1.0]], [0], TypeError, "masks must be a floating point tensor"),
        (MASKS.int(), [0, 0, 0], TypeError, "masks must be a floating point tensor"),
        (MASKS[0], [0], ValueError, r"masks must be of shape \(N, K\), got \(3,\)"),
        (MASKS * 2, [0, 0, 0], ValueError, r"masks must lie in \[0, 1\]"),
        (MASKS * torch.nan, [0, 0, 0], ValueError, "NaN in row 0: no area sufficed"),
        (NO_AREA, [0, 0, 0], ValueError, "got NaN in row 1: no area sufficed for that"),
        (MASKS, [0, 0], ValueError, "labels must be one for each of 3 images, got 2"),
        (MASKS, None, TypeError, "labels must be a sequence of whole numbers or str"),
        (MASKS, [0, 0, 0.5], TypeError, "labels must be whole numbers or strings, got"),
        (MASKS, [0, 0, True], TypeError, "whole numbers or strings, got True"),
        (MASKS, MASKS[0], TypeError, "labels must be whole numbers, got torch.float32"),
    ],
)
def test_wrong_masks_and_labels(masks, labels, error, message):
    found = ClassChannels()
    with pytest.raises(error, match=message):
        found.update(masks, labels)
    assert found.counts == {}


def test_another_number_of_channels():
    message = "masks must have 3 channels, as the former ones, got 2"
    with pytest.raises(ValueError, match=message):
        gathered().update(MASKS[:, :2], 7)
    with pytest.raises(ValueError, match=message):
        gathered().merge(gathered(MASKS[:, :2]))


def test_an_unseen_class():
    with pytest.raises(KeyError, match=r"label must be .* one of \[7, 9\], got 8"):
        gathered().mean(8)
    with pytest.raises(KeyError, match=r"one of \[\], got 'cat'"):
        ClassChannels().channel("cat")


# --- exciting images ---


def test_the_best_are_kept_whatever_the_batches():
    generator = torch.Generator().manual_seed(0)
    activations = torch.randn(30, 5, 4, 3, generator=generator)
    means = activations.mean(dim=(2, 3))
    for size in (1, 4, 30):
        best = ExcitingImages(num_images=6)
        for rows in torch.arange(30).split(size):
            best.update(activations[rows], [f"{row}.jpg" for row in rows.tolist()])
        for channel in range(5):
            values, order = means[:, channel].sort(descending=True)
            names = [f"{row}.jpg" for row in order[:6].tolist()]
            assert [name for name, _ in best.of(channel)] == names
            assert [v for _, v in best.of(channel)] == pytest.approx(
                values[:6].tolist()
            )


def test_fewer_images_than_places():
    best = ExcitingImages(num_images=9)
    best.update(torch.tensor([[1.0], [2.0]]), torch.tensor([10, 20]))
    assert best.of(0) == [(20, 2.0), (10, 1.0)]


def test_of_equal_images_the_first_stays():
    best = ExcitingImages(num_images=2)
    for name in "abc":
        best.update(torch.ones(1, 1), [name])
    assert [name for name, _ in best.of(0)] == ["a", "b"]


def test_mean_or_maximum():
    peak, flat = torch.zeros(1, 1, 2, 2), torch.full((1, 1, 2, 2), 0.5)
    peak[0, 0, 0, 0] = 1
    for reduction, first in (("mean", ("flat", 0.5)), ("max", ("peak", 1.0))):
        best = ExcitingImages(reduction=reduction)
        best.update(torch.cat([peak, flat]), ["peak", "flat"])
        assert best.of(0)[0] == first


def test_channels_along_another_dimension():
    tokens = torch.tensor([[[1.0, 0.0], [3.0, 0.0], [2.0, 9.0]]])  # 3 tokens
    for dim in (2, -1):
        best = ExcitingImages()
        best.update(tokens, ["a"], channel_dim=dim)
        assert (best.of(0), best.of(1)) == ([("a", 2.0)], [("a", 3.0)])


def test_an_empty_batch_adds_nothing():
    for reduction in ("mean", "max"):
        best = ExcitingImages(reduction=reduction)
        best.update(torch.empty(0, 3, 4), [])
        best.update(torch.ones(1, 3, 4), [Path("a.jpg")])
        assert best.of(2) == [("a.jpg", 1.0)]


def test_names_that_no_channel_needs_are_let_go():
    best = ExcitingImages(num_images=1)
    for number in range(50):
        best.update(torch.tensor([[float(number), -float(number)]]), [number])
    assert (best.of(0), best.of(1)) == ([(49, 49.0)], [(0, 0.0)])
    assert best._images == [0, 49]


def test_merged_saved_and_loaded(tmp_path):
    generator = torch.Generator().manual_seed(0)
    values, names = torch.randn(12, 4, generator=generator), list("abcdefghijkl")
    whole, one, other = (ExcitingImages(num_images=3) for _ in range(3))
    whole.update(values, names)
    one.update(values[:5], names[:5])
    other.update(values[5:], names[5:])
    one.merge(other)
    one.merge(ExcitingImages(num_images=3))
    one.save(tmp_path / "file")
    loaded = ExcitingImages.load(tmp_path / "file")
    empty = ExcitingImages(num_images=3)
    empty.merge(loaded)
    for found in (one, loaded, empty):
        assert [found.of(k) for k in range(4)] == [whole.of(k) for k in range(4)]


@pytest.mark.parametrize(
    ("activations", "names", "options", "error", "message"),
    [
        (MASKS.int(), "abc", {}, TypeError, "activations must be a floating point"),
        (MASKS, ["a"], {}, ValueError, "image_ids must be one for each of 3 images"),
        (MASKS, 3, {}, TypeError, "image_ids must be a sequence of whole numbers or"),
        (MASKS, [None] * 3, {}, TypeError, "image_ids must be whole numbers or strin"),
        (MASKS * torch.inf, [1, 2, 3], {}, ValueError, "activations must be finite"),
        (MASKS, [1, 2, 3], {"channel_dim": 2}, ValueError, "channel_dim must lie in"),
        (MASKS, [1, 2, 3], {"channel_dim": 0}, ValueError, "channel_dim must lie in"),
        (MASKS[0, 0], [1], {}, ValueError, "activations must have channels besides"),
        (MASKS[0], [1], {}, ValueError, "activations must have channels besides"),
        (MASKS, [1, 2, 3], {"channel_dim": -3}, ValueError, "channel_dim must lie in"),
        (torch.ones(1, 2, 0), [1], {}, ValueError, "activations must have values for"),
        (MASKS, [1, 2, 3], {"channel_dim": 1.0}, TypeError, "channel_dim must be an i"),
    ],
)
def test_wrong_activations_and_names(activations, names, options, error, message):
    with pytest.raises(error, match=message):
        ExcitingImages().update(activations, names, **options)


def test_wrong_settings_and_others():
    with pytest.raises(ValueError, match="num_images must be at least 1, got 0"):
        ExcitingImages(0)
    with pytest.raises(
        ValueError, match="reduction must be 'mean' or 'max', got 'sum'"
    ):
        ExcitingImages(reduction="sum")
    best = ExcitingImages(2)
    best.update(MASKS, [1, 2, 3])
    with pytest.raises(IndexError, match="channel must lie in 0 to 2, got 3"):
        best.of(3)
    with pytest.raises(ValueError, match="activations must have 3 channels, as the fo"):
        best.update(MASKS[:, :2], [1, 2, 3])
    with pytest.raises(ValueError, match=r"other must be ExcitingImages\(num_images=2"):
        best.merge(ExcitingImages(3))
    with pytest.raises(TypeError, match="other must be an ExcitingImages, got int"):
        best.merge(3)
    with pytest.raises(TypeError, match="other must be a ClassChannels, got int"):
        ClassChannels().merge(3)
