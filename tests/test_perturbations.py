"""Perturbation levels and `apply_mask` against their formulas, values and gradients."""

from __future__ import annotations

import copy
import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from captum_extremal.perturbations import PERTURBATIONS, apply
from captum_extremal.perturbations import levels as levels_module
from captum_extremal.perturbations.apply import apply_mask
from captum_extremal.perturbations.levels import (
    BlurPerturbation,
    FadePerturbation,
    Perturbation,
)
from reference import blur as blur_reference
from reference import perturbations as reference

SIZES = [(9,), (5, 4), (10, 10), (3, 4, 2)]


# --- levels ---


@pytest.mark.parametrize("size", [(7,), (4, 3), (3, 2, 2)], ids=str)
def test_blur_levels_are_blurs_of_evenly_falling_width(size, dtype, device):
    inputs = torch.randn(2, 3, *size, dtype=dtype)
    levels = BlurPerturbation(num_levels=5, sigma_max=2.0).levels(inputs.to(device))
    assert levels.shape == (2, 5, 3, *size)
    assert levels.dtype == dtype
    for level, sigma in enumerate([2.0, 1.5, 1.0, 0.5]):
        expected = blur_reference.gaussian_blur(inputs.numpy(), sigma)
        np.testing.assert_allclose(levels[:, level].cpu(), expected, atol=2e-6, rtol=0)
    assert torch.equal(levels[:, -1].cpu(), inputs)


def test_each_option_of_the_blur_changes_the_levels():
    inputs = torch.randn(1, 1, 12, 12)
    default = BlurPerturbation().levels(inputs)
    assert default.shape[1] == 8
    assert BlurPerturbation(num_levels=2).levels(inputs).shape[1] == 2
    assert BlurPerturbation(sigma_max=9.0).levels(inputs).std() < default.std()
    faded = BlurPerturbation(sigma_max=2.0, border="fade").levels(inputs.abs() + 1)
    whole = BlurPerturbation(sigma_max=2.0).levels(inputs.abs() + 1)
    assert (faded[:, 0] < whole[:, 0]).all()


@pytest.mark.parametrize("size", [(224,), (448, 224), (10, 10), (30, 15, 20)], ids=str)
def test_the_default_width_is_20_pixels_at_224_by_the_mean_side(size):
    inputs = torch.randn(1, 1, *size)
    mean_side = math.prod(size) ** (1 / len(size))
    expected = BlurPerturbation(2, sigma_max=20 / 224 * mean_side).levels(inputs)
    assert torch.equal(BlurPerturbation(2).levels(inputs), expected)


def test_the_width_may_be_one_for_each_axis():
    inputs = torch.randn(1, 2, 6, 9, dtype=torch.float64)
    levels = BlurPerturbation(3, sigma_max=(0, 2.0)).levels(inputs)
    for level, sigma in enumerate([2.0, 1.0]):
        lines = inputs.view(1, 12, 9).numpy()
        expected = blur_reference.gaussian_blur(lines, sigma).reshape(inputs.shape)
        np.testing.assert_allclose(levels[:, level], expected, atol=1e-12, rtol=0)


def test_a_large_image_is_blurred_channel_by_channel_to_the_same(monkeypatch):
    inputs = torch.randn(2, 3, 20, 30, dtype=torch.float64)
    usual = BlurPerturbation(4).levels(inputs)
    monkeypatch.setattr(apply, "LARGE_IMAGE", 1)
    monkeypatch.setattr(levels_module, "LARGE_IMAGE", 1)
    torch.testing.assert_close(BlurPerturbation(4).levels(inputs), usual)


def test_the_width_of_an_image_of_224_pixels():
    line = torch.zeros(1, 1, 224, dtype=torch.float64)
    line[..., 112] = 1
    blurred = BlurPerturbation(2).levels(line)[0, 0, 0]
    ratio = float(blurred[132] / blurred[112])  # one sigma away: exp(-1/2)
    assert ratio == pytest.approx(np.exp(-0.5), rel=1e-4)


