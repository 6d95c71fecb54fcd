"""`Curve`: the scores of one image in order, and the place of a* (eq. 3 and 10)."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from captum_extremal.curve import Curve
from captum_extremal.results.channels import ChannelResult
from captum_extremal.results.extremal import ExtremalResult

NAN = float("nan")


def curve_of(scores, input_score, sizes=(0.4, 0.1, 0.2), dtype=torch.float32):
    row = torch.tensor(scores, dtype=dtype)
    level = torch.tensor(input_score)
    return Curve.of(sizes, row, -row, level, level - 9)


def test_sizes_grow_and_scores_stay_with_theirs():
    curve = curve_of([3.0, 1.0, 2.0], 0.0)
    assert curve.sizes == (0.1, 0.2, 0.4)
    assert curve.scores == (1.0, 2.0, 3.0)
    assert curve.complement_scores == (-1.0, -2.0, -3.0)
    assert (curve.input_score, curve.perturbed_score) == (0.0, -9.0)


@pytest.mark.parametrize(
    ("scores", "input_score", "place"),
    [
        ([3.0, 1.0, 2.0], 1.0, 0),  # equal is enough
        ([3.0, 1.0, 2.0], 1.5, 1),
        ([1.0, 1.0, 3.0], 2.0, 1),  # a larger one need not be
        ([3.0, 1.0, 2.0], 3.5, None),
        ([3.0, NAN, 2.0], 0.0, 1),
        ([3.0, 1.0, 2.0], NAN, None),
    ],
)
def test_the_place_of_a_star(scores, input_score, place):
    curve = curve_of(scores, input_score)
    assert curve.a_star == place
    expected = None if place is None else (0.1, 0.2, 0.4)[place]
    assert curve.smallest_sufficient == expected


def test_of_equal_sizes_one_that_suffices_is_a_star():
    curve = curve_of([1.0, 9.0, 3.0], 2.0, sizes=(0.3, 0.5, 0.3))
    assert curve.scores[curve.a_star] == 3.0


def test_the_input_score_counts_in_the_precision_of_the_scores():
    curve = curve_of([1.0, 0.0, 0.0], 1.0 + 1e-4, dtype=torch.float16)
    assert curve.a_star == 2


def test_the_curves_of_results():
    scores = torch.tensor([[3.0, 1.0], [1.0, 1.0]])
    rows = (scores, scores - 1, torch.tensor([2.0, 1.0]), torch.tensor([0.0, -1.0]))
    pictures = ExtremalResult(torch.zeros(2, 2, 1, 4, 4), (0.5, 0.1), *rows)
    curve = pictures.curve(1)
    assert curve == Curve((0.1, 0.5), (1.0, 1.0), (0.0, 0.0), 1.0, -1.0, 0)
    assert pictures.curve() == pictures.curve(0)
    assert pictures.curve().smallest_sufficient == 0.5
    masks = torch.tensor([[[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]]]).repeat(2, 1, 1)
    channels = ChannelResult(masks, (0.7, 1), *rows, torch.zeros(2, 3, 4))
    assert channels.curve(1) == dataclasses.replace(curve, sizes=(1, 2))
