"""`gaussian_blur` against its formula, its properties and its options."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from captum_extremal.perturbations import blur
from captum_extremal.perturbations.blur import gaussian_blur
from reference import blur as reference

SIZES = [(7,), (1,), (5, 4), (1, 6), (10, 10), (3, 4, 2)]
SIGMAS = [0.3, 1.0, 2.5, 40.0]


# How near each way comes to the formula, as a share of the range of the input.
EXACT = {"matrix": 1e-12, "steps": 2e-6}


@pytest.fixture(params=["matrix", "steps"])
def way(request, monkeypatch):
    """Each of the two ways to compute a blur, whatever the size."""
    limit = {"matrix": 10**9, "steps": 0}[request.param]
    monkeypatch.setattr(blur, "_LARGEST_MATRIX", limit)
    return request.param


@pytest.mark.parametrize("sigma", SIGMAS)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_equals_the_formula(size, sigma, dtype, device, way):
    inputs = torch.randn(2, 3, *size, dtype=dtype)
    expected = reference.gaussian_blur(inputs.numpy(), sigma)
    blurred = gaussian_blur(inputs.to(device), sigma)
    assert blurred.dtype == dtype
    assert blurred.device.type == device.type
    tolerance = EXACT[way] if dtype == torch.float64 else 2e-6
    np.testing.assert_allclose(blurred.cpu(), expected, atol=tolerance, rtol=0)


@pytest.mark.parametrize("sigma", [0.4, 1.1, 1.9, 2.1])
@pytest.mark.parametrize("size", [(6,), (4, 3)], ids=str)
def test_fade_is_the_formula_with_zeros_around_the_input(size, sigma, way):
    inputs = torch.randn(1, 2, *size, dtype=torch.float64)
    blurred = gaussian_blur(inputs, sigma, border="fade")
    if len(size) == 2:  # the literal sum over the padded plane is slow
        expected = _faded_by_axis(inputs.numpy(), sigma)
    else:
        expected = reference.faded_blur(inputs.numpy(), sigma, reach=20)
    np.testing.assert_allclose(blurred, expected, atol=EXACT[way], rtol=0)


def _faded_by_axis(inputs, sigma):
    """The literal one-dimensional sum, for each axis in turn."""
    for axis in (2, 3):
        lines = np.moveaxis(inputs, axis, -1)
        flat = lines.reshape(-1, 1, lines.shape[-1])
        flat = reference.faded_blur(flat, sigma, reach=20)
        inputs = np.moveaxis(flat.reshape(lines.shape), -1, axis)
    return inputs


def test_the_border_changes_the_outcome_at_the_border_only():
    inputs = torch.ones(1, 1, 41, dtype=torch.float64)
    whole = gaussian_blur(inputs, 2.0)
    faded = gaussian_blur(inputs, 2.0, border="fade")
    np.testing.assert_allclose(whole, inputs, atol=1e-15, rtol=0)
    assert faded[0, 0, 0] == pytest.approx(0.5997, abs=1e-4)  # (1 + g(0) / sum g) / 2
    assert faded[0, 0, 20] == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("sigma", [0, 0.0])
@pytest.mark.parametrize("border", ["normalised", "fade"])
def test_sigma_zero_is_the_identity_bit_for_bit(sigma, border, dtype):
    inputs = torch.randn(2, 3, 5, 4, dtype=dtype)
    inputs[0, 0, 0, 0], inputs[0, 0, 0, 1] = torch.nan, torch.inf
    blurred = gaussian_blur(inputs, sigma, border)
    assert torch.equal(blurred.nan_to_num(7), inputs.nan_to_num(7))
    blurred.zero_()
    assert inputs.nan_to_num().abs().sum() > 0  # a copy


@pytest.mark.usefixtures("way")
def test_the_limits_of_small_and_large_sigma(dtype):
    inputs = torch.randn(1, 2, 6, 5, dtype=dtype)
    close = {"atol": 1e-6, "rtol": 0}
    torch.testing.assert_close(gaussian_blur(inputs, 1e-200), inputs, **close)
    mean = inputs.mean((2, 3), keepdim=True).expand_as(inputs)
    torch.testing.assert_close(gaussian_blur(inputs, 1e200), mean, **close)


@pytest.mark.usefixtures("way")
def test_constants_range_mirror_images_axes_and_examples(way):
    given(
        size=st.lists(st.integers(1, 12), min_size=1, max_size=3),
        sigma=st.floats(0, 100),
        seed=st.integers(0, 99),
    )(lambda size, sigma, seed: _check_properties(size, sigma, seed, EXACT[way]))()


def _check_properties(size, sigma, seed, exact):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.rand(2, 2, *size, generator=generator, dtype=torch.float64)
    close = {"atol": 1e-12, "rtol": 0}
    blurred = gaussian_blur(inputs, sigma)
    constant = torch.full_like(inputs, 0.7)
    torch.testing.assert_close(gaussian_blur(constant, sigma), constant, **close)
    assert blurred.min() >= inputs.min() - 1e-12
    assert blurred.max() <= inputs.max() + 1e-12
    near = {"atol": exact, "rtol": 0}
    mirrored = gaussian_blur(inputs.flip(2), sigma).flip(2)
    torch.testing.assert_close(mirrored, blurred, **near)
    swapped = gaussian_blur(inputs.movedim(2, -1), sigma).movedim(-1, 2)
    torch.testing.assert_close(swapped, blurred, **near)
    alone = gaussian_blur(inputs[1:, :1], sigma)
    torch.testing.assert_close(alone, blurred[1:, :1], **close)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("border", ["normalised", "fade"])
@pytest.mark.parametrize("size", [(5,), (3, 4), (2, 3, 2)], ids=str)
def test_gradcheck(size, border):
    inputs = torch.randn(1, 2, *size, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: gaussian_blur(x, 1.3, border), inputs)


@pytest.mark.parametrize("sigma", [5.0, 1428.0])
def test_a_long_line_is_blurred_by_the_formula_too(sigma):
    inputs = torch.randn(1, 1, 16000)
    blurred = gaussian_blur(inputs, sigma)[0, 0]
    line = inputs[0, 0].numpy().astype(np.float64)
    positions = np.arange(16000)
    for u in (0, 3, 7999, 15999):
        weights = np.exp(-((positions - u) ** 2) / (2 * sigma**2))
        assert blurred[u] == pytest.approx(weights @ line / weights.sum(), abs=1e-6)


def _worst_cases(size):
    """Channels of inputs in [0, 1]: a checkerboard, steps and pixels at the border."""
    places = torch.meshgrid(*[torch.arange(side) for side in size], indexing="ij")
    total, first = sum(places), places[0]
    return torch.stack([
        total % 2, first < 1, first >= first.max() // 2, total == 0,
        total == total.max(), total // 37 % 2, torch.rand(size) < 0.5,
    ])[None].double()  # fmt: skip


@pytest.mark.parametrize("border", ["normalised", "fade"])
@pytest.mark.parametrize(
    ("size", "sigma"),
    [
        ((513,), 0.3), ((521,), 4.9), ((1031,), 5.0), ((1031,), 7.0), ((2500,), 13.0),
        ((2500,), 223.0), ((2500,), 1e5), ((600, 601), 12.5), ((600, 601), 53.0),
        ((3, 700), 40.0), ((700, 3), 2.0), ((530, 2, 3), 60.0), ((2, 3, 640), 9.0),
        ((541, 640), (0.0, 20.0)), ((541, 40), (31.0, 2.0)),
    ],
    ids=str,
)  # fmt: skip
def test_long_axes_are_within_a_hundred_thousandth_of_the_formula(
    size, sigma, border, monkeypatch
):
    inputs = _worst_cases(size)
    found = gaussian_blur(inputs, sigma, border)
    in_float = gaussian_blur(inputs.float(), sigma, border)
    ones = gaussian_blur(torch.full_like(inputs[:, :1], 0.7), sigma)
    assert found.min() >= -1e-12
    assert found.max() <= 1 + 1e-12
    torch.testing.assert_close(ones, torch.full_like(ones, 0.7), rtol=0, atol=1e-12)
    monkeypatch.setattr(blur, "_LARGEST_MATRIX", 10**9)
    formula = gaussian_blur(inputs, sigma, border)
    torch.testing.assert_close(found, formula, rtol=0, atol=2e-6)
    torch.testing.assert_close(in_float.double(), formula, rtol=0, atol=1e-5)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("sigma", [(0.0, 1.5, 4.0), (2, 0, 0), [1.0, 2.0, 3.0]])
def test_each_axis_may_have_a_sigma_of_its_own(sigma):
    inputs = torch.randn(2, 1, 5, 6, 7, dtype=torch.float64)
    expected = inputs
    for axis, one in enumerate(sigma, start=2):
        lines = expected.movedim(axis, -1)
        flat = gaussian_blur(lines.reshape(-1, 1, lines.shape[-1]), one)
        expected = flat.view(lines.shape).movedim(-1, axis)
    found = gaussian_blur(inputs, sigma)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_the_cost_of_a_pixel_depends_on_neither_size_nor_sigma():
    """Counted in multiplications: the time of a test says little."""
    from torch.utils.flop_counter import FlopCounterMode

    costs = []
    for size, sigma in [
        ((8, 2048), 3.0), ((8, 2048), 30.0), ((8, 2048), 183.0), ((2048, 8), 183.0),
        ((1, 65536), 3.0), ((1, 65536), 30.0), ((1, 65536), 5851.0),
    ]:  # fmt: skip
        inputs = torch.zeros(1, 1, *size)
        with FlopCounterMode(display=False) as counter:
            gaussian_blur(inputs, tuple(sigma if s > 8 else 0 for s in size))
        costs.append(counter.get_total_flops() / inputs.numel())
    assert max(costs) < 500  # 4096 with a matrix of 2048 weights a line


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_bad_pixel_spreads_along_its_lines_and_no_others(bad):
    inputs = torch.zeros(1, 2, 3, 700)
    inputs[0, 0, 1, 350] = bad
    found = gaussian_blur(inputs, (0, 20.0)).isfinite()
    assert not found[0, 0, 1, 300:400].any()
    assert found[0, 0, ::2].all()
    assert found[0, 1].all()


def test_both_sides_of_the_size_limit_agree():
    inputs = torch.randn(1, 1, 2, blur._LARGEST_MATRIX + 1)
    whole = gaussian_blur(inputs, 3.0)
    part = gaussian_blur(inputs[..., :-1], 3.0)
    torch.testing.assert_close(part[..., :-40], whole[..., :-41], atol=1e-6, rtol=0)


@pytest.mark.parametrize("short", [torch.float16, torch.bfloat16])
def test_short_types_are_computed_in_float32(short):
    inputs = torch.rand(1, 1, 9, 8).to(short)
    blurred = gaussian_blur(inputs, 1.5)
    assert blurred.dtype == short
    assert torch.equal(blurred, gaussian_blur(inputs.float(), 1.5).to(short))


def test_autocast_does_not_shorten_the_arithmetic():
    inputs = torch.rand(1, 1, 9, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        blurred = gaussian_blur(inputs, 1.5)
    assert torch.equal(blurred, gaussian_blur(inputs, 1.5))


@pytest.mark.usefixtures("way")
def test_strided_inputs_give_contiguous_results_and_stay_as_they_are():
    inputs = torch.rand(2, 3, 6, 8).to(memory_format=torch.channels_last)[..., ::2]
    before = inputs.clone()
    blurred = gaussian_blur(inputs, 1.0)
    assert blurred.is_contiguous()
    assert torch.equal(inputs, before)
    torch.testing.assert_close(blurred, gaussian_blur(before.contiguous(), 1.0))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((torch.zeros(1, 3), 1.0), ValueError, r"spatial sizes, .*, got \(1, 3\)"),
        ((torch.zeros(1, 3, 4).int(), 1.0), TypeError, "got torch.int32"),
        ((torch.zeros(1, 3, 4), -1.0), ValueError, "sigma must .* got -1.0"),
        ((torch.zeros(1, 3, 4), float("nan")), ValueError, "sigma must .* got nan"),
        ((torch.zeros(1, 3, 4), "1"), TypeError, "sigma must be a number, got '1'"),
        ((torch.zeros(1, 3, 4), (1, -2)), ValueError, "one for each of 1 .* got 2"),
        ((torch.zeros(1, 3, 4, 4), (1, -2)), ValueError, "sigma must .* got -2"),
        (
            (torch.zeros(1, 3, 4), 1.0, "wrap"),
            ValueError,
            "border must be 'normalised' or 'fade', got 'wrap'",
        ),
    ],
)
def test_errors(arguments, error, message):
    with pytest.raises(error, match=message):
        gaussian_blur(*arguments)