@pytest.mark.parametrize(
    ("baseline", "expected"),
    [
        (0.0, [0.0, 0.0]),
        (2, [2.0, 2.0]),
        (torch.tensor(3), [3.0, 3.0]),
        (torch.tensor([[1.0], [2.0]]), [1.0, 2.0]),
        (torch.tensor([[[1.0], [2.0]]]), [1.0, 2.0]),
        (torch.tensor([[1.0], [torch.inf]]), [1.0, torch.inf]),
    ],
)
def test_fade_levels_are_the_baseline_and_the_input(baseline, expected, dtype):
    inputs = torch.randn(3, 2, 5, dtype=dtype)
    levels = FadePerturbation(baseline).levels(inputs)
    assert levels.dtype == dtype
    assert torch.equal(levels[:, 1], inputs)
    wanted = torch.tensor(expected, dtype=dtype).view(1, 2, 1).expand(3, 2, 5)
    assert torch.equal(levels[:, 0], wanted)


def test_fade_to_an_image_of_each_example():
    inputs, baseline = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    assert torch.equal(FadePerturbation(baseline).levels(inputs)[:, 0], baseline)


@pytest.mark.parametrize("perturbation", [BlurPerturbation(), FadePerturbation(0.5)])
def test_levels_carry_no_gradient_and_leave_the_input_alone(perturbation):
    inputs = torch.randn(1, 2, 6, 6, requires_grad=True)
    before = inputs.detach().clone()
    levels = perturbation.levels(inputs)
    assert not levels.requires_grad
    levels.zero_()
    assert torch.equal(inputs.detach(), before)


@pytest.mark.parametrize(
    "perturbation", [BlurPerturbation(3, 2.0, "fade"), FadePerturbation(torch.ones(1))]
)
def test_perturbations_can_be_told_copied_and_pickled(perturbation):
    assert isinstance(perturbation, Perturbation)
    inputs = torch.randn(1, 1, 6)
    expected = perturbation.levels(inputs)
    for twin in (
        copy.deepcopy(perturbation),
        pickle.loads(pickle.dumps(perturbation)),
    ):
        assert torch.equal(twin.levels(inputs), expected)
        assert repr(twin) == repr(perturbation)
    assert not isinstance(object(), Perturbation)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: BlurPerturbation(1), ValueError,
         "num_levels must be at least 2, got 1"),
        (lambda: BlurPerturbation(2.5), TypeError,
         "num_levels must be an int, got 2.5"),
        (lambda: BlurPerturbation(2, 0), ValueError, "sigma_max must be positive .* 0"),
        (lambda: BlurPerturbation(2, "1"), TypeError, "sigma_max must be a number"),
        (lambda: BlurPerturbation(2, (0, 0.0)), ValueError, "sigma_max must be posit"),
        (lambda: BlurPerturbation(2, ()), ValueError, "sigma_max must be positive"),
        (lambda: BlurPerturbation(2, (1, -1)), ValueError, "sigma_max must .* got -1"),
        (lambda: BlurPerturbation(2, (1, 2)).levels(torch.ones(1, 1, 5)), ValueError,
         "sigma_max must be one number or one for each of 1 spatial sizes, got 2"),
        (lambda: BlurPerturbation(border="wrap"), ValueError, "border .* got 'wrap'"),
        (lambda: FadePerturbation("black"), TypeError, "baseline must be .* got str"),
        (lambda: FadePerturbation(None), TypeError, "baseline must be .* got NoneType"),
        (lambda: FadePerturbation(torch.ones(3)).levels(torch.ones(1, 3, 4, 4)),
         ValueError, r"broadcast to the inputs \(1, 3, 4, 4\), got shape \(3,\)"),
        (lambda: FadePerturbation(torch.ones(2, 3, 4)).levels(torch.ones(1, 3, 4)),
         ValueError, r"got shape \(2, 3, 4\)"),
        (lambda: FadePerturbation(torch.ones(1, 1, 3, 4)).levels(torch.ones(1, 3, 4)),
         ValueError, r"got shape \(1, 1, 3, 4\)"),
        (lambda: FadePerturbation().levels(torch.ones(3)), ValueError,
         r"inputs must be .* spatial sizes, .* got \(3,\)"),
        (lambda: BlurPerturbation().levels(torch.ones(2, 3, 4).long()), TypeError,
         "inputs must be a floating point tensor, got torch.int64"),
    ],
)  # fmt: skip
def test_errors_of_perturbations(make, error, message):
    with pytest.raises(error, match=message):
        make()


