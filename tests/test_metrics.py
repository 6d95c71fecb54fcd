"""Metrics against their slow versions, their rules, and the traps of their field."""

from __future__ import annotations

import importlib
import math
import pickle
import pkgutil
import subprocess
import sys
import warnings
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close
from torchmetrics import Metric, MetricCollection

import captum_extremal
import captum_extremal.metrics as package
from captum_extremal import ExtremalResult, gaussian_blur
from captum_extremal.benchmark import runner
from captum_extremal.metrics import (
    PointingGame,
    boxes_to_masks,
    deletion_auc,
    energy_pointing_game,
    insertion_auc,
    masks_to_saliency,
    pointing_game,
)
from captum_extremal.metrics.accumulate import Accumulator
from captum_extremal.visualization.overlays import (
    map_of,
    overlay_saliency,
    overlay_signed,
    without_outliers,
)
from reference import metrics as reference
from test_architecture import public_violations
from tiny_models import Blocks, ConvNet, TwoInputs

SIZES = [(9,), (6, 11), (3, 4, 5)]
NAN = math.nan


def _spot(size, *spots, value=1.0):
    """One example with one channel, zero but for a few pixels."""
    attribution = torch.zeros(1, 1, *size)
    for spot in spots:
        attribution[(0, 0, *spot)] = value
    return attribution


def _object(size, *pixels):
    mask = torch.zeros(1, *size, dtype=torch.bool)
    for pixel in pixels:
        mask[(0, *pixel)] = True
    return mask


def test_public_names_are_documented():
    assert public_violations(package) == []


# --- pointing game: the formula ---


@pytest.mark.parametrize("size", SIZES, ids=len)
@pytest.mark.parametrize("tolerance", [0, 0.5, 1, 1.5, 2, 2.3, 3])
def test_pointing_game_against_the_formula(size, tolerance, device, dtype):
    # Small whole numbers, so that ties are frequent and sums exact.
    attributions = torch.randint(-3, 4, (40, 2, *size)).to(device, dtype)
    object_masks = (torch.rand(40, *size) < 0.05).to(device)
    hits = pointing_game(attributions, object_masks, tolerance)
    pairs = zip(attributions.cpu().numpy(), object_masks.cpu().numpy(), strict=True)
    expected = [reference.pointing_game(*pair, tolerance) for pair in pairs]
    assert len({str(hit) for hit in expected}) > 1  # hits and misses, or undefined
    assert hits.device.type == device.type
    assert_close(hits.cpu(), torch.tensor(expected), equal_nan=True)


@pytest.mark.parametrize(
    ("pixel", "tolerance", "hit"),
    [
        ((10, 10), 0, 1.0),
        ((10, 11), 0, 0.0),
        ((10, 11), 1, 0.0),  # strictly closer than the tolerance
        ((10, 11), 1.01, 1.0),
        ((11, 11), 1.4, 0.0),  # Euclidean: sqrt(2)
        ((11, 11), 1.42, 1.0),
        ((13, 14), 5, 0.0),  # 3-4-5
        ((13, 14), 5.01, 1.0),
        ((10, 24), 15, 1.0),
        ((10, 25), 15, 0.0),
        ((0, 0), 14.142, 0.0),  # sqrt(200) = 14.1421356...
        ((0, 0), 14.143, 1.0),
    ],
)
def test_the_tolerance_is_a_strict_euclidean_radius(pixel, tolerance, hit):
    attribution = _spot((20, 40), (10, 10))
    assert pointing_game(attribution, _object((20, 40), pixel), tolerance) == hit


def test_the_default_tolerance_is_15():
    attribution = _spot((1, 40), (0, 0))
    far, near = _object((1, 40), (0, 15)), _object((1, 40), (0, 14))
    assert pointing_game(attribution, far) == 0
    assert pointing_game(attribution, near) == 1


def test_any_instance_of_the_class_counts():
    objects = _object((30, 30), (0, 0), (29, 29))
    for at in [(1, 1), (28, 28)]:
        assert pointing_game(_spot((30, 30), at), objects, 3) == 1
    assert pointing_game(_spot((30, 30), (15, 15)), objects, 3) == 0


# --- pointing game: rules ---


def test_of_several_maxima_the_first_in_row_major_order_counts():
    # (0, 5) comes before (3, 0) by rows, behind it by columns.
    attribution = _spot((4, 6), (0, 5), (3, 0))
    first, second = _object((4, 6), (0, 5)), _object((4, 6), (3, 0))
    for memory in (attribution, attribution.mT.contiguous().mT):  # by columns as well
        assert pointing_game(memory, first, 0) == 1
        assert pointing_game(memory, second, 0) == 0


@pytest.mark.parametrize("value", [0.0, 1.0, -2.5, math.inf, NAN])
def test_a_map_that_points_nowhere_is_a_miss(value):
    attribution = torch.full((1, 3, 4, 5), value)
    everywhere = torch.ones(1, 4, 5, dtype=torch.bool)
    assert pointing_game(attribution, everywhere) == 0


def test_one_nan_in_a_map_is_a_miss():
    attribution = _spot((4, 5), (1, 1))
    attribution[0, 0, 3, 3] = NAN
    assert pointing_game(attribution, torch.ones(1, 4, 5, dtype=torch.bool)) == 0


def test_an_infinite_maximum_is_a_maximum():
    attribution = _spot((4, 5), (1, 3), value=math.inf)
    assert pointing_game(attribution, _object((4, 5), (1, 3)), 0) == 1


@pytest.mark.parametrize("value", [0.0, 1.0, NAN])
def test_an_empty_ground_truth_is_undefined_and_no_hit(value):
    attribution = _spot((4, 5), (1, 1), value=value)
    hit = pointing_game(attribution, _object((4, 5)))
    assert hit.dtype == torch.float32
    assert hit.isnan().tolist() == [True]


def test_channels_are_summed():
    attributions = torch.zeros(1, 2, 1, 4)
    attributions[0, :, 0, 0] = torch.tensor([5.0, -5.0])  # highest channel, sum 0
    attributions[0, :, 0, 3] = torch.tensor([2.0, 2.0])  # highest sum
    assert pointing_game(attributions, _object((1, 4), (0, 3)), 0) == 1
    one_channel = attributions.amax(dim=1, keepdim=True)
    assert pointing_game(one_channel, _object((1, 4), (0, 3)), 0) == 0


def test_short_types_are_summed_in_float32():
    attributions = torch.zeros(1, 3, 1, 2, dtype=torch.float16)
    attributions[0, :, 0, 0] = 40000.0  # 120000 is beyond float16
    attributions[0, :, 0, 1] = torch.tensor([65000.0, 65000.0, 0.0])
    assert pointing_game(attributions, _object((1, 2), (0, 1)), 0) == 1


def test_masks_with_and_without_a_channel_agree():
    attributions, masks = torch.rand(6, 3, 5, 7), torch.rand(6, 5, 7) < 0.1
    plain = pointing_game(attributions, masks, 2)
    assert_close(pointing_game(attributions, masks[:, None], 2), plain, equal_nan=True)


def test_a_batch_gives_what_its_examples_give():
    attributions, masks = torch.rand(8, 3, 5, 7), torch.rand(8, 5, 7) < 0.05
    pairs = zip(attributions.split(1), masks.split(1), strict=True)
    alone = torch.cat([pointing_game(*pair, 2) for pair in pairs])
    assert_close(pointing_game(attributions, masks, 2), alone, equal_nan=True)


