"""`gaussian_blur` against its formula, its properties and its options."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from captum_extremal import blur
from captum_extremal.blur import gaussian_blur
from reference import blur as reference

SIZES = [(7,), (1,), (5, 4), (1, 6), (10, 10), (3, 4, 2)]
SIGMAS = [0.3, 1.0, 2.5, 40.0]


@pytest.fixture(params=["matrix", "fourier"])
def way(request, monkeypatch):
    """Each of the two ways to compute a blur, whatever the size."""
    limit = {"matrix": 10**9, "fourier": 0}[request.param]
    monkeypatch.setattr(blur, "_LARGEST_MATRIX", limit)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("sigma", SIGMAS)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_equals_the_formula(size, sigma, dtype, device):
    inputs = torch.randn(2, 3, *size, dtype=dtype)
    expected = reference.gaussian_blur(inputs.numpy(), sigma)
    blurred = gaussian_blur(inputs.to(device), sigma)
    assert blurred.dtype == dtype
    assert blurred.device.type == device.type
    tolerance = 1e-12 if dtype == torch.float64 else 2e-6
    np.testing.assert_allclose(blurred.cpu(), expected, atol=tolerance, rtol=0)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("sigma", [0.4, 1.1, 1.9, 2.1])
@pytest.mark.parametrize("size", [(6,), (4, 3)], ids=str)
def test_fade_is_the_formula_with_zeros_around_the_input(size, sigma):
    inputs = torch.randn(1, 2, *size, dtype=torch.float64)
    blurred = gaussian_blur(inputs, sigma, border="fade")
    if len(size) == 2:  # the literal sum over the padded plane is slow
        expected = _faded_by_axis(inputs.numpy(), sigma)
    else:
        expected = reference.faded_blur(inputs.numpy(), sigma, reach=20)
    np.testing.assert_allclose(blurred, expected, atol=1e-12, rtol=0)


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


@pytest.mark.parametrize("limit", [10**9, 0], ids=["matrix", "fourier"])
def test_constants_range_mirror_images_axes_and_examples(limit, monkeypatch):
    monkeypatch.setattr(blur, "_LARGEST_MATRIX", limit)
    given(
        size=st.lists(st.integers(1, 12), min_size=1, max_size=3),
        sigma=st.floats(0, 100),
        seed=st.integers(0, 99),
    )(_check_properties)()


def _check_properties(size, sigma, seed):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.rand(2, 2, *size, generator=generator, dtype=torch.float64)
    close = {"atol": 1e-12, "rtol": 0}
    blurred = gaussian_blur(inputs, sigma)
    constant = torch.full_like(inputs, 0.7)
    torch.testing.assert_close(gaussian_blur(constant, sigma), constant, **close)
    assert blurred.min() >= inputs.min() - 1e-12
    assert blurred.max() <= inputs.max() + 1e-12
    mirrored = gaussian_blur(inputs.flip(2), sigma).flip(2)
    torch.testing.assert_close(mirrored, blurred, **close)
    swapped = gaussian_blur(inputs.movedim(2, -1), sigma).movedim(-1, 2)
    torch.testing.assert_close(swapped, blurred, **close)
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