# --- apply_mask: values and gradients ---


def _case(size, levels=4, images=2, per_image=3, dtype=torch.float64, seed=0):
    """Levels, masks that also hit the levels and both ends, rows, outer gradient."""
    generator = torch.Generator().manual_seed(seed)
    pyramid = torch.randn(images, levels, 3, *size, generator=generator)
    masks = torch.rand(images * per_image, 1, *size, generator=generator)
    kind = torch.randint(0, 4, masks.shape, generator=generator)
    knots = (masks * levels).floor() / (levels - 1)
    masks = masks.where(kind > 1, knots.clamp(0, 1))
    outer = torch.randn(images * per_image, 3, *size, generator=generator)
    return pyramid.to(dtype), masks.to(dtype), outer.to(dtype)


@pytest.mark.parametrize("levels", [2, 3, 8])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_equals_the_formula_in_value_and_gradient(size, levels, dtype, device):
    pyramid, masks, outer = _case(size, levels, dtype=dtype)
    rows = [0, 0, 0, 1, 1, 1]
    leaf = masks.to(device, copy=True).requires_grad_()
    perturbed = apply_mask(pyramid.to(device), leaf)
    (gradient,) = torch.autograd.grad(perturbed, leaf, outer.to(device))
    expected = reference.apply_mask(pyramid.numpy(), masks.numpy(), rows)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    np.testing.assert_allclose(
        perturbed.detach().cpu(), expected, atol=tolerance, rtol=0
    )
    # Float32 may put a mask value on the other side of a level than float64.
    pairs = pyramid.double().numpy(), masks.double().numpy()
    if dtype == torch.float64 or levels == 2:
        slopes = reference.mask_gradient(*pairs, rows, outer.double().numpy())
        np.testing.assert_allclose(gradient.cpu(), slopes, atol=10 * tolerance, rtol=0)
    without_gradient = apply_mask(pyramid.to(device), masks.to(device))
    assert torch.equal(without_gradient, perturbed.detach())