def test_an_empty_batch_gives_an_empty_result():
    masks = torch.zeros(0, 4, 5, dtype=torch.bool)
    assert pointing_game(torch.zeros(0, 3, 4, 5), masks).shape == (0,)


def test_gradients_and_inputs_stay_out():
    attributions = torch.rand(2, 1, 4, 5, requires_grad=True)
    before = attributions.detach().clone()
    masks = torch.rand(2, 4, 5) < 0.5
    assert not pointing_game(attributions, masks).requires_grad
    assert_close(attributions.detach(), before, rtol=0, atol=0)


def test_of_a_tuple_the_maximum_over_all_tensors_counts():
    low = _spot((4, 5), (0, 0)).expand(3, 1, 4, 5)
    high = torch.zeros(3, 2, 9)
    high[:, :, 7] = torch.tensor([0.3, 0.5, 0.8])[:, None]  # sums 0.6, 1, 1.6
    hit_low = _object((4, 5), (0, 0)).expand(3, 4, 5)
    no_object = torch.zeros(3, 9, dtype=torch.bool)
    hits = pointing_game((low, high), (hit_low, no_object), 0)
    assert hits.tolist() == [1.0, 1.0, 0.0]  # of equals the first tensor
    hits = pointing_game((low, high), (~hit_low, ~no_object), 0)
    assert hits.tolist() == [0.0, 0.0, 1.0]


def test_a_tuple_of_one_is_its_tensor():
    attributions, masks = torch.rand(8, 3, 5, 7), torch.rand(8, 5, 7) < 0.05
    assert_close(
        pointing_game((attributions,), (masks,), 2),
        pointing_game(attributions, masks, 2),
        equal_nan=True,
    )


def test_a_tuple_without_any_object_is_undefined():
    maps = (_spot((4, 5), (0, 0)), _spot((9,), (2,)))
    assert pointing_game(maps, (_object((4, 5)), _object((9,)))).isnan().all()


def test_the_tensors_of_a_tuple_may_differ_by_their_constants():
    maps = (torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 3))
    masks = (_object((2, 2), (0, 0)), _object((3,), (0,)))
    assert pointing_game(maps, masks, 0) == 1
    flat = (torch.ones(1, 1, 2, 2), torch.ones(1, 1, 3))
    assert pointing_game(flat, masks, 0) == 0


# --- pointing game: traps ---


def test_rows_and_columns_are_not_swapped():
    size = (20, 60)
    attribution = _spot(size, (5, 50))
    assert pointing_game(attribution, _object(size, (5, 50)), 3) == 1
    assert pointing_game(attribution, _object(size, (15, 5)), 3) == 0
    square = _spot((60, 60), (5, 50))
    assert pointing_game(square, _object((60, 60), (50, 5)), 15) == 0


def test_the_tolerance_counts_pixels_of_the_attribution():
    # 10 pixels beside the object on the small map are 40 on the image.
    small = _spot((32, 48), (16, 20))
    objects = _object((32, 48), (16, 30))
    assert pointing_game(small, objects) == 1
    large = torch.nn.functional.interpolate(small, scale_factor=4)
    large_objects = objects.repeat_interleave(4, 1).repeat_interleave(4, 2)
    assert pointing_game(large, large_objects) == 0


@given(st.data())
def test_a_translation_changes_nothing(data):
    size = data.draw(st.sampled_from([(12, 17), (17, 12), (25,)]))
    inner = [length // 2 for length in size]
    cells = st.tuples(*[st.integers(0, length - 1) for length in inner])
    spots = data.draw(st.lists(cells, min_size=1, max_size=3))
    pixels = data.draw(st.lists(cells, min_size=1, max_size=3))
    tolerance = data.draw(st.floats(0, 6))
    attribution, mask = _spot(size, *spots), _object(size, *pixels)
    shifts = data.draw(
        st.tuples(*[st.integers(0, a - b) for a, b in zip(size, inner, strict=True)])
    )
    axes = list(range(-len(size), 0))
    moved = pointing_game(
        attribution.roll(shifts, axes), mask.roll(shifts, axes), tolerance
    )
    assert_close(moved, pointing_game(attribution, mask, tolerance))


@given(st.integers(0, 10**6), st.floats(0, 12), st.floats(0, 12))
def test_a_larger_tolerance_never_loses_a_hit(seed, one, other):
    generator = torch.Generator().manual_seed(seed)
    attributions = torch.rand(8, 2, 7, 9, generator=generator)
    masks = torch.rand(8, 7, 9, generator=generator) < 0.04
    small = pointing_game(attributions, masks, min(one, other))
    large = pointing_game(attributions, masks, max(one, other))
    assert not (large < small).any()
    assert_close(small.isnan(), large.isnan())


# --- pointing game: errors ---


MAPS, TRUTH = torch.rand(2, 3, 4, 5), torch.ones(2, 4, 5, dtype=torch.bool)


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ((MAPS, TRUTH, -1), ValueError, "tolerance must be finite and at least 0, got"),
        ((MAPS, TRUTH, math.inf), ValueError, "tolerance must be finite"),
        ((MAPS, TRUTH, "15"), TypeError, "tolerance must be a number, got '15'"),
        ((MAPS, TRUTH.float()), TypeError, "object_masks must be a bool tensor.*32$"),
        ((MAPS, TRUTH.byte()), TypeError, "object_masks must be a bool tensor.*int8$"),
        ((MAPS, None), TypeError, "object_masks must be a bool tensor.*got NoneType"),
        ((MAPS, TRUTH.mT), ValueError,
         r"object_masks must be of shape \(2, 4, 5\) or \(2, 1, 4, 5\), as the "
         r"attributions are, got \(2, 5, 4\)"),
        ((MAPS, TRUTH[:1]), ValueError, r"object_masks must .* got \(1, 4, 5\)"),
        ((MAPS, TRUTH[0]), ValueError, r"object_masks must .* got \(4, 5\)"),
        ((MAPS, TRUTH[:, None].expand(2, 3, 4, 5)), ValueError,
         r"object_masks must .* got \(2, 3, 4, 5\)"),
        ((MAPS.long(), TRUTH), TypeError, "attributions must be a floating point"),
        ((MAPS[0, 0], TRUTH), ValueError, r"attributions must be of shape \(N, C, "),
        (([MAPS], TRUTH), TypeError, "attributions must be a floating point tensor"),
        (((), ()), ValueError, "attributions must hold at least one tensor, got none"),
        (((MAPS, MAPS[:1]), (TRUTH, TRUTH[:1])), ValueError,
         "attributions must agree in their first dimension N, got 2 and 1"),
        (((MAPS, MAPS), (TRUTH,)), ValueError,
         "object_masks must be a tuple of 2, like attributions, got a tuple of 1"),
        (((MAPS,), TRUTH), ValueError,
         "object_masks must be a tuple of 1, like attributions, got Tensor"),
        ((MAPS, (TRUTH,)), ValueError,
         "object_masks must be no tuple, like attributions, got a tuple of 1"),
    ],
)  # fmt: skip
def test_bad_arguments_of_the_pointing_game(arguments, error, text):
    with pytest.raises(error, match=text):
        pointing_game(*arguments)


# --- energy ---


