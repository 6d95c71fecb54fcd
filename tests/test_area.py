"""The area loss against its formula, its gradient at ties, its options, its tools."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from captum_extremal.masks.area import area_count, match_area
from captum_extremal.solvers import area_loss as loss_module
from captum_extremal.solvers.area_loss import (
    AreaLoss,
    AreaWeight,
    area_loss,
    area_reference,
)
from reference import area as reference

SHAPES = [(7,), (1, 9), (1, 5, 4), (1, 10, 10), (1, 3, 4, 2)]
AREAS = [1e-6, 0.05, 0.1, 0.35, 0.5, 0.99, 1.0]


def _gradient(masks, *arguments):
    leaf = masks.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(area_loss(leaf, *arguments).sum(), leaf)
    return gradient


# --- counts and the reference vector ---


@pytest.mark.parametrize(
    ("num_pixels", "of_area", "expected"),
    [
        (10, 0.3, 3),
        (10, 0.34, 3),
        (10, 0.36, 4),
        (10, 0.25, 2),  # a half goes to the even neighbour
        (10, 0.35, 4),
        (10, 1e-9, 1),
        (10, 1.0, 10),
        (1, 0.5, 1),
        (224 * 224, 0.05, 2509),
    ],
)
def test_the_number_of_ones(num_pixels, of_area, expected):
    assert area_count(num_pixels, of_area) == expected
    reference_vector = area_reference(num_pixels, of_area)
    zeros = num_pixels - expected
    assert reference_vector.tolist() == [0.0] * zeros + [1.0] * expected


# --- the loss ---


@pytest.mark.parametrize("of_area", AREAS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_the_formula(shape, of_area, dtype, device):
    masks = torch.rand(3, *shape, dtype=dtype)
    masks[1] = masks[1].round()
    expected = np.array([reference.area_loss(m, of_area) for m in masks.numpy()])
    tolerance = {"rtol": 1e-5} if dtype == torch.float32 else {"rtol": 1e-12}
    summed = area_loss(masks.to(device), of_area, "sum")
    assert summed.dtype == dtype
    np.testing.assert_allclose(summed.cpu(), expected, atol=1e-12, **tolerance)
    mean = area_loss(masks.to(device), of_area)
    expected = expected / masks[0].numel()
    np.testing.assert_allclose(mean.cpu(), expected, atol=1e-12, **tolerance)


@given(
    values=st.lists(st.sampled_from([0.0, 0.2, 0.5, 0.9, 1.0]), min_size=1, max_size=8),
    of_area=st.floats(0.01, 1.0),
)
def test_value_and_gradient_where_values_tie(values, of_area):
    masks = torch.tensor([values], dtype=torch.float64)
    expected = reference.area_loss(masks.numpy(), of_area)
    assert area_loss(masks, of_area, "sum").item() == pytest.approx(expected, abs=1e-12)
    np.testing.assert_allclose(
        _gradient(masks, of_area, "sum"),
        reference.area_gradient(masks.numpy(), of_area),
        atol=1e-12,
        rtol=0,
    )


@given(seed=st.integers(0, 99), of_area=st.floats(0.01, 1.0), size=st.integers(1, 30))
def test_order_does_not_matter_and_only_the_right_mask_is_free(seed, of_area, size):
    generator = torch.Generator().manual_seed(seed)
    masks = torch.rand(2, size, generator=generator, dtype=torch.float64)
    order = torch.randperm(size, generator=generator)
    loss = area_loss(masks, of_area)
    torch.testing.assert_close(area_loss(masks[:, order], of_area), loss)
    gradient = _gradient(masks, of_area)
    torch.testing.assert_close(_gradient(masks[:, order], of_area), gradient[:, order])
    assert (loss > 0).all()
    right = area_reference(size, of_area)[order].unsqueeze(0)
    assert area_loss(right, of_area).item() == 0
    assert torch.equal(_gradient(right, of_area), torch.zeros_like(right))
    assert area_loss(right * 0.999, of_area).item() > 0


@pytest.mark.parametrize("value", [0.0, 0.3, 1.0])
def test_a_flat_mask_is_pulled_evenly(value, device):
    masks = torch.full((1, 1, 10, 10), value, device=device)
    gradient = _gradient(masks, 0.1, "sum")
    expected = torch.full_like(masks, 2 * (value - 0.1))
    torch.testing.assert_close(gradient, expected)


def test_the_gradient_is_that_of_the_sorted_differences():
    masks = torch.tensor([[0.9, 0.1, 0.8, 0.4]])
    gradient = _gradient(masks, 0.5, "sum")
    torch.testing.assert_close(gradient, torch.tensor([[-0.2, 0.2, -0.4, 0.8]]))
    torch.testing.assert_close(_gradient(masks, 0.5), gradient / 4)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("shape", [(6,), (1, 3, 2), (1, 2, 2, 2)], ids=str)
def test_gradcheck(shape, reduction):
    masks = torch.rand(4, *shape, dtype=torch.float64, requires_grad=True)
    areas = [0.2, 0.7]
    assert torch.autograd.gradcheck(lambda m: area_loss(m, areas, reduction), masks)
    assert torch.autograd.gradgradcheck(lambda m: area_loss(m, areas, reduction), masks)


def test_descent_reaches_a_mask_of_the_area():
    masks = torch.rand(2, 1, 10, 10)
    for _ in range(200):
        masks -= 0.1 * _gradient(masks, [0.05, 0.3], "sum")
    assert area_loss(masks, [0.05, 0.3]).max() < 1e-8
    assert (masks > 0.5).flatten(1).sum(dim=1).tolist() == [5, 30]


# --- areas ---


@pytest.mark.parametrize(
    "areas",
    [
        [0.1, 0.5, 1.0],
        (0.1, 0.5, 1.0),
        np.array([0.1, 0.5, 1.0]),
        torch.tensor([0.1, 0.5, 1.0]),
        torch.tensor([0.1, 0.5, 1.0] * 2, dtype=torch.float64),
    ],
    ids=["list", "tuple", "array", "tensor", "for each mask"],
)
def test_masks_take_the_areas_in_turn(areas, device):
    masks = torch.rand(6, 1, 5, 4, device=device)
    loss = area_loss(masks, areas)
    alone = [
        area_loss(mask.unsqueeze(0), [0.1, 0.5, 1.0][k % 3])
        for k, mask in enumerate(masks)
    ]
    torch.testing.assert_close(loss, torch.cat(alone), atol=0, rtol=1e-6)
    assert len(set(loss.tolist())) == 6


def test_an_area_of_any_kind_is_one_number():
    masks = torch.rand(2, 10)
    expected = area_loss(masks, 0.5)
    for of_area in (torch.tensor(0.5), np.float64(0.5), [0.5]):
        assert torch.equal(area_loss(masks, of_area), expected)


@pytest.mark.parametrize("size", [1, 2, 10, 11, 4003])
def test_areas_on_a_device_are_used_there_with_the_same_result(size, device):
    values = torch.rand(4, size, device=device).mul_(7).round_().div_(7)
    areas = torch.tensor([0.05, 0.25, 0.5, 1.0], dtype=torch.float64, device=device)
    for some in (areas, areas[1:3], areas[2]):
        counts, thresholds = loss_module._partition_on_device(values, some)
        numbers = some.tolist()
        expected_counts, expected_thresholds = loss_module._partition(values, numbers)
        assert torch.equal(counts, expected_counts)
        assert torch.equal(thresholds, expected_thresholds)
        loss = area_loss(values, some)
        torch.testing.assert_close(loss, area_loss(values, numbers))


def test_no_value_is_read_and_nothing_sorted_where_areas_are_numbers(monkeypatch):
    def refuse(*arguments, **keywords):
        raise AssertionError("sorted, or waited for the device")

    for name in ("sort", "item", "tolist", "cpu", "__bool__", "__float__"):
        monkeypatch.setattr(torch.Tensor, name, refuse, raising=False)
    assert area_loss(torch.rand(2, 9), [0.1, 0.5]).shape == (2,)


# --- special values and types ---


@pytest.mark.parametrize("of_area", [0.1, 0.5, 1.0])
def test_a_nan_shows_in_the_loss_of_its_row_alone(of_area):
    masks = torch.rand(3, 1, 4, 4)
    expected = area_loss(masks, of_area)
    masks[1, 0, 2, 2] = torch.nan
    loss = area_loss(masks, of_area)
    assert loss.isnan().tolist() == [False, True, False]
    assert torch.equal(loss[[0, 2]], expected[[0, 2]])
    assert not _gradient(masks, of_area)[[0, 2]].isnan().any()
    assert area_loss(torch.full((1, 4), torch.nan), of_area).isnan().all()


@pytest.mark.parametrize("short", [torch.float16, torch.bfloat16])
def test_short_types_are_matched_too(short):
    masks = torch.rand(2, 40).to(short)
    masks[1, ::2] = 0.25
    matched = match_area(masks, [0.1, 0.5])
    assert matched.dtype == short
    assert (matched >= 0.5).sum(dim=1).tolist() == [4, 20]


@pytest.mark.parametrize("short", [torch.float16, torch.bfloat16])
def test_short_types_are_computed_in_float32(short):
    masks = torch.rand(2, 1, 300, 300).to(short)
    loss = area_loss(masks, 0.1, "sum")
    assert loss.dtype == torch.float32
    assert torch.equal(loss, area_loss(masks.float(), 0.1, "sum"))
    assert _gradient(masks, 0.1, "sum").dtype == short


def test_many_pixels_lose_no_precision():
    masks = area_reference(224 * 224, 0.05).unsqueeze(0)
    masks[0, 0] = 1e-3
    assert area_loss(masks, 0.05, "sum").item() == pytest.approx(1e-6, rel=1e-4)


@pytest.mark.parametrize(
    ("masks", "areas", "reduction", "error", "message"),
    [
        (torch.rand(2, 4), 1.5, "mean", ValueError,
         r"area must lie in \(0, 1\], got 1.5"),
        (torch.rand(2, 4), [0.1, 0.0], "mean", ValueError, r"\(0, 1\], got 0.0"),
        (torch.rand(2, 4), torch.tensor([2.0]), "mean", ValueError, "got 2.0"),
        (torch.rand(2, 4), "0.1", "mean", TypeError,
         "area must be a number, got '0.1'"),
        (torch.rand(2, 4), [0.1, 0.2, 0.3], "mean", ValueError,
         "whole multiple of the 3 areas, got 2 masks"),
        (torch.rand(4), 0.1, "mean", ValueError, r"shape \(K, ...\) .* got \(4,\)"),
        (torch.rand(2, 0), 0.1, "mean", ValueError, r"got \(2, 0\)"),
        (torch.ones(2, 4).int(), 0.1, "mean", TypeError, "masks .* got torch.int32"),
        (torch.rand(2, 4), 0.1, "max", ValueError,
         "reduction must be 'mean' or 'sum', got 'max'"),
    ],
)  # fmt: skip
def test_errors(masks, areas, reduction, error, message):
    with pytest.raises(error, match=message):
        area_loss(masks, areas, reduction)


@pytest.mark.parametrize("function", [area_count, area_reference])
def test_errors_of_the_reference(function):
    with pytest.raises(ValueError, match=r"area must lie in \(0, 1\], got 1.5"):
        function(10, 1.5)
    with pytest.raises(ValueError, match="num_pixels must be at least 1, got 0"):
        function(0, 0.5)
    with pytest.raises(TypeError, match=r"num_pixels must be an int, got 2\.5"):
        function(2.5, 0.5)


# --- the module ---


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("areas", [0.3, [0.1, 0.5]])
def test_the_module_agrees_with_the_function(areas, reduction):
    masks = torch.rand(4, 1, 3, 3)
    module = AreaLoss(areas, reduction)
    expected = area_loss(masks, areas, reduction)
    assert torch.equal(module(masks), expected)
    assert torch.equal(copy.deepcopy(module)(masks), expected)
    assert torch.equal(pickle.loads(pickle.dumps(module))(masks), expected)
    assert list(module.parameters()) == []


def test_the_module_means_by_default_shows_its_arguments_and_checks_them():
    assert repr(AreaLoss(0.5)) == "AreaLoss(areas=(0.5,), reduction='mean')"
    with pytest.raises(ValueError, match=r"area must lie in \(0, 1\], got 0"):
        AreaLoss(0)
    with pytest.raises(ValueError, match="reduction must be 'mean' or 'sum', got 'x'"):
        AreaLoss(0.5, "x")


# --- the weight ---


def test_the_weight_of_the_paper_doubles_after_each_third():
    weight = AreaWeight(start=300.0, growth=1.0, double_at=(1 / 3, 2 / 3))
    found = [weight(iteration, 1600) for iteration in range(1600)]
    assert found == [300.0] * 534 + [600.0] * 533 + [1200.0] * 533


def test_the_weight_grows_from_its_start():
    assert AreaWeight(10.0, growth=8.0)(33, 99) == pytest.approx(20.0)
    assert AreaWeight(10.0, growth=1.0)(3, 99) == 10.0
    halfway = AreaWeight(10.0, growth=1.0, double_at=(0.5,))
    assert [halfway(iteration, 10) for iteration in (4, 5)] == [10.0, 20.0]
    torchray = [300 * 1.0035**iteration for iteration in (0, 1, 799)]
    found = [AreaWeight()(iteration, 800) for iteration in (0, 1, 799)]
    assert found == pytest.approx(torchray)
    assert AreaWeight()(100, 200) == pytest.approx(AreaWeight()(400, 800))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"start": 0.0}, "start must be positive and finite, got 0.0"),
        ({"growth": -1.0}, "growth must be positive and finite, got -1.0"),
        ({"double_at": (0.5, 1.5)}, r"double_at must lie in \[0, 1\], got 1.5"),
    ],
)
def test_errors_of_the_weight(arguments, message):
    with pytest.raises(ValueError, match=message):
        AreaWeight(**arguments)


# --- masks of an exact area ---


@given(
    values=st.lists(
        st.one_of(st.floats(0, 1, width=32), st.sampled_from([0.0, 0.5, 1.0])),
        min_size=1,
        max_size=12,
    ),
    of_area=st.floats(0.01, 1.0),
)
def test_a_matched_mask_has_the_area_the_order_and_the_range(values, of_area):
    masks = torch.tensor([values])
    matched = match_area(masks, of_area)
    assert (matched >= 0.5).sum().item() == area_count(len(values), of_area)
    assert matched.min() >= 0
    assert matched.max() <= 1
    order = masks.argsort(dim=1)
    rises = matched.gather(1, order).diff(dim=1)
    differ = masks.gather(1, order).diff(dim=1) > 0
    assert (rises[differ] >= 0).all()


def test_a_mask_of_the_right_area_stays_as_it_is():
    masks = torch.tensor([[0.0, 0.3, 0.4, 0.55, 1.0], [0.0, 0.3, 0.5, 0.55, 1.0]])
    matched = match_area(masks, 0.4)
    assert torch.equal(matched[0], masks[0])
    assert not torch.equal(matched[1], masks[1])


def test_a_matched_mask_is_the_mask_rescaled_in_two_pieces():
    masks = torch.tensor([[0.0, 0.2, 0.6, 0.8, 1.0]], dtype=torch.float64)
    matched = match_area(masks, 0.4)
    # The cut 0.7 goes to 0.5, 0 and 1 stay.
    expected = torch.tensor([[0, 1 / 7, 3 / 7, 2 / 3, 1.0]], dtype=torch.float64)
    torch.testing.assert_close(matched, expected)
    assert torch.equal(
        match_area(masks[:, [4, 0, 2, 1, 3]], 0.4), matched[:, [4, 0, 2, 1, 3]]
    )
    binary = torch.tensor([[0.0, 1.0, 1.0, 0.0]])
    assert torch.equal(match_area(binary, 0.5), binary)


def test_ties_at_the_cut_are_kept_in_memory_order():
    below = float(np.nextafter(np.float32(0.5), np.float32(0)))
    for value, kept, left in ((1.0, 1.0, below), (0.5, 0.5, below), (0.0, 0.5, 0.0)):
        matched = match_area(torch.full((1, 1, 2, 2), value), 0.5)
        assert matched.flatten().tolist() == [kept, kept, left, left]


def test_matching_takes_areas_in_turn_and_keeps_shape_type_and_input(dtype):
    masks = torch.rand(4, 1, 5, 4, dtype=dtype)
    before = masks.clone()
    matched = match_area(masks.requires_grad_(), [0.1, 0.5])
    assert (matched >= 0.5).flatten(1).sum(dim=1).tolist() == [2, 10, 2, 10]
    assert matched.shape == masks.shape
    assert matched.dtype == dtype
    assert not matched.requires_grad
    assert torch.equal(masks.detach(), before)
    assert torch.equal(match_area(masks, torch.tensor([0.1, 0.5])), matched)


def test_values_beyond_the_range_are_matched_as_its_ends():
    masks = torch.tensor([[1 + 1e-6, 1.5, -0.5, 0.5, 1.0]])
    assert torch.equal(match_area(masks, 0.4), match_area(masks.clamp(0, 1), 0.4))


def test_errors_of_matching():
    with pytest.raises(ValueError, match=r"area must lie in \(0, 1\], got 2"):
        match_area(torch.rand(1, 4), 2)
    with pytest.raises(ValueError, match="whole multiple of the 2 areas, got 3 masks"):
        match_area(torch.rand(3, 4), [0.1, 0.2])
    with pytest.raises(TypeError, match="masks must be a floating point tensor"):
        match_area(torch.ones(1, 4).int(), 0.5)
    with pytest.raises(ValueError, match="at least one value in each mask"):
        match_area(torch.ones(4), 0.5)