@given(
    size=st.lists(st.integers(1, 5), min_size=1, max_size=3),
    levels=st.integers(2, 9),
    images=st.integers(1, 3),
    per_image=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_stays_between_neighbours_and_keeps_both_ends(
    size, levels, images, per_image, seed
):
    pyramid, masks, _ = _case(size, levels, images, per_image, torch.float32, seed)
    of_mask = pyramid.repeat_interleave(per_image, dim=0)
    perturbed = apply_mask(pyramid, masks)
    assert (perturbed >= of_mask.amin(dim=1) - 1e-5).all()
    assert (perturbed <= of_mask.amax(dim=1) + 1e-5).all()
    assert torch.equal(apply_mask(pyramid, torch.ones_like(masks)), of_mask[:, -1])
    assert torch.equal(apply_mask(pyramid, torch.zeros_like(masks)), of_mask[:, 0])
    # A mask value on a level gives that level.
    for level in range(levels):
        at_level = torch.full_like(masks, level / (levels - 1), dtype=torch.float64)
        found = apply_mask(pyramid.double(), at_level)
        expected = of_mask[:, level].double()
        torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("size", [(3,), (3, 2), (2, 2, 2)], ids=str)
def test_gradcheck_between_the_levels(size):
    pyramid, masks, _ = _case(size, levels=4)
    inside = (masks * 3).floor().clamp(0, 2) / 3 + 0.1 + 0.1 * torch.rand_like(masks)
    inside.requires_grad_()
    assert torch.autograd.gradcheck(lambda mask: apply_mask(pyramid, mask), inside)
    assert torch.autograd.gradgradcheck(lambda mask: apply_mask(pyramid, mask), inside)


def test_slopes_on_a_level_are_those_above_it_and_at_one_those_below():
    pyramid = torch.tensor([0.0, 1.0, 3.0, 7.0]).view(1, 4, 1, 1).double()
    third = torch.tensor(1 / 3, dtype=torch.float64)
    values = [0.0, third, 2 * third, 1.0]
    for value, slope in zip(values, [3.0, 6.0, 12.0, 12.0], strict=True):
        leaf = torch.tensor(float(value), dtype=torch.float64).view(1, 1, 1)
        leaf.requires_grad_()
        (gradient,) = torch.autograd.grad(apply_mask(pyramid, leaf), leaf)
        assert gradient.item() == slope


def test_values_outside_of_the_range_count_as_its_ends_with_their_slope():
    pyramid = torch.tensor([1.0, 2.0, 5.0]).view(1, 3, 1, 1).expand(1, 3, 1, 4)
    leaf = torch.tensor([[[-0.5, -torch.inf, 1.5, torch.inf]]], requires_grad=True)
    perturbed = apply_mask(pyramid, leaf)
    assert perturbed.flatten().tolist() == [1.0, 1.0, 5.0, 5.0]
    (gradient,) = torch.autograd.grad(perturbed.sum(), leaf)
    assert gradient.flatten().tolist() == [2.0, 2.0, 6.0, 6.0]


# --- apply_mask: rows ---


def test_rows_choose_the_image_of_each_mask():
    pyramid, masks, _ = _case((4, 3), images=3, per_image=2)
    rows = torch.tensor([2, 0, 0, 1, 2, 2])
    perturbed = apply_mask(pyramid, masks, rows)
    expected = reference.apply_mask(pyramid.numpy(), masks.numpy(), rows.tolist())
    np.testing.assert_allclose(perturbed, expected, atol=1e-12, rtol=0)
    assert torch.equal(perturbed, apply_mask(pyramid, masks, rows.int()))
    assert not torch.equal(perturbed, apply_mask(pyramid, masks))
    image_major = torch.tensor([0, 0, 1, 1, 2, 2])
    assert torch.equal(
        apply_mask(pyramid, masks), apply_mask(pyramid, masks, image_major)
    )


def test_one_mask_at_a_time_gives_the_same():
    pyramid, masks, _ = _case((4, 3))
    together = apply_mask(pyramid, masks)
    for k in range(len(masks)):
        rows = torch.tensor([k // 3])
        assert torch.equal(apply_mask(pyramid, masks[k : k + 1], rows)[0], together[k])


@pytest.mark.parametrize("numbers", [1, 36, 60, 10**9])
def test_the_size_of_the_chunks_does_not_matter(numbers, monkeypatch):
    pyramid, masks, outer = _case((4, 3), images=3, per_image=3)
    leaf = masks.clone().requires_grad_()
    perturbed = apply_mask(pyramid, leaf)
    (gradient,) = torch.autograd.grad(perturbed, leaf, outer)
    monkeypatch.setattr(apply, "_CPU_CHUNK", numbers)
    again = apply_mask(pyramid, leaf)
    assert torch.equal(again, perturbed)
    assert torch.equal(torch.autograd.grad(again, leaf, outer)[0], gradient)
    assert torch.equal(apply_mask(pyramid, masks), perturbed.detach())


@pytest.mark.parametrize("channels", [1, 3, 40])
def test_the_gradient_may_come_in_any_order_of_memory(channels):
    levels = torch.randn(1, 4, channels, 6, 5, dtype=torch.float64)
    mask = torch.rand(3, 1, 6, 5, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(3, channels, 6, 5, dtype=torch.float64)
    last = weights.contiguous(memory_format=torch.channels_last)
    plain, other = (
        torch.autograd.grad(apply_mask(levels, mask), mask, order)[0]
        for order in (weights, last)
    )
    segment = (mask * 3).floor().long().expand(-1, channels, -1, -1)
    slopes = levels[0].diff(dim=0).expand(3, -1, -1, -1, -1) * 3
    slope = slopes.gather(1, segment.unsqueeze(1)).squeeze(1)
    expected = (weights * slope).sum(dim=1, keepdim=True)
    torch.testing.assert_close(plain, expected)
    torch.testing.assert_close(other, expected)


def test_no_masks_give_nothing():
    pyramid, masks, _ = _case((4, 3))
    assert apply_mask(pyramid, masks[:0]).shape == (0, 3, 4, 3)


def test_strided_tensors_give_the_same_and_come_out_contiguous():
    pyramid, masks, outer = _case((4, 6))
    slanted = pyramid.transpose(-1, -2).contiguous().transpose(-1, -2)
    leaf = masks.transpose(-1, -2).contiguous().transpose(-1, -2).requires_grad_()
    perturbed = apply_mask(slanted, leaf)
    assert torch.equal(perturbed, apply_mask(pyramid, masks))
    assert perturbed.is_contiguous()
    outer = outer.transpose(-1, -2).contiguous().transpose(-1, -2)
    (gradient,) = torch.autograd.grad(perturbed, leaf, outer)
    expected = reference.mask_gradient(
        pyramid.numpy(), masks.numpy(), [0, 0, 0, 1, 1, 1], outer.numpy()
    )
    np.testing.assert_allclose(gradient, expected, atol=1e-11, rtol=0)


# --- apply_mask: in parts ---


@pytest.mark.parametrize("chunk", [1, 40, 10**6])
@pytest.mark.parametrize(
    ("size", "moves", "mirror"),
    [
        ((9,), (), False), ((9,), (4,), False), ((9,), (-3,), False),
        ((6, 7), (0, 0), True), ((6, 7), (2, -3), False), ((6, 7), (-1, 9), True),
        ((3, 4, 5), (1, 2), False), ((3, 4, 5), (-1, 0, 2), False),
    ],
)  # fmt: skip
def test_levels_apart_and_moved_copies_are_the_same_in_parts(
    size, moves, mirror, chunk, monkeypatch
):
    pyramid, masks, outer = _case(size, levels=5)
    axes = tuple(range(2, 2 + len(moves)))

    def copy_of(perturbed):
        shown = perturbed.roll(moves, axes) if moves else perturbed
        return shown.flip(-1) if mirror else shown

    leaf = masks.clone().requires_grad_()
    expected = copy_of(apply_mask(pyramid, leaf))
    (gradient,) = torch.autograd.grad(expected, leaf, outer)
    monkeypatch.setattr(apply, "_CPU_CHUNK", chunk)
    moved = apply.Moved(moves, mirror)
    for levels in (pyramid, pyramid.unbind(dim=1)):
        found = apply_mask(levels, leaf, moved=moved)
        assert torch.equal(found, expected)
        assert torch.equal(torch.autograd.grad(found, leaf, outer)[0], gradient)
        assert torch.equal(apply_mask(levels, masks, moved=moved), expected.detach())


def test_a_level_may_be_a_view_of_a_few_numbers():
    colour, last = torch.randn(2, 3, 1, 1), torch.randn(2, 3, 4, 5)
    mask = torch.rand(2, 1, 4, 5)
    stacked = torch.stack([colour.expand_as(last), last], dim=1)
    found = apply_mask((colour.expand_as(last), last), mask)
    assert torch.equal(found, apply_mask(stacked, mask))


def test_the_levels_of_a_large_image_are_its_blurs_and_itself(monkeypatch):
    inputs = torch.randn(2, 3, 8, 9)
    expected = BlurPerturbation(4).levels(inputs)
    assert torch.equal(
        levels_module.levels_apart(BlurPerturbation(4), inputs), expected
    )
    monkeypatch.setattr(apply, "LARGE_IMAGE", 1)
    monkeypatch.setattr(levels_module, "LARGE_IMAGE", 1)
    found = levels_module.levels_apart(BlurPerturbation(4), inputs)
    torch.testing.assert_close(torch.stack(found, dim=1), expected)
    assert found[-1].data_ptr() == inputs.data_ptr()


# --- apply_mask: what must not leak ---


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("levels", [2, 5])
def test_levels_without_weight_do_not_leak(bad, levels):
    pyramid = torch.randn(1, levels, 2, 3, 3)
    pyramid[:, :-1] = bad
    leaf = torch.ones(1, 1, 3, 3, requires_grad=True)
    perturbed = apply_mask(pyramid, leaf)
    assert torch.equal(perturbed, pyramid[:, -1])
    (gradient,) = torch.autograd.grad(perturbed.sum(), leaf)
    assert torch.equal(gradient, torch.zeros_like(leaf))
    pyramid = pyramid.flip(1)
    leaf = torch.zeros(1, 1, 3, 3, requires_grad=True)
    perturbed = apply_mask(pyramid, leaf)
    assert torch.equal(perturbed, pyramid[:, 0])
    (gradient,) = torch.autograd.grad(perturbed.sum(), leaf)
    assert torch.equal(gradient, torch.zeros_like(leaf))


def test_one_bad_channel_leaves_the_gradient_of_the_others():
    levels = FadePerturbation(torch.tensor([[torch.nan], [0.0]])).levels(
        torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])
    )
    leaf = torch.ones(1, 1, 2, requires_grad=True)
    (gradient,) = torch.autograd.grad(apply_mask(levels, leaf).sum(), leaf)
    assert gradient.flatten().tolist() == [3.0, 4.0]


def test_an_infinite_input_is_kept_bit_for_bit():
    levels = FadePerturbation().levels(torch.tensor([[[torch.inf, -torch.inf, 1.0]]]))
    assert torch.equal(apply_mask(levels, torch.ones(1, 1, 3)), levels[:, 1])
    assert torch.equal(apply_mask(levels, torch.zeros(1, 1, 3)), levels[:, 0])


def test_a_level_with_weight_shows_its_nan_in_its_pixel_alone():
    levels = FadePerturbation(torch.nan).levels(torch.ones(1, 2, 4))
    mask = torch.tensor([[[1.0, 0.5, 0.0, 1.0]]])
    assert apply_mask(levels, mask).isnan().tolist() == [
        [[False, True, True, False]] * 2
    ]


def test_a_nan_in_the_mask_shows_in_its_pixel_alone():
    levels = BlurPerturbation(4, 1.0).levels(torch.randn(1, 2, 4))
    mask = torch.tensor([[[1.0, torch.nan, 0.0, 0.3]]])
    found = apply_mask(levels, mask).isnan()
    assert found.tolist() == [[[False, True, False, False]] * 2]


def test_a_nan_from_the_model_is_not_swallowed():
    levels = FadePerturbation().levels(torch.ones(1, 1, 3))
    leaf = torch.ones(1, 1, 3, requires_grad=True)
    outer = torch.tensor([[[1.0, torch.nan, 1.0]]])
    (gradient,) = torch.autograd.grad(apply_mask(levels, leaf), leaf, outer)
    assert gradient.isnan().flatten().tolist() == [False, True, False]


def test_no_gradient_goes_to_the_levels():
    levels = torch.randn(1, 2, 1, 3, requires_grad=True)
    leaf = torch.rand(1, 1, 3, requires_grad=True)
    apply_mask(levels, leaf).sum().backward()
    assert leaf.grad is not None
    assert levels.grad is None
    assert not apply_mask(levels, leaf.detach()).requires_grad


# --- apply_mask: types, cost, errors ---


@pytest.mark.parametrize("of_levels", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("of_mask", [torch.float64, torch.float32, torch.bfloat16])
def test_types_are_promoted_and_come_back(of_levels, of_mask):
    pyramid, masks, outer = _case((4, 3), levels=8)
    pyramid, masks = pyramid.to(of_levels), masks.to(of_mask)
    leaf = masks.clone().requires_grad_()
    perturbed = apply_mask(pyramid, leaf)
    (gradient,) = torch.autograd.grad(perturbed, leaf, outer.to(of_levels))
    assert perturbed.dtype == of_levels
    assert gradient.dtype == of_mask
    exact = apply_mask(pyramid.double(), masks.double())
    tolerance = {torch.bfloat16: 2e-2, torch.float32: 1e-5, torch.float64: 1e-6}
    expected, atol = exact.to(of_levels), tolerance[of_levels]
    torch.testing.assert_close(perturbed.detach(), expected, atol=atol, rtol=0)
    ones = torch.ones_like(masks)
    whole = pyramid[:, -1].repeat_interleave(3, dim=0)
    assert torch.equal(apply_mask(pyramid, ones), whole)


class _Sizes(TorchDispatchMode):
    """Notes the largest tensor that any operation returns."""

    def __init__(self):
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.largest = max(self.largest, result.numel())
        return result


def test_memory_holds_no_tensor_with_a_level_axis_for_each_mask():
    pyramid, masks, outer = _case((8, 8), levels=9, images=1, per_image=32)
    leaf = masks.requires_grad_()
    with _Sizes() as sizes:
        torch.autograd.grad(apply_mask(pyramid, leaf), leaf, outer)
    assert sizes.largest == outer.numel()


def test_backward_keeps_one_tensor_of_the_size_of_the_result():
    pyramid, masks, _ = _case((8, 8), levels=9, images=1, per_image=4)
    perturbed = apply_mask(pyramid, masks.requires_grad_())
    (kept,) = perturbed.grad_fn.saved_tensors
    assert kept.shape == perturbed.shape


@pytest.mark.parametrize(
    ("levels", "mask", "rows", "error", "message"),
    [
        (torch.ones(1, 2, 3), torch.ones(1, 1), None, ValueError, r"got \(1, 2, 3\)"),
        (torch.ones(1, 1, 3, 4), torch.ones(1, 1, 4), None, ValueError, "L >= 2, got"),
        (torch.ones(1, 2, 3, 4, 5), torch.ones(1, 3, 4, 5), None, ValueError,
         r"mask must be of shape \(K, 1, 4, 5\) to fit levels .*got \(1, 3, 4, 5\)"),
        (torch.ones(1, 2, 3, 4), torch.ones(1, 1, 5), None, ValueError,
         r"mask must be of shape \(K, 1, 4\)"),
        (torch.ones(2, 2, 3, 4), torch.ones(3, 1, 4), None, ValueError,
         "whole multiple .* got 3 masks for 2 images"),
        (torch.ones(2, 2, 3, 4), torch.ones(3, 1, 4), torch.tensor([0, 1]), ValueError,
         r"rows must be of shape \(3,\), one for each mask, got \(2,\)"),
        (torch.ones(2, 2, 3, 4), torch.ones(2, 1, 4), torch.tensor([0, 2]), ValueError,
         r"rows must lie in \[0, 2\), got \[0, 2\]"),
        (torch.ones(2, 2, 3, 4), torch.ones(2, 1, 4), torch.tensor([-1, 0]), ValueError,
         r"rows must lie in \[0, 2\), got \[-1, 0\]"),
        (torch.ones(2, 2, 3, 4), torch.ones(2, 1, 4), torch.tensor([0.0, 1.0]),
         TypeError, "rows must be a tensor of integers, got torch.float32"),
        (torch.ones(2, 2, 3, 4), torch.ones(2, 1, 4), [0, 1], TypeError,
         "rows must be a tensor of integers, got list"),
        (torch.ones(1, 2, 3, 4), torch.ones(1, 1, 4).bool(), None, TypeError,
         "mask must be a floating point tensor, got torch.bool"),
        (torch.ones(1, 2, 3, 4).int(), torch.ones(1, 1, 4), None, TypeError,
         "levels must be a floating point tensor, got torch.int32"),
    ],
)  # fmt: skip
def test_errors_of_apply_mask(levels, mask, rows, error, message):
    with pytest.raises(error, match=message):
        apply_mask(levels, mask, rows)


# --- all that have a name ---


@pytest.mark.parametrize("name", PERTURBATIONS)
@pytest.mark.parametrize("shape", [(2, 3, 20), (1, 1, 9, 12), (1, 2, 4, 6, 5)])
def test_a_named_perturbation_ends_in_the_input_and_draws_nothing(name, shape):
    inputs = torch.randn(shape)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    levels = levels_module.levels_of(PERTURBATIONS[name](), inputs)
    assert torch.equal(torch.get_rng_state(), state)
    assert levels.isfinite().all()
    assert (levels[:, 0] != inputs).any()
    assert torch.equal(PERTURBATIONS[name]().levels(inputs), levels)
