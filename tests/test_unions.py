"""Regions that are unions of disks: exact, smooth, and near to the level set."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from skimage.morphology import opening

from captum_extremal import ExtremalPerturbation, LevelSetSolver
from captum_extremal.masks.edges import largest
from captum_extremal.masks.fields import Field
from captum_extremal.masks.unions import unions

DEVICE = torch.device("cpu")


def fields(size, number=3, seed=0):
    field = Field(size, None, DEVICE)
    generator = torch.Generator().manual_seed(seed)
    return field(torch.randn(number, *field.points, generator=generator))


def ball(radius, dims):
    reach = int(radius)
    axes = np.mgrid[(slice(-reach, reach + 1),) * dims]
    return (axes**2).sum(axis=0) <= radius**2


def outside_of_disks(region, radius):
    """Pixels of a region in none of its disks; disks may reach beyond the border."""
    disk = ball(radius, region.dim())
    reach = int(radius) + 1
    wide = np.pad(region.numpy(), 2 * reach, mode="edge").astype(np.uint8)
    inner = tuple(slice(2 * reach, -2 * reach) for _ in range(region.dim()))
    return int((region.numpy() & (opening(wide, disk)[inner] == 0)).sum())


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(
    ("size", "radius"), [((224, 224), 5.0), ((160, 240), 9.0), ((40, 40, 40), 3.0)]
)
def test_regions_are_exact_unions_of_disks_but_for_rounding(size, radius, seed):
    values = fields(size, 4, seed)
    pixels = values[0].numel()
    counts = [round(0.1 * pixels), round(0.3 * pixels)]
    regions = unions(values, counts, [radius] * len(size))
    assert regions.flatten(1).sum(dim=1).tolist() == 2 * counts
    surfaces = [
        sum(int(region.diff(dim=axis).sum()) for axis in range(len(size)))
        for region in regions
    ]
    for region, surface in zip(regions, surfaces, strict=True):
        # Pixels beside the border: a disk that is drawn on a grid has corners, and
        # the last ones make up the exact area.
        assert outside_of_disks(region, radius - 1) <= 0.25 * surface


@pytest.mark.parametrize("count", [4, 16, 100])
def test_a_mask_smaller_than_a_disk_is_a_smaller_disk(count):
    # Not at the border, which cuts disks.
    values = fields((64, 64), 100, 3)
    values[:, :6] = values[:, -6:] = values[:, :, :6] = values[:, :, -6:] = -9
    for region in unions(values, [count], [12.0, 12.0]):
        assert int(region.sum()) == count
        rows, columns = (place.float() for place in region.nonzero(as_tuple=True))
        spread = (rows.var(correction=0) + columns.var(correction=0)).sqrt()
        assert float(spread) < 1.15 * (count / (2 * np.pi)) ** 0.5  # that of a disk


@pytest.mark.parametrize("size", [(8, 8), (16, 3), (4, 8, 8), (5,)])
def test_disks_larger_than_the_input_are_cut(size):
    regions = unions(fields(size, 2), [3], [30.0] * len(size))
    assert regions.flatten(1).sum(dim=1).tolist() == [3, 3]


def test_specks_are_left_out_and_what_is_wide_stays():
    values = torch.zeros(1, 64, 64)
    values[0, 10:30, 10:30] = 1 + torch.rand(20, 20, generator=torch.Generator())
    values[0, 50:53, 50:53] = 9
    (region,) = unions(values, [400], [4.0, 4.0])
    assert not region[50:53, 50:53].any()
    assert int(region[10:30, 10:30].sum()) > 380


def test_radii_below_a_pixel_leave_the_level_set():
    values = fields((30, 20))
    regions = unions(values, [60], [0.9, 0.4])
    assert torch.equal(regions, largest(values, [60]))


def test_steps_that_stand_by_themselves_are_not_joined():
    values = torch.zeros(1, 4, 100)
    values[0, 2, 30:50] = 1
    (region,) = unions(values, [20], [0.0, 5.0])
    assert region[2].sum() == 20
    assert region[2, 30:50].all()


@pytest.mark.parametrize("smoothness", [0, 3.0, 6.0])
def test_delivered_masks_keep_the_promise(smoothness):
    def score(x):
        return x[:, 0, 10:30, 10:40].mean(dim=(1, 2)) + x[:, 0, 60:63, 60:63].sum(
            (1, 2)
        )

    solver = LevelSetSolver(iterations=16, smoothness=smoothness)
    method = ExtremalPerturbation(score, "fade", solver)
    (masks,) = method.optimize(torch.ones(1, 1, 80, 80), areas=[0.05, 0.15]).masks
    assert (masks >= 0.5).flatten(1).sum(dim=1).tolist() == [320, 960]
    for mask in (masks >= 0.5)[:, 0] if smoothness else ():
        assert outside_of_disks(mask, smoothness - 1) <= 12


@pytest.mark.parametrize("value", [-1, float("nan"), "wide"])
def test_a_smoothness_is_a_radius(value):
    with pytest.raises((ValueError, TypeError), match="smoothness"):
        LevelSetSolver(smoothness=value)
