"""Masks of disks: against the formula, their area, their slope."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from captum_extremal.masks.disks import DiskLattice, disk_masks, nearest_squares, radii
from reference import disks as reference

CPU = torch.device("cpu")
SIZES = [(40,), (12, 17), (6, 7, 8)]


def sets_on(lattice, count=3):
    generator = torch.Generator().manual_seed(0)
    draw = [
        tuple(int(torch.randint(n, (), generator=generator)) for n in lattice.points)
        for _ in range(2 * count)
    ]
    return [frozenset(draw[:count]), frozenset(draw[count:][:1])]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("edge", [1.0, 3.5])
def test_masks_equal_the_formula(size, edge):
    lattice = DiskLattice(size, CPU)
    sets = sets_on(lattice)
    count = max(1, round(0.2 * lattice.pixels))
    masks = disk_masks(lattice.squares(sets, lattice.axes), count, edge)
    for mask, points in zip(masks, sets, strict=True):
        origin = [-float(axis[0]) for axis in lattice.axes]
        centres = [
            tuple(
                o + step * i
                for o, step, i in zip(origin, lattice.steps, point, strict=True)
            )
            for point in points
        ]
        expected = reference.disk_mask(centres, size, 0.2, edge)
        torch.testing.assert_close(
            mask[0].double(), torch.from_numpy(expected), atol=2e-5, rtol=0
        )


@given(
    area=st.floats(0.01, 1.0),
    points=st.sets(st.tuples(st.integers(0, 31), st.integers(0, 31)), min_size=1),
)
def test_the_area_is_exact_but_for_ties_and_the_slope_is_bounded(area, points):
    lattice = DiskLattice((64, 64), CPU)
    count = max(1, round(area * 4096))
    squares = lattice.squares([frozenset(points)], lattice.axes)
    edge = 3.0
    mask = disk_masks(squares, count, edge)[0, 0]
    inside = int((mask >= 0.5).sum())
    ties = int((squares == squares.flatten().kthvalue(count).values).sum())
    assert count <= inside < count + ties
    assert mask.min() >= 0
    assert mask.max() <= 1
    bound = math.pi / (4 * edge) + 1e-4
    assert mask.diff(dim=0).abs().max() <= bound
    assert mask.diff(dim=1).abs().max() <= bound


def test_a_hard_edge_is_binary_and_as_large():
    lattice = DiskLattice((30, 30), CPU)
    squares = lattice.squares(sets_on(lattice), lattice.axes)
    hard, soft = disk_masks(squares, 200, 0), disk_masks(squares, 200, 2.0)
    assert set(hard.unique().tolist()) == {0.0, 1.0}
    assert hard.flatten(1).sum(dim=1).tolist() == [200, 200]
    assert ((soft >= 0.5) >= (hard > 0)).all()


def test_the_whole_area_keeps_everything():
    lattice = DiskLattice((9, 9), CPU)
    squares = lattice.squares(sets_on(lattice), lattice.axes)
    assert torch.equal(disk_masks(squares, 81, 2.0), torch.ones(2, 1, 9, 9))


def test_radii_reach_the_asked_number_of_pixels():
    squares = nearest_squares(
        torch.tensor([[[2, 2]]]), [torch.arange(5.0)] * 2, [1.0] * 2
    )
    assert radii(squares, 1).tolist() == [0.0]
    assert radii(squares, 5).tolist() == [1.0]
    assert radii(squares, 25).item() == pytest.approx(math.sqrt(8))


@pytest.mark.parametrize("size", SIZES)
def test_a_lattice_is_centred_and_covers_the_input(size):
    lattice = DiskLattice(size, CPU)
    for axis, count, step in zip(
        lattice.axes, lattice.points, lattice.steps, strict=True
    ):
        assert axis[0] <= 0
        last = step * (count - 1)
        assert float(axis[-1]) - last == pytest.approx(-float(axis[0]), abs=1e-4)


@pytest.mark.parametrize(("dims", "volume"), [(1, 2.0), (2, math.pi), (3, 4.18879)])
def test_radius_of_a_share(dims, volume):
    lattice = DiskLattice((20,) * dims, CPU)
    radius = lattice.radius_of(0.25)
    assert volume * radius**dims == pytest.approx(0.25 * 20**dims, rel=1e-5)


def test_a_grid_is_even_and_no_larger_than_asked():
    lattice = DiskLattice((224, 224), CPU)
    grid = lattice.grid(64)
    side = [2, 6, 10, 14, 18, 22, 26, 30]
    assert grid == list(itertools.product(side, side))
    assert len(lattice.grid(10)) == 9
    assert lattice.grid(1) == [(16, 16)]