@pytest.mark.parametrize("size", SIZES, ids=len)
def test_energy_against_the_formula(size, device, dtype):
    attributions = torch.randn(12, 2, *size).to(device, dtype)
    attributions[3] = -1.0
    object_masks = (torch.rand(12, *size) < 0.3).to(device)
    object_masks[5] = False
    shares = energy_pointing_game(attributions, object_masks)
    pairs = zip(attributions.cpu().numpy(), object_masks.cpu().numpy(), strict=True)
    expected = [reference.energy_pointing_game(*pair) for pair in pairs]
    assert (shares.dtype, shares.device.type) == (dtype, device.type)
    assert shares.isnan().nonzero().flatten().tolist() == [3, 5]
    expected = torch.tensor(expected, dtype=torch.float64)
    assert_close(shares.cpu(), expected.to(dtype), equal_nan=True)


@pytest.mark.parametrize("value", [0.0, -1.0, NAN, math.inf])
def test_energy_without_a_finite_positive_part_is_undefined(value):
    attribution = torch.full((1, 1, 2, 3), value)
    assert energy_pointing_game(attribution, _object((2, 3), (0, 0))).isnan()


def test_energy_of_an_empty_ground_truth_is_undefined():
    assert energy_pointing_game(torch.ones(1, 1, 2, 3), _object((2, 3))).isnan()


def test_energy_outside_does_not_spread_a_nan():
    attributions = torch.ones(2, 1, 2, 3)
    attributions[0, 0, 1, 1] = NAN
    masks = _object((2, 3), (0, 0)).expand(2, 2, 3)
    shares = energy_pointing_game(attributions, masks)
    assert_close(shares, torch.tensor([NAN, 1 / 6]), equal_nan=True)


def test_energy_with_an_infinity_is_undefined():
    attribution = torch.tensor([[[1.0, math.inf, 1.0]]])
    for pixel in range(3):
        assert energy_pointing_game(attribution, _object((3,), (pixel,))).isnan()


def test_energy_sums_channels_before_it_cuts_off_negatives():
    attribution = torch.tensor([[[4.0, 1.0], [-3.0, 1.0]]])
    share = energy_pointing_game(attribution, _object((2,), (0,)))
    assert_close(share, torch.tensor([1 / 3]))


def test_energy_of_a_tuple_adds_up():
    maps = (torch.ones(1, 1, 2, 2), torch.ones(1, 3, 2))
    masks = (_object((2, 2), (0, 0)), _object((2,), (1,)))
    assert_close(energy_pointing_game(maps, masks), torch.tensor([(1 + 3) / 10]))
    none = (_object((2, 2)), masks[1])
    assert_close(energy_pointing_game(maps, none), torch.tensor([3 / 10]))


@given(st.integers(0, 10**6), st.floats(1e-3, 1e3))
def test_energy_is_a_share_that_ignores_scale_and_negatives(seed, scale):
    generator = torch.Generator().manual_seed(seed)
    attributions = torch.randn(4, 1, 5, 6, generator=generator)
    masks = torch.rand(4, 5, 6, generator=generator) < 0.5
    shares = energy_pointing_game(attributions, masks)
    assert ((shares >= 0) & (shares <= 1)).all()
    assert_close(energy_pointing_game(attributions * scale, masks), shares)
    assert_close(energy_pointing_game(attributions.relu(), masks), shares)
    assert_close(energy_pointing_game(attributions, ~masks), 1 - shares)


def test_bad_arguments_of_the_energy():
    with pytest.raises(TypeError, match="object_masks must be a bool tensor"):
        energy_pointing_game(MAPS, TRUTH.float())
    with pytest.raises(ValueError, match=r"object_masks must .* got \(2, 5, 4\)"):
        energy_pointing_game(MAPS, TRUTH.mT)


# --- accumulated over a data set ---


def _examples(num, num_classes=4, device="cpu"):
    """Attributions, object masks, labels and flags with hits, misses and undefined."""
    attributions = torch.rand(num, 1, 5, 7)
    object_masks = torch.rand(num, 5, 7) < 0.06
    object_masks[::5] = False
    labels = torch.randint(num_classes - 1, (num,))  # the last class has no example
    difficult = torch.rand(num) < 0.5
    examples = (attributions, object_masks, labels, difficult)
    return tuple(value.to(device) for value in examples)


def test_accuracy_against_the_formula(device):
    attributions, object_masks, labels, difficult = _examples(60, device=device)
    metric = PointingGame(num_classes=4, tolerance=2).to(device)
    for part in torch.arange(60, device=device).split(13):
        metric.update(
            attributions[part], object_masks[part], labels[part], difficult[part]
        )
    computed = metric.compute()
    hits = pointing_game(attributions, object_masks, tolerance=2)
    for prefix, chosen in [("", difficult | True), ("difficult_", difficult)]:
        expected = reference.class_accuracies(
            hits[chosen].tolist(), labels[chosen].tolist(), 4
        )
        per_class = computed[prefix + "per_class"]
        assert per_class.device.type == device.type
        assert_close(per_class.cpu(), torch.tensor(expected), equal_nan=True)
        assert 0 < np.nanmean(expected) < 1
        assert math.isnan(expected[3])
        assert computed[prefix + "accuracy"].item() == pytest.approx(
            np.nanmean(expected)
        )
    assert metric.hits.sum() + metric.misses.sum() == (~hits.isnan()).sum()


def test_accuracy_is_the_mean_over_classes_not_over_examples():
    attributions = _spot((1, 4), (0, 0)).expand(4, 1, 1, 4)
    object_masks = _object((1, 4), (0, 0)).repeat(4, 1, 1)
    object_masks[3] = ~object_masks[3]
    metric = PointingGame(num_classes=5, tolerance=0)
    metric.update(attributions, object_masks, labels=torch.tensor([1, 1, 1, 2]))
    computed = metric.compute()
    assert computed["accuracy"] == 0.5
    assert_close(
        computed["per_class"], torch.tensor([NAN, 1, 0, NAN, NAN]), equal_nan=True
    )
    assert computed["difficult_accuracy"].isnan()
    assert computed["difficult_per_class"].isnan().all()


def test_undefined_examples_are_not_counted():
    metric = PointingGame(num_classes=2)
    attributions, none = torch.rand(3, 1, 4, 5), torch.zeros(3, 4, 5) > 0
    metric.update(attributions, none, torch.tensor([0, 1, 1]), torch.ones(3) > 0)
    assert all(value.isnan().all() for value in metric.compute().values())


def test_the_tolerance_of_the_accumulator_counts():
    attribution, truth = _spot((1, 40), (0, 0)), _object((1, 40), (0, 14))
    for tolerance, accuracy in [(15, 1), (14, 0)]:
        metric = PointingGame(num_classes=1, tolerance=tolerance)
        metric.update(attribution, truth, torch.tensor([0]))
        assert metric.compute()["accuracy"] == accuracy
    assert PointingGame(num_classes=1).tolerance == 15
    assert not PointingGame(num_classes=1, sync_on_compute=False).sync_on_compute


def test_ranks_add_up():
    examples = _examples(40)
    whole, first, second = (PointingGame(4, tolerance=2) for _ in range(3))
    whole.update(*examples)
    first.update(*[value[:15] for value in examples])
    second.update(*[value[15:] for value in examples])
    # What torchmetrics does on each of two ranks: gather every state, then reduce it.
    states = {id(getattr(first, name)): name for name in first._reductions}
    first.distributed_available_fn = lambda: True
    first.dist_sync_fn = lambda state, group: [
        state,
        getattr(second, states[id(state)]),
    ]
    assert_close(first.compute(), whole.compute(), equal_nan=True)
    assert first.hits.sum() < whole.hits.sum()  # afterwards a rank has its own again


