"""RISE against its formula, and each of its options."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from captum_extremal.methods.rise import _Masks
from captum_extremal.peers import RISE
from captum_extremal.perturbations.levels import BlurPerturbation, FadePerturbation
from reference import peers as reference
from tiny_models import Blocks, constant, varied


def masks_of(num_masks, size, grid_size, probability=0.5):
    """The masks, (num_masks, 1, *S): what a model sees of a white image."""
    seen = []

    class Model(torch.nn.Module):
        def forward(self, x):
            seen.append(x)
            return x.flatten(1).sum(dim=1)

    options = {"grid_size": grid_size, "probability": probability}
    RISE(Model()).attribute(torch.ones(1, 1, *size), num_masks=num_masks, **options)
    return torch.cat(seen)


def drawn_of(num_masks, size, grid_size):
    source = torch.Generator().manual_seed(0)
    return _Masks.drawn(source, num_masks, grid_size, 0.5, size)


@pytest.mark.parametrize(
    ("size", "grid_size"), [((9, 14), 4), ((7, 7), 7), ((5, 4), 1)]
)
def test_a_mask_is_enlarged_and_cropped_as_in_the_paper(size, grid_size):
    masks, drawn = masks_of(5, size, grid_size), drawn_of(5, size, grid_size)
    for mask, grid, shift in zip(masks, drawn.grids, drawn.shifts, strict=True):
        expected = reference.rise_mask(grid[0].double().numpy(), size, shift)
        np.testing.assert_allclose(mask[0], expected, atol=1e-6)


def test_shifts_take_every_place_of_a_cell_and_no_other():
    drawn = drawn_of(400, (9, 14), 4)
    rows, columns = zip(*drawn.shifts, strict=True)
    assert set(rows) == set(range(3))
    assert set(columns) == set(range(4))


@pytest.mark.parametrize("probability", [0.3, 0.5])
def test_the_expectation_of_a_mask_is_the_probability_everywhere(probability):
    masks = masks_of(4000, (10, 12), 3, probability)
    mean = masks.mean(0)
    assert (mean - probability).abs().max() < 0.05


@pytest.mark.parametrize("size", [(12,), (6, 8), (4, 6, 5)])
def test_masks_for_signals_images_and_volumes(size):
    masks = masks_of(3, size, 2)
    assert masks.shape == (3, 1, *size)
    assert masks.min() >= 0
    assert masks.max() <= 1


def test_the_mean_of_the_masks_as_in_the_paper():
    inputs = varied((1, 3, 8, 9)).double()
    weights = torch.rand(3, 8, 9, dtype=torch.float64)

    def model(x):
        return (x * weights).sum((1, 2, 3)) ** 2

    found = RISE(model).attribute(inputs, num_masks=20, grid_size=3, probability=0.4)
    masks = masks_of(20, (8, 9), 3, 0.4)
    expected = reference.rise(
        lambda x: float(model(torch.from_numpy(x)[None])),
        inputs[0].numpy(),
        masks[:, 0].double().numpy(),
        0.4,
    )
    np.testing.assert_allclose(found[0, 0], expected, rtol=1e-5)
    assert torch.equal(found[:, :1].expand_as(found), found)


def test_on_a_linear_model_it_converges_to_the_weights():
    # A mask is B g, with cells as large as pixels and p (1 - p) the variance of a cell:
    # S = E[M M^T] w / p = p sum(w) + (1 - p) B B^T w.
    weights, p = torch.randn(12), 0.3
    enlarge = F.interpolate(torch.eye(12)[:, None], size=13, mode="linear")[:, 0, :12]

    def model(x):
        return (x * weights).sum((1, 2))

    options = {"num_masks": 40000, "grid_size": 12, "perturbations_per_eval": 500}
    found = RISE(model).attribute(torch.ones(1, 1, 12), probability=p, **options)
    expected = p * weights.sum() + (1 - p) * enlarge.T @ enlarge @ weights
    assert expected.std() > 0.3
    torch.testing.assert_close(found[0, 0], expected, rtol=0, atol=0.03)


def test_masked_pixels_are_0_unless_told_otherwise():
    inputs = constant()
    for perturbation, least in (
        (None, 0.0),
        (FadePerturbation(-2.0), -2.0),
        (BlurPerturbation(), 1.0),
    ):
        seen = []

        def model(x, seen=seen):
            seen.append(float(x.min()))
            return x.mean((1, 2, 3))

        RISE(model, perturbation).attribute(inputs, num_masks=16, grid_size=2)
        assert min(seen) == pytest.approx(least, abs=1e-6)


def test_every_option_changes_the_outcome():
    method, inputs = RISE(Blocks()), varied()
    options = {"num_masks": 20, "grid_size": 4, "probability": 0.5, "seed": 0}
    usual = method.attribute(inputs, 0, **options)
    assert torch.equal(method.attribute(inputs, 0, **options), usual)
    for name, value in (
        ("num_masks", 21), ("grid_size", 3), ("probability", 0.4), ("seed", 1),
    ):  # fmt: skip
        other = method.attribute(inputs, 0, **options | {name: value})
        assert not torch.allclose(other, usual), name


def test_masks_are_made_when_they_are_needed(monkeypatch):
    sizes = []
    between = _Masks.between

    def counted(self, first, end, device):
        sizes.append(end - first)
        return between(self, first, end, device)

    monkeypatch.setattr(_Masks, "between", counted)
    RISE(Blocks()).attribute(
        constant((3, 3, 12, 12)), 0, num_masks=50, perturbations_per_eval=8
    )
    assert max(sizes) <= 4
    assert len(sizes) == 19


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"num_masks": 0}, ValueError, "num_masks must be at least 1, got 0"),
        ({"grid_size": 2.5}, TypeError, "grid_size must be an int, got 2.5"),
        ({"probability": 1.0}, ValueError, r"probability must lie in \(0, 1\), got 1"),
        ({"probability": "half"}, TypeError, "probability must be a number"),
    ],
)
def test_a_bad_option_is_an_error_before_any_work(options, error, text):
    def model(x):
        raise AssertionError("no work was to be done")

    with pytest.raises(error, match=text):
        RISE(model).attribute(constant(), **options)


def test_scores_that_are_not_finite_are_an_error():
    with pytest.raises(RuntimeError, match="finite scores, got NaN or inf"):
        RISE(lambda x: x.sum((1, 2, 3)) / 0).attribute(constant(), num_masks=4)


@pytest.mark.parametrize(
    ("dtype", "size"),
    [
        (torch.float32, 2.0**126),
        (torch.float32, 2.0**-140),
        (torch.float64, 2.0**1022),
        (torch.float64, 2.0**-1000),
    ],
)
def test_scores_of_any_size_give_the_right_sums(dtype, size):
    """The mean of finite scores is finite: 16 of them are too large for their type."""
    inputs = varied((1, 3, 6, 6)).to(dtype)

    def model(x):  # 1 or 3, of both signs
        high = x.mean((1, 2, 3)) > inputs.mean() / 2
        return torch.where(high, 3.0, -1.0).to(dtype)

    options = {"num_masks": 16, "grid_size": 2, "seed": 3}
    usual = RISE(model).attribute(inputs, **options)
    assert usual.abs().max() > 1
    found = RISE(lambda x: model(x) * size).attribute(inputs, **options)
    assert found.dtype == dtype
    assert found.isfinite().all()
    largest = torch.finfo(dtype).max / size  # beyond it: the largest number there is
    expected = usual.double().clamp(-largest, largest)
    tolerance = {"rtol": 1e-5, "atol": 1e-3 if size == 2.0**-140 else 1e-6}
    torch.testing.assert_close(found.double() / size, expected, **tolerance)


def test_sums_keep_the_precision_of_float64():
    inputs = varied((1, 1, 6, 6)).double()

    def model(x):
        return 1 + 1e-11 * x.mean((1, 2, 3))

    options = {"num_masks": 64, "grid_size": 2}
    whole = RISE(model).attribute(inputs, **options)
    constant_part = RISE(lambda x: x.new_ones(len(x))).attribute(inputs, **options)
    part = RISE(lambda x: x.mean((1, 2, 3))).attribute(inputs, **options)
    torch.testing.assert_close((whole - constant_part) * 1e11, part, rtol=0, atol=1e-4)
