"""Fields, regions of exact area and their edges."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from captum_extremal.masks import edges
from captum_extremal.masks.edges import edge_widths, largest, smooth_edges
from captum_extremal.masks.fields import Field, random_regions

CPU = torch.device("cpu")
SIZES = [(50,), (24, 31), (9, 10, 11)]


@pytest.mark.parametrize("size", SIZES)
def test_a_field_is_the_sum_of_gaussians(size):
    field = Field(size, 4, CPU)
    params = torch.randn(2, *field.points, generator=torch.Generator().manual_seed(0))
    expected = torch.zeros(2, *size, dtype=torch.double)
    for pixel in itertools.product(*map(range, size)):
        for point in itertools.product(*map(range, field.points)):
            weight = 1.0
            for u, v, side, count in zip(pixel, point, size, field.points, strict=True):
                spacing = side / count
                z = (u - ((v + 0.5) * spacing - 0.5)) / (8 / 7 * spacing)
                weight *= math.exp(-(z**2) / 2)
            expected[(slice(None), *pixel)] += (
                weight * params[(slice(None), *point)].double()
            )
        if pixel[0] > 5:  # enough of them: the loops are slow
            break
    rows = (slice(None), slice(0, 6))
    torch.testing.assert_close(
        field(params)[rows].double(), expected[rows], rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("size", SIZES)
def test_the_adjoint_is_the_transpose(size):
    field = Field(size, 3, CPU)
    generator = torch.Generator().manual_seed(1)
    params = torch.randn(1, *field.points, generator=generator)
    gradients = torch.randn(1, *size, generator=generator)
    forth = (field(params) * gradients).sum()
    back = (params * field.adjoint(gradients)).sum()
    torch.testing.assert_close(forth, back, rtol=1e-4, atol=1e-4)


@given(st.integers(1, 60), st.integers(0, 3))
@settings(max_examples=30, deadline=None)
def test_regions_have_exactly_their_pixels_also_with_ties(count, levels):
    generator = torch.Generator().manual_seed(count)
    values = torch.randint(0, levels + 1, (3, 6, 10), generator=generator).float()
    region = largest(values, [count, 1, 60])
    assert region.flatten(1).sum(1).tolist() == [count, 1, 60]
    inside, outside = values[0][region[0]], values[0][~region[0]]
    assert count == 60 or inside.min() >= outside.max()


@pytest.mark.parametrize(
    ("values", "count", "expected"),
    [
        ([2.0, 2.0, 5.0, 2.0, 1.0], 3, [0, 1, 2]),
        ([-0.0, 0.0, -1.0, 0.0], 2, [0, 1]),
        ([3.0, torch.inf, -torch.inf, torch.inf], 1, [1]),
        ([3.0, torch.nan, 7.0, torch.nan], 3, [1, 2, 3]),
        ([torch.nan] * 4, 2, [0, 1]),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_of_ties_the_first_are_taken_and_nan_is_the_largest(
    values, count, expected, dtype
):
    (region,) = largest(torch.tensor([values], dtype=dtype), [count])
    assert region.nonzero().flatten().tolist() == expected


@pytest.mark.parametrize("levels", [0, 1, 3, 10**6])
@pytest.mark.parametrize("order", ["random", "rising", "falling", "periodic"])
def test_of_many_values_the_same_are_the_largest(levels, order, monkeypatch):
    generator = torch.Generator().manual_seed(4)
    values = torch.randint(0, levels + 1, (4, 2000), generator=generator).float()
    values = {
        "random": values, "rising": values.sort().values,
        "falling": values.sort(descending=True).values,
        # The sample sees nothing but the smallest values.
        "periodic": values.masked_fill(torch.arange(2000) % 20 == 0, -1.0),
    }[order].clone()  # fmt: skip
    values[3, 5:9] = torch.nan
    for counts in ([1, 2000], [700, 30], [1999, 3]):
        usual = largest(values, counts)
        with monkeypatch.context() as patch:
            patch.setattr(edges, "_LONG", 1)
            patch.setattr(edges, "_SAMPLE", 100)
            assert torch.equal(largest(values, counts), usual)


def signed_distance(region, widths=None):
    """To the border half a pixel beyond each pixel; brute force. Or in widths."""
    places = torch.nonzero(torch.ones_like(region)).double()
    far = 0.5
    if widths is not None:
        scale = torch.tensor([1 / w if w else 1e9 for w in widths], dtype=torch.double)
        places, far = places * scale, 0.5 / min(w for w in widths if w)
    inside = region.flatten()
    exact = "donot_use_mm_for_euclid_dist"
    distances = torch.cdist(places, places, compute_mode=exact)
    to_other = torch.where(
        inside[:, None] != inside[None, :], distances, torch.inf
    ).amin(dim=1)
    signs = torch.where(inside, 1.0, -1.0)
    # Half a pixel of the narrowest axis, though never more than half the distance.
    nearer = torch.maximum(to_other - far, to_other / 2)
    return (signs * nearer).view(region.shape)


@pytest.mark.parametrize("size", [(40,), (17, 23), (7, 8, 9)])
@pytest.mark.parametrize("width", [1.0, 2.5, 4.0])
def test_edges_follow_the_distance_to_the_border(size, width):
    field = Field(size, 2, CPU)
    count = math.prod(size) // 4
    (region,) = random_regions(field, [count], 1, torch.Generator().manual_seed(2))
    slope = (signed_distance(region) / width).clamp(-1, 1)
    expected = 0.5 + 0.5 * torch.sin(math.pi / 2 * slope)
    mask = smooth_edges(region[None], width)[0, 0]
    torch.testing.assert_close(mask.double(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("chunk", [2**18, 60])
@pytest.mark.parametrize(
    ("size", "widths"),
    [
        ((17, 23), (3.0, 3.0)), ((17, 23), (1.0, 6.5)), ((17, 23), (30.0, 2.0)),
        ((5, 40), (0, 4.0)), ((12, 30), (5.0, 0.0)), ((4, 9, 11), (0, 2.0, 3.5)),
        ((7, 8, 9), (1.0, 2.0, 3.0)), ((7, 8, 9), (0, 0, 2.5)),
    ],
)  # fmt: skip
def test_with_a_width_for_each_axis_the_distance_is_in_widths(
    size, widths, chunk, monkeypatch
):
    monkeypatch.setattr(edges, "_CPU_CHUNK", chunk)
    generator = torch.Generator().manual_seed(3)
    regions = random_regions(Field(size, 2, CPU), [math.prod(size) // 4], 2, generator)
    noise = torch.rand(size, generator=generator) < 0.03
    for region in (*regions, noise, ~noise):
        slope = signed_distance(region, widths).clamp(-1, 1)
        expected = 0.5 + 0.5 * torch.sin(math.pi / 2 * slope)
        mask = smooth_edges(region[None], widths)[0, 0]
        torch.testing.assert_close(mask.double(), expected, rtol=0, atol=1e-6)
        assert torch.equal(mask >= 0.5, region)


def test_without_any_width_the_mask_is_the_region():
    regions = torch.rand(2, 4, 5) < 0.4
    assert torch.equal(smooth_edges(regions, (0, 0.0))[:, 0], regions.float())


@pytest.mark.parametrize("size", [(60,), (32, 40), (12, 12, 12)])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.9])
def test_masks_are_exact_and_no_steeper_than_the_bound(size, share):
    width = 3.0
    count = round(share * math.prod(size))
    regions = random_regions(
        Field(size, 2, CPU), [count], 8, torch.Generator().manual_seed(3)
    )
    masks = smooth_edges(regions, width)
    assert masks.dtype == torch.float32
    assert masks.min() >= 0
    assert masks.max() <= 1
    assert ((masks >= 0.5).flatten(1).sum(dim=1) == count).all()
    for axis in range(2, masks.dim()):
        steepest = masks.diff(dim=axis).abs().max()
        assert steepest <= math.pi / (4 * width) + 1e-6
    if len(size) == 2:
        diagonal = (masks[..., 1:, 1:] - masks[..., :-1, :-1]).abs().max()
        assert diagonal <= math.sqrt(2) * math.pi / (4 * width) + 1e-6


def test_a_narrow_edge_is_hard():
    assert edge_widths(0.04, (10,)) == (0,)
    assert edge_widths(0.05, (10, 10)) == pytest.approx((0.5, 0.5))
    assert edge_widths(0.05, (4, 25)) == pytest.approx((0.0, 1.25))
    region = torch.tensor([[True, False]])
    assert smooth_edges(region, 0.0).tolist() == [[[1.0, 0.0]]]


def test_a_narrow_axis_has_points_of_its_own():
    assert Field((3, 4000), 125, CPU).points == [3, 32]
    assert Field((32, 32), 64, CPU).points == [4, 4]


def test_a_field_is_exact_under_autocast():
    field = Field((16, 16), 2, CPU)
    params = torch.randn(2, *field.points, generator=torch.Generator().manual_seed(0))
    plain = field(params), field.adjoint(field(params))
    with torch.autocast("cpu", torch.bfloat16):
        cast = field(params), field.adjoint(field(params))
    torch.testing.assert_close(cast, plain, rtol=0, atol=0)


def test_the_border_of_the_input_is_no_edge():
    assert (smooth_edges(torch.ones(1, 5, 5, dtype=torch.bool), 4.0) == 1).all()


def test_random_regions_depend_on_the_generator_alone():
    field = Field((16, 16), 2, CPU)
    first, again, other = (
        random_regions(field, [40], 1, torch.Generator().manual_seed(s))
        for s in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