def test_merged_states_add_up():
    examples = _examples(40)
    whole, first, second = (PointingGame(4, tolerance=2) for _ in range(3))
    whole.update(*examples)
    first.update(*[value[:15] for value in examples])
    second.update(*[value[15:] for value in examples])
    first.merge_state(second)
    assert_close(first.compute(), whole.compute(), equal_nan=True)


def test_the_accumulator_lives_as_other_metrics_do():
    examples = _examples(20)
    metric = PointingGame(4, tolerance=2)
    batch = metric(*examples)  # the value of this batch, added to the state
    assert_close(batch, metric.compute(), equal_nan=True)
    copy = pickle.loads(pickle.dumps(metric))
    assert_close(copy.compute(), metric.compute(), equal_nan=True)
    metric.reset()
    assert metric.hits.sum() + metric.misses.sum() == 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchmetrics: compute before update
        assert metric.compute()["accuracy"].isnan()


def test_a_failed_update_leaves_the_counts():
    metric = PointingGame(4, tolerance=2)
    metric.update(*_examples(20))
    before = metric.hits.clone()
    with pytest.raises(ValueError, match="labels must lie in 0 to 3, got 4"):
        metric.update(MAPS, TRUTH, torch.tensor([1, 4]))
    assert_close(metric.hits, before)


ZEROS = torch.zeros(2, dtype=torch.long)


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ((MAPS, TRUTH, ZEROS - 1), ValueError, "labels must lie in 0 to 3, got -1"),
        ((MAPS, TRUTH, ZEROS[:1]), ValueError, r"labels must be of shape \(2,\), got "),
        ((MAPS, TRUTH, ZEROS.float()), TypeError, "labels must be a tensor of whole"),
        ((MAPS, TRUTH, [0, 0]), TypeError, "labels must be a tensor .* got list"),
        ((MAPS, TRUTH, ZEROS, ZEROS), TypeError, "difficult must be a bool tensor"),
        ((MAPS, TRUTH, ZEROS, TRUTH), ValueError, r"difficult must be of shape \(2,"),
        ((MAPS, TRUTH.mT, ZEROS), ValueError, "object_masks must be of shape"),
    ],
)
def test_bad_examples_for_the_accumulator(arguments, error, text):
    with pytest.raises(error, match=text):
        PointingGame(4).update(*arguments)


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ((0,), ValueError, "num_classes must be at least 1, got 0"),
        ((2.0,), TypeError, "num_classes must be an int, got 2.0"),
        ((2, -1), ValueError, "tolerance must be finite and at least 0, got -1"),
    ],
)
def test_bad_arguments_of_the_accumulator(arguments, error, text):
    with pytest.raises(error, match=text):
        PointingGame(*arguments)


def test_only_the_accumulator_needs_torchmetrics():
    source = """
import sys
sys.modules["torchmetrics"] = None  # as if it were not installed
import torch
from captum_extremal import metrics
print(metrics.pointing_game(torch.ones(1, 1, 2, 2), torch.ones(1, 2, 2) > 0))
try:
    metrics.PointingGame
except ModuleNotFoundError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", source], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == [
        "tensor([0.])",
        "PointingGame needs torchmetrics: pip install 'captum_extremal[metrics]'",
    ]


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'pointing_match'"):
        _ = package.pointing_match


# --- metrics side by side in a collection ---


class Hits(Accumulator):
    """A later metric: it counts by whatever its one setting says."""

    def __init__(self, setting, **kwargs):
        super().__init__(**kwargs)
        self.setting = setting
        self.add_state("hits", torch.zeros(1), dist_reduce_fx="sum")

    def update(self, attributions, object_masks, labels):
        tolerance = 0 if str(self.setting) in ("0", "strict", "(0,)") else 15
        self.hits = self.hits + pointing_game(attributions, object_masks, tolerance)

    def compute(self):
        return self.hits.sum()


class OtherHits(Hits):
    """The same states and setting, another rule."""

    def update(self, attributions, object_masks, labels):
        super().update(attributions, object_masks, labels)
        self.hits = self.hits - (self.hits > 1).float()


def near(shift):
    """One example whose maximum lies so many pixels beside the object."""
    example = _spot((20, 60), (10, 20 + shift)), _object((20, 60), (10, 20))
    return (*example, torch.tensor([0]))


PAIRS = [
    (lambda: PointingGame(1), lambda: PointingGame(1, tolerance=0)),
    (lambda: PointingGame(1, 0), lambda: PointingGame(1, 4.0000001)),
    (lambda: PointingGame(1, 4), lambda: PointingGame(1, 4.0000001)),
    (lambda: Hits(15), lambda: Hits(0)),
    (lambda: Hits("strict"), lambda: Hits("loose")),
    (lambda: Hits((0,)), lambda: Hits((1,))),
    (lambda: Hits(0), lambda: OtherHits(0)),
    (lambda: Hits(torch.zeros(2)), lambda: Hits(torch.ones(2))),
    (lambda: Hits(lambda x: x), lambda: Hits(lambda x: -x)),
]  # fmt: skip


@pytest.mark.parametrize(("one", "other"), PAIRS)
@pytest.mark.parametrize("first", [0, 4, 30], ids=["both hit", "one", "none"])
@pytest.mark.parametrize("way", ["update", "forward", "reset", "clone", "pickle"])
def test_metrics_of_other_settings_never_become_one(one, other, first, way):
    if way == "pickle" and callable(getattr(one(), "setting", None)):
        pytest.skip("no metric that holds a lambda can be pickled")
    together = MetricCollection({"one": one(), "other": other()})
    apart = MetricCollection({"one": one(), "other": other()}, compute_groups=False)
    for collection in (together, apart):
        if way == "forward":
            collection(*near(first))
        elif way == "reset":
            collection.update(*near(first))
            collection.reset()
        collection.update(*near(first))
    if way == "clone":
        together = together.clone()
    elif way == "pickle":
        together = pickle.loads(pickle.dumps(together))
    for collection in (together, apart):
        for shift in (4, 0, 9):
            collection.update(*near(shift))
    assert len(together.compute_groups) == 2
    assert_close(together.compute(), apart.compute(), equal_nan=True)


@pytest.mark.parametrize("make", [lambda: PointingGame(1, 3), lambda: Hits(0)])
def test_metrics_of_equal_settings_may_become_one(make):
    both = MetricCollection({"one": make(), "other": make()})
    both.update(*near(0))
    assert len(both.compute_groups) == 1
    both.update(*near(9))
    alone = MetricCollection({"one": make(), "other": make()}, compute_groups=False)
    alone.update(*near(0))
    alone.update(*near(9))
    assert_close(both.compute(), alone.compute(), equal_nan=True)


def test_a_setting_that_is_changed_before_the_first_update_counts():
    copy = PointingGame(1)
    copy.tolerance = 0
    both = MetricCollection({"one": PointingGame(1), "other": copy})
    both.update(*near(0))
    both.update(*near(5))
    assert both.compute()["one_accuracy"] == 1.0
    assert both.compute()["other_accuracy"] == 0.5


@pytest.mark.parametrize("change", ["half", "double", "set_dtype", "state_dict"])
def test_settings_survive_what_is_done_to_a_metric(change):
    one, other = PointingGame(1), PointingGame(1, tolerance=0)
    for metric in (one, other):
        metric.update(*near(0))
        if change == "set_dtype":
            metric.set_dtype(torch.half)
        elif change == "state_dict":
            metric.persistent(True)
            fresh = PointingGame(1, tolerance=metric.tolerance)
            fresh.load_state_dict(metric.state_dict())
            assert fresh.settings.equal(metric.settings)
        else:
            getattr(metric, change)()
    assert not MetricCollection._equal_metric_states(one, other)
    assert one.compute()["accuracy"] == other.compute()["accuracy"] == 1


def test_every_metric_of_the_package_tells_its_settings():
    modules = [
        importlib.import_module(it.name)
        for it in pkgutil.walk_packages(captum_extremal.__path__, "captum_extremal.")
        if not it.name.endswith("__main__")
    ]
    metrics = {
        it
        for module in modules
        for it in vars(module).values()
        if isinstance(it, type) and issubclass(it, Metric) and it is not Metric
    }
    assert metrics == {Accumulator, PointingGame}
    assert all(issubclass(it, Accumulator) for it in metrics)


# --- finite attributions of any size ---

# Powers of two at both ends of each type: whole numbers up to 8 stay exact, and sums
# of several are too large, or as small as can be.
ENDS = {
    torch.float16: (2.0**12, 2.0**-24),
    torch.bfloat16: (2.0**124, 2.0**-133),
    torch.float32: (2.0**124, 2.0**-149),
    torch.float64: (2.0**1020, 2.0**-1074),
}


def _judged(maps, truth):
    return torch.tensor(
        [
            [math.nan if it is None else it for it in runner._judge(m[None], o)]
            for m, o in zip(maps.sum(dim=1, keepdim=True), truth, strict=True)
        ]
    )


def _counted(maps, truth):
    metric = PointingGame(1, tolerance=0)
    metric.update(maps, truth, torch.zeros(len(maps)).long())
    return metric.compute()["per_class"]


def _as_insertion(auc, maps):
    inputs = torch.rand(2, 3, 6, 7, generator=torch.Generator().manual_seed(1))
    return auc(lambda x: x.square().sum((1, 2, 3)), inputs, maps)


IGNORE_SCALE = {
    "pointing": lambda maps, truth: pointing_game(maps, truth, 0),
    "energy": energy_pointing_game,
    "accumulated": _counted,
    "insertion": lambda maps, truth: _as_insertion(insertion_auc, maps),
    "deletion": lambda maps, truth: _as_insertion(deletion_auc, maps),
    "overlay": lambda maps, truth: overlay_saliency(GREY, maps[0, :1]),
    "signed overlay": lambda maps, truth: overlay_signed(GREY, maps[0, :1]),
    "benchmark": lambda maps, truth: _judged(maps[:, :1], truth),
    "figure": lambda maps, truth: overlay_signed(GREY, map_of("it", maps[0], (6, 7))),
    "enlarged": lambda maps, truth: overlay_signed(
        torch.full((1, 9, 9), 0.5), map_of("it", maps[0], (9, 9))
    ),
}
KEEP_SCALE = {
    "saliency": lambda maps: masks_to_saliency(maps[:, :, None].abs()),
    "plain saliency": lambda maps: masks_to_saliency(maps[:, :, None].abs(), smooth=0),
    "long saliency": lambda maps: masks_to_saliency(
        maps[:, :, None].abs().repeat_interleave(300, dim=-1)
    ),
    "without outliers": lambda maps: without_outliers(maps[:, :1], percent=20),
}
GREY = torch.full((1, 6, 7), 0.5)


@pytest.mark.parametrize("end", ["large", "small"])
@pytest.mark.parametrize("dtype", list(ENDS), ids=str)
@pytest.mark.parametrize("name", [*IGNORE_SCALE, *KEEP_SCALE])
@given(seed=st.integers(0, 10**6))
@settings(max_examples=8)
def test_finite_attributions_of_any_size_give_the_right_numbers(name, dtype, end, seed):
    source = torch.Generator().manual_seed(seed)
    maps = torch.randint(-8, 9, (2, 3, 6, 7), generator=source).to(dtype)
    truth = torch.rand(2, 6, 7, generator=source) < 0.4
    extreme = (maps.double() * ENDS[dtype][end == "small"]).to(dtype)
    assert extreme.isfinite().all()
    if name in IGNORE_SCALE:
        usual, found = (IGNORE_SCALE[name](it, truth) for it in (maps, extreme))
        assert_close(found, usual, equal_nan=True, rtol=1e-5, atol=1e-6)
        return
    usual, found = (KEEP_SCALE[name](it) for it in (maps, extreme))
    assert found.dtype == dtype
    assert found.isfinite().all()
    places = found.flatten(1).argmax(dim=1), usual.flatten(1).argmax(dim=1)
    if end == "large":  # up to a power of two; small ones are rounded
        usual, found = (it.flatten(1).double() for it in (usual, found))
        share = found.amax(dim=1, keepdim=True) / usual.amax(dim=1, keepdim=True)
        rtol = 1e-5 if dtype in (torch.float32, torch.float64) else 1e-2
        assert_close(found / share, usual, rtol=rtol, atol=8 * rtol)
    elif "plain" in name:
        assert places[0].equal(places[1])


def test_large_channels_that_cancel():
    """3e38 + 3e38 - 3e38 is 3e38, not infinity."""
    maps = torch.tensor([[[3e38, 1.0], [3e38, 1.0], [-3e38, 1.0], [-3e38, 0.0]]])
    assert pointing_game(maps, _object((2,), (1,)), 0) == 1
    assert energy_pointing_game(maps, _object((2,), (1,))) == 1
    model, inputs = (lambda x: x[:, 0, 1]), torch.ones(1, 1, 2)
    assert insertion_auc(model, inputs, maps, steps=2) == 0.75


def test_the_tensors_of_a_tuple_keep_their_proportions():
    large = torch.tensor([[[3e38, 3e38], [3e38, 0.0]]])
    maps = (large, torch.tensor([[[2e38]]], dtype=torch.float64))
    truth = (_object((2,)), _object((1,), (0,)))
    assert_close(
        energy_pointing_game(maps, truth),
        torch.tensor([2 / 11], dtype=torch.float64),
        rtol=1e-6,
        atol=0,
    )
    assert pointing_game(maps, truth, 0) == 0
    hidden = (torch.tensor([[[1e38, 1.0]]]), torch.tensor([[[3e38]]]))
    assert pointing_game(hidden, truth, 0) == 1


def test_scores_keep_the_precision_of_the_model():
    """Of a float64 model, and no mean of large scores is infinite."""
    inputs, maps = torch.ones(1, 1, 4, dtype=torch.float64), torch.arange(4.0)
    small = insertion_auc(lambda x: 1 + 1e-12 * x.sum((1, 2)), inputs, maps[None, None])
    assert small.dtype == torch.float64
    assert float(small) == pytest.approx(1 + 2e-12, abs=1e-15)
    for dtype, largest in ((torch.float32, 3e38), (torch.float64, 1.7e308)):
        area = deletion_auc(
            lambda x, it=largest: it + 0 * x.sum((1, 2)),
            inputs.to(dtype),
            maps[None, None],
        )
        assert float(area) == pytest.approx(largest, rel=1e-6)


# --- insertion and deletion ---

AUCS = {"insertion": insertion_auc, "deletion": deletion_auc}


@pytest.fixture(params=list(AUCS))
def auc(request):
    return AUCS[request.param]


def _soft(model):
    """Probabilities, so that an area lies in [0, 1]."""
    return lambda *inputs: model(*inputs).softmax(dim=1)


@pytest.mark.parametrize("size", SIZES, ids=len)
@pytest.mark.parametrize("steps", [1, 4, 7, 1000])
@pytest.mark.parametrize("kind", list(AUCS))
def test_auc_against_the_formula(kind, size, steps, device):
    model = Blocks(len(size), scale=3.0).double().to(device)
    inputs = torch.rand(3, 2, *size).to(device, torch.float64)
    # Few values, so that ties are frequent.
    attributions = torch.randint(4, (3, 2, *size)).to(inputs)
    baselines = torch.rand(1, 2, *size).to(inputs)
    found = AUCS[kind](
        _soft(model), inputs, attributions, baselines, target=[0, 1, 1], steps=steps
    )

    def scores(image, label):
        probabilities = _soft(model)(torch.from_numpy(image)[None].to(inputs))
        return probabilities[0, label].item()

    expected = [
        reference.perturbation_auc(
            lambda image, label=label: scores(image, label),
            inputs[n].cpu().numpy(),
            attributions[n].cpu().numpy(),
            baselines[0].cpu().numpy(),
            steps,
            inserting=kind == "insertion",
        )
        for n, label in enumerate([0, 1, 1])
    ]
    assert (found.dtype, found.device.type) == (torch.float64, device.type)
    assert_close(found.cpu(), torch.tensor(expected, dtype=torch.float64))


def test_the_right_order_beats_the_wrong_one():
    model, inputs = _soft(Blocks(scale=20.0)), torch.ones(2, 1, 8, 12)
    right = torch.zeros(2, 1, 8, 12)
    right[0, :, :4, :6] = 1.0  # class 0: above left
    right[1, :, :4, 6:] = 1.0  # class 1: above right
    arguments = {"target": torch.tensor([0, 1]), "steps": 16}
    good = insertion_auc(model, inputs, right, **arguments)
    bad = insertion_auc(model, inputs, -right, **arguments)
    assert (good > bad + 0.5).all()
    good = deletion_auc(model, inputs, right, **arguments)
    bad = deletion_auc(model, inputs, -right, **arguments)
    assert (good < bad - 0.2).all()


def test_a_straight_curve_has_half_of_its_rise(auc):
    inputs = torch.ones(1, 1, 3, 7)
    area = auc(lambda x: x.mean(dim=(1, 2, 3)), inputs, torch.rand(1, 1, 3, 7), steps=5)
    assert_close(area, torch.tensor([0.5]))


def test_equal_pixels_come_in_row_major_order(auc):
    inputs = torch.arange(6.0).reshape(1, 1, 2, 3)
    falling = torch.arange(6.0).flip(0).reshape(1, 1, 2, 3)

    def weighted(x):
        return x.sum(dim=(1, 2, 3))

    flat = auc(weighted, inputs, torch.zeros(1, 1, 2, 3))
    assert_close(flat, auc(weighted, inputs, falling))
    assert flat != auc(weighted, inputs, -falling)


def test_a_pixel_comes_with_all_its_channels():
    seen = []

    def forward(x):
        seen.append(x.clone())
        return x.sum(dim=(1, 2))

    inputs = torch.tensor([[[1.0, 1.0], [2.0, 2.0]]])
    attributions = torch.tensor([[[5.0, 0.0], [-5.0, 1.0]]])  # sums 0 and 1
    insertion_auc(forward, inputs, attributions)
    steps = torch.cat(seen)
    assert steps.tolist() == [[[0, 0], [0, 0]], [[0, 1], [0, 2]], [[1, 1], [2, 2]]]


def test_the_ends_are_baseline_and_input(auc):
    seen = []

    def forward(x):
        seen.append(x.clone())
        return x.sum(dim=(1, 2, 3))

    inputs = torch.rand(1, 2, 4, 5)
    blurred = gaussian_blur(inputs, sigma=2.0)
    auc(forward, inputs, torch.rand(1, 1, 4, 5), blurred, steps=3)
    ends = torch.cat(seen)[[0, -1]]
    expected = torch.cat([blurred, inputs])
    if auc is deletion_auc:
        expected = expected.flip(0)
    assert_close(ends, expected, rtol=0, atol=0)


def test_a_nan_of_the_baseline_stays_where_it_is_shown():
    def finite(x):
        assert x[..., 0].isfinite().all()
        return x[..., 0].sum(dim=(1, 2))

    inputs = torch.ones(1, 1, 2, 2)
    baselines = torch.tensor([[[[0.0, NAN], [0.0, math.inf]]]])
    assert insertion_auc(finite, inputs, inputs, baselines).isfinite()


@pytest.mark.parametrize("baselines", [0.5, 1, torch.full((1, 2, 4, 6), 0.5)])
def test_baselines_count(auc, baselines):
    inputs, attributions = torch.rand(2, 2, 4, 6), torch.rand(2, 1, 4, 6)
    model = _soft(Blocks(scale=3.0))
    found = auc(model, inputs, attributions, baselines, target=1)
    whole = torch.as_tensor(baselines).expand(2, 2, 4, 6)
    assert_close(found, auc(model, inputs, attributions, whole, target=1))
    black = auc(model, inputs, attributions, target=1)
    assert_close(black, auc(model, inputs, attributions, 0.0, target=1))
    assert not torch.isclose(found, black).any()


def test_chunks_change_nothing(auc):
    inputs, attributions = torch.rand(3, 2, 4, 6), torch.rand(3, 2, 4, 6)
    sizes = []

    def forward(x, factor, label):
        sizes.append(len(x))
        assert len(factor) == len(x)
        assert label == "kept"
        return _soft(Blocks(scale=3.0))(x) * factor[:, None]

    extra = (torch.tensor([1.0, 2.0, 3.0]), "kept")
    areas = []
    for per_eval in (1, 4, 1000):
        sizes.clear()
        found = auc(
            forward,
            inputs,
            attributions,
            additional_forward_args=extra,
            target=torch.tensor([2, 0, 1]),
            steps=6,
            perturbations_per_eval=per_eval,
        )
        assert max(sizes) == min(per_eval, 21)
        assert sum(sizes) == 21
        areas.append(found)
    assert_close(areas[0], areas[1])
    assert_close(areas[0], areas[2])


def test_an_auc_of_a_batch_is_that_of_its_examples(auc):
    inputs, attributions = torch.rand(3, 2, 4, 6), torch.rand(3, 2, 4, 6)
    model = _soft(Blocks(scale=3.0))
    whole = auc(model, inputs, attributions, target=[2, 0, 1])
    alone = [
        auc(model, inputs[n : n + 1], attributions[n : n + 1], target=label)
        for n, label in enumerate([2, 0, 1])
    ]
    assert_close(whole, torch.cat(alone))


def test_the_pixels_of_a_tuple_are_ranked_together(auc):
    first, second = torch.rand(2, 1, 2, 4), torch.rand(2, 1, 2, 4)
    maps = torch.rand(2, 1, 2, 4), torch.rand(2, 1, 2, 4)

    def joint(x):
        return (x * torch.arange(1.0, 17).reshape(4, 4)).sum(dim=(1, 2, 3))

    def separate(x, y):
        return joint(torch.cat([x, y], dim=2))

    found = auc(separate, (first, second), maps, (0.5, 0.5), steps=9)
    one = torch.cat([first, second], dim=2), torch.cat(maps, dim=2)
    assert_close(found, auc(joint, *one, 0.5, steps=9))


def test_a_tuple_of_different_sizes(auc):
    model = TwoInputs((2, 1))
    inputs = torch.rand(2, 1, 4, 5), torch.rand(2, 3, 9)
    maps = torch.rand(2, 1, 4, 5), torch.rand(2, 1, 9)
    assert auc(_soft(model), inputs, maps, target=0).shape == (2,)


def test_an_attribution_with_a_nan_has_no_auc(auc):
    attributions = torch.rand(2, 1, 4, 6)
    attributions[1, 0, 0, 0] = NAN
    found = auc(_soft(Blocks()), torch.rand(2, 1, 4, 6), attributions, target=0)
    assert found.isnan().tolist() == [False, True]


def test_model_and_generator_are_left_as_found(auc):
    model = ConvNet().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    inputs = torch.rand(2, 1, 8, 8, requires_grad=True)
    attributions = torch.rand(2, 1, 8, 8, requires_grad=True)
    state = torch.get_rng_state()
    area = auc(model, inputs, attributions, target=0)
    assert not area.requires_grad
    assert model.training
    assert inputs.grad is None
    assert torch.equal(torch.get_rng_state(), state)
    for name, value in model.state_dict().items():
        assert_close(value, before[name], rtol=0, atol=0)


@given(st.integers(0, 10**6), st.integers(1, 9))
def test_the_order_alone_counts(seed, steps):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.rand(2, 1, 4, 5, generator=generator)
    attributions = torch.randn(2, 1, 4, 5, generator=generator)
    model = _soft(Blocks(scale=3.0))
    for auc in AUCS.values():
        area = auc(model, inputs, attributions, target=1, steps=steps)
        same = auc(model, inputs, attributions.exp() * 3, target=1, steps=steps)
        assert_close(same, area)
        assert ((area > 0) & (area < 1)).all()


@given(st.integers(0, 10**6))
def test_deletion_is_insertion_backwards(seed):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.rand(2, 1, 4, 5, generator=generator)
    attributions = torch.rand(2, 1, 4, 5, generator=generator).double()
    model = _soft(Blocks(scale=3.0))
    # The last pixels come first, hence n pixels are left where n had come.
    assert_close(
        deletion_auc(model, inputs, attributions, target=1, steps=20),
        insertion_auc(model, inputs, -attributions, target=1, steps=20),
    )


IMAGES = torch.rand(2, 3, 4, 5)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "text"),
    [
        ((IMAGES, MAPS), {"forward_func": 3}, TypeError,
         "forward_func must be callable, got 3"),
        ((IMAGES, MAPS), {"steps": 0}, ValueError, "steps must be at least 1, got 0"),
        ((IMAGES, MAPS), {"steps": 2.5}, TypeError, "steps must be an int, got 2.5"),
        ((IMAGES, MAPS), {"perturbations_per_eval": 0}, ValueError,
         "perturbations_per_eval must be at least 1, got 0"),
        (([IMAGES], MAPS), {}, AssertionError, "tuple"),
        ((IMAGES[0, 0], MAPS), {}, ValueError, r"inputs must be of shape \(N, C, "),
        ((IMAGES, MAPS.mT), {}, ValueError,
         r"attributions must match the inputs \(2, 3, 4, 5\) in all but the number "
         r"of channels, got \(2, 3, 5, 4\)"),
        ((IMAGES, (MAPS,)), {}, ValueError,
         r"attributions must match .* got a tuple of \(2, 3, 4, 5\)"),
        ((IMAGES, MAPS, "0"), {}, ValueError, "baselines must be numbers .* got str"),
        ((IMAGES, MAPS, IMAGES.mT), {}, ValueError,
         r"baselines must be .* \(2, 3, 4, 5\) or \(1, 3, 4, 5\), got a tensor of "
         r"shape \(2, 3, 5, 4\)"),
        ((IMAGES, MAPS, (0, 0)), {}, ValueError,
         "baselines must be no tuple, like inputs, got a tuple of 2"),
        (((IMAGES,), (MAPS,), 0), {}, ValueError,
         "baselines must be a tuple of 1, like inputs, got int"),
        ((IMAGES, MAPS), {"target": [0] * 3}, AssertionError, "target"),
        ((IMAGES, MAPS), {"forward_func": lambda x: x}, ValueError,
         r"forward_func and target must give one score per example: .* \(16,\), got"),
    ],
)  # fmt: skip
def test_bad_arguments_of_the_aucs(auc, arguments, options, error, text):
    options = {"forward_func": Blocks(), "target": 0, **options}
    with pytest.raises(error, match=text):
        auc(options.pop("forward_func"), *arguments, **options)


# --- masks to saliency ---


@pytest.mark.parametrize("size", SIZES, ids=len)
@pytest.mark.parametrize("smooth", [0.09, 0.3])
def test_saliency_against_the_formula(size, smooth, device, dtype):
    masks = torch.rand(2, 3, 1, *size).to(device, dtype)
    saliency = masks_to_saliency(masks, smooth)
    expected = reference.masks_to_saliency(masks.cpu().numpy(), smooth)
    assert (saliency.dtype, saliency.device.type) == (dtype, device.type)
    assert saliency.shape == (2, 1, *size)
    # Bounds of round-off on sums of 3 values in [0, 1].
    atol = {torch.float32: 2e-6, torch.float64: 1e-13}[dtype]
    assert_close(saliency.cpu().double(), torch.from_numpy(expected), rtol=0, atol=atol)


def test_sigma_is_9_percent_of_the_shorter_side():
    masks = torch.rand(1, 4, 1, 10, 30)
    assert_close(masks_to_saliency(masks), masks_to_saliency(masks, smooth=0.09))
    assert_close(masks_to_saliency(masks.mT), masks_to_saliency(masks).mT)
    one = torch.zeros(1, 1, 1, 1, 100)
    one[..., 50] = 1.0
    wide = masks_to_saliency(one.expand(1, 1, 1, 50, 100))[0, 0, 25]
    sigma = 0.09 * 50
    assert_close(wide[55] / wide[50], torch.tensor(math.exp(-((5 / sigma) ** 2) / 2)))


def test_the_smallest_mask_wins_and_its_middle():
    # Nested discs are flat at their top; alone, argmax would be the first pixel.
    rows, columns = torch.meshgrid(torch.arange(40), torch.arange(60), indexing="ij")
    distance = ((rows - 12) ** 2 + (columns - 41) ** 2).sqrt()
    masks = torch.stack([(distance <= radius).float() for radius in (4, 7, 10)])
    saliency = masks_to_saliency(masks[None, :, None])
    assert divmod(int(saliency.argmax()), 60) == (12, 41)
    middle = _object((40, 60), (12, 41))
    assert pointing_game(saliency, middle, 0) == 1
    assert pointing_game(masks[None].sum(1, keepdim=True), middle, 0) == 0


def test_without_smoothing_the_saliency_is_the_sum():
    masks = torch.rand(2, 3, 1, 4, 5)
    assert_close(masks_to_saliency(masks, smooth=0), masks.sum(dim=1))


@pytest.mark.parametrize("value", [0.0, 0.3, 1.0])
def test_constant_masks_stay_constant_and_point_nowhere(value, dtype, device):
    masks = torch.full((1, 4, 1, 37, 50), value, dtype=dtype, device=device)
    saliency = masks_to_saliency(masks)
    assert (saliency == masks.sum(dim=1)).all()
    everywhere = torch.ones(1, 37, 50, dtype=torch.bool)
    assert pointing_game(saliency, everywhere) == 0


def test_a_blob_that_the_border_cuts_yields_to_a_whole_one():
    masks = torch.zeros(1, 1, 1, 60, 60)
    masks[..., 20:40, :8] = 1
    masks[..., 24:36, 38:50] = 1
    row, column = divmod(int(masks_to_saliency(masks, smooth=0.1).argmax()), 60)
    assert abs(row - 29.5) < 1
    assert abs(column - 43.5) < 1


def test_the_masks_of_a_result():
    def result(masks):
        scores = torch.zeros(2, 3)
        zeros = torch.zeros(2)
        return ExtremalResult(masks, (0.1, 0.2, 0.3), scores, scores, zeros, zeros)

    masks = torch.rand(2, 3, 1, 4, 5)
    other = torch.rand(2, 3, 1, 9)
    assert masks_to_saliency(result(masks).masks).shape == (2, 1, 4, 5)
    both = masks_to_saliency(result((masks, other)).masks)
    assert isinstance(both, tuple)
    assert_close(both, (masks_to_saliency(masks), masks_to_saliency(other)))


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ((torch.rand(2, 3, 1, 4), -0.1), ValueError, "smooth must be finite and at"),
        ((torch.rand(2, 3, 1, 4), None), TypeError, "smooth must be a number"),
        ((torch.rand(2, 1, 4),), ValueError, r"masks must be of shape \(N, A, 1, \*S"),
        ((torch.rand(2, 3, 4, 5),), ValueError, r"masks must .* got \(2, 3, 4, 5\)"),
        ((torch.rand(2, 0, 1, 4, 5),), ValueError, "masks must be of shape"),
        ((torch.ones(2, 3, 1, 4) > 0,), TypeError, "masks must be a floating point"),
        (([torch.rand(2, 3, 1, 4)],), TypeError, "masks must be a floating point"),
        (
            ((torch.rand(2, 3, 1, 4), torch.rand(2, 3)),),
            ValueError,
            r"masks must .* got \(2, 3\)",
        ),
    ],
)
def test_bad_arguments_of_the_saliency(arguments, error, text):
    with pytest.raises(error, match=text):
        masks_to_saliency(*arguments)


# --- boxes ---


def test_boxes_of_voc_count_from_one_and_include_their_end():
    boxes = torch.tensor([[1, 1, 1, 1], [5, 2, 6, 3], [1, 1, 6, 3]])
    masks = boxes_to_masks(boxes, (3, 6), one_based_inclusive=True)
    assert masks[0].nonzero().tolist() == [[0, 0]]
    assert masks[1].nonzero().tolist() == [[1, 4], [1, 5], [2, 4], [2, 5]]
    assert masks[2].all()


def test_boxes_from_zero_end_before_their_end():
    boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0], [4.0, 1.0, 6.0, 3.0]])
    masks = boxes_to_masks(boxes, (3, 6), one_based_inclusive=False)
    assert masks[0].nonzero().tolist() == [[0, 0]]
    assert masks[1].nonzero().tolist() == [[1, 4], [1, 5], [2, 4], [2, 5]]


@given(
    st.tuples(*[st.integers(-2, 24)] * 4),
    st.sampled_from([1, 2]),
    st.booleans(),
)
def test_boxes_against_the_formula(numbers, divisor, one_based_inclusive):
    divisor = 1 if one_based_inclusive else divisor
    x, y = sorted(numbers[:2]), sorted(numbers[2:])
    box = [value / divisor for value in (x[0], y[0], x[1], y[1])]
    masks = boxes_to_masks(
        torch.tensor([box]), (9, 14), one_based_inclusive=one_based_inclusive
    )
    expected = reference.box_to_mask(box, (9, 14), one_based_inclusive)
    np.testing.assert_array_equal(masks[0].numpy(), expected)


def test_an_image_without_boxes_has_no_object(device):
    boxes = torch.zeros(0, 4, device=device)
    masks = boxes_to_masks(boxes, (3, 6), one_based_inclusive=True)
    assert (masks.shape, masks.device.type) == ((0, 3, 6), device.type)
    assert not masks.any(dim=0).any()


@pytest.mark.parametrize(
    ("boxes", "size", "error", "text"),
    [
        ([[1, 1, 2, 2]], (3, 6), TypeError, "boxes must be a tensor, got .*list"),
        (torch.zeros(4), (3, 6), ValueError, r"boxes must be of shape .* got \(4,\)"),
        (torch.zeros(2, 5), (3, 6), ValueError, r"boxes must .* got \(2, 5\)"),
        (torch.tensor([[8, 1, 2, 4]]), (3, 6), ValueError, "xmin <= xmax and ymin"),
        (torch.tensor([[1, 5, 2, 4]]), (3, 6), ValueError, r"got \[1, 5, 2, 4\]"),
        (torch.tensor([[NAN, 1, 2, 4]]), (3, 6), ValueError, "boxes must be"),
        (torch.zeros(1, 4), (3, 6, 3), ValueError, r"size must be \(H, W\), got"),
        (torch.zeros(1, 4), (0, 6), ValueError, "size must be at least 1, got 0"),
        (torch.zeros(1, 4), (3.0, 6), TypeError, "size must be an int, got 3.0"),
    ],
)
def test_bad_boxes(boxes, size, error, text):
    with pytest.raises(error, match=text):
        boxes_to_masks(boxes, size, one_based_inclusive=True)


def test_boxes_of_real_annotations_fit_their_image(data_root):
    folder = data_root / "voc_mini" / "VOCdevkit" / "VOC2007" / "Annotations"
    edges = set()
    for path in sorted(folder.glob("*.xml")):
        tree = ElementTree.parse(path)
        width, height = (int(tree.findtext(f"size/{k}")) for k in ("width", "height"))
        boxes = torch.tensor(
            [
                [int(box.findtext(k)) for k in ("xmin", "ymin", "xmax", "ymax")]
                for box in tree.iterfind("object/bndbox")
            ]
        )
        masks = boxes_to_masks(boxes, (height, width), one_based_inclusive=True)
        sides = boxes[:, 2:] - boxes[:, :2] + 1
        assert masks.flatten(1).sum(1).tolist() == sides.prod(dim=1).tolist()
        edges |= {"first"} if (boxes == 1).any() else set()
        edges |= {"last"} if (boxes[:, 2] == width).any() else set()
    assert edges == {"first", "last"}  # both ends of the convention occur


def test_boxes_lead_from_columns_first_to_rows_first():
    boxes = torch.tensor([[40, 3, 50, 8]])  # far right, at the top
    truth = boxes_to_masks(boxes, (20, 60), one_based_inclusive=True)
    assert truth[0].nonzero().amin(0).tolist() == [2, 39]
    assert truth[0].nonzero().amax(0).tolist() == [7, 49]
    assert pointing_game(_spot((20, 60), (5, 45)), truth, 0) == 1


def test_bad_arguments_are_named():
    boxes = torch.tensor([[0.0, 0.0, 2.0, 2.0]])
    with pytest.raises(TypeError, match="one_based_inclusive must be True or False"):
        boxes_to_masks(boxes, (4, 4), one_based_inclusive="no")
    with pytest.raises(ValueError, match=r"size must be \(H, W\), got None"):
        boxes_to_masks(boxes, None, one_based_inclusive=True)
    with pytest.raises(ValueError, match="masks must hold at least one tensor"):
        masks_to_saliency(())


def test_a_tolerance_of_any_size():
    attributions = torch.zeros(1, 1, 4, 4)
    attributions[0, 0, 0, 0] = 1
    objects = torch.zeros(1, 4, 4, dtype=torch.bool)
    objects[0, 3, 3] = True
    assert float(pointing_game(attributions, objects, 1e200)) == 1
