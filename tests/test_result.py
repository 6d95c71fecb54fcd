"""`ExtremalResult`: a* (eq. 3) and monotonicity (eq. 8) by hand."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from captum_extremal.results.extremal import ExtremalResult

NAN = float("nan")


def result_of(scores, areas, input_score, masks=None, **others):
    """A result with these scores (N, A) and masks of zeros."""
    scores = torch.as_tensor(scores)
    if masks is None:
        masks = torch.zeros(*scores.shape, 1, 4, 4)
    return ExtremalResult(
        masks=masks,
        areas=areas,
        scores=scores,
        complement_scores=-scores,
        input_score=torch.as_tensor(input_score),
        perturbed_score=torch.zeros(len(scores)),
        **others,
    )


# --- a* ---

SCORES = [
    [1.0, 2.0, 3.0],  # reaches 2.5 at 0.4
    [3.0, 1.0, 0.0],  # at 0.1 already, whatever comes after
    [0.0, 2.5, 2.0],  # equal counts as reached
    [0.0, 1.0, 2.0],  # never
]
AREAS = (0.1, 0.2, 0.4)


def test_a_star_is_the_smallest_area_that_reaches_the_input_score():
    found = result_of(SCORES, AREAS, [2.5] * 4).smallest_sufficient_area()
    torch.testing.assert_close(
        found, torch.tensor([0.4, 0.1, 0.2, NAN]), equal_nan=True
    )


def test_a_star_of_each_images_own_score():
    found = result_of(SCORES, AREAS, [1.0, 9.0, 0.0, 2.0]).smallest_sufficient_area()
    torch.testing.assert_close(
        found, torch.tensor([0.1, NAN, 0.1, 0.4]), equal_nan=True
    )


@pytest.mark.parametrize(
    ("threshold", "expected"),
    [
        (2.0, [0.2, 0.1, 0.2, 0.4]),
        (0, [0.1, 0.1, 0.1, 0.1]),
        (3.5, [NAN] * 4),
        (-torch.inf, [0.1] * 4),
        (torch.tensor(2.0), [0.2, 0.1, 0.2, 0.4]),
        (torch.tensor([3.0, 3.5, 2.0, 1.0]), [0.4, NAN, 0.2, 0.2]),
        (torch.tensor([3, 3, 2, 1]), [0.4, 0.1, 0.2, 0.2]),
    ],
    ids=repr,
)
def test_a_star_of_another_threshold(threshold, expected):
    found = result_of(SCORES, AREAS, [99.0] * 4).smallest_sufficient_area(threshold)
    torch.testing.assert_close(found, torch.tensor(expected), equal_nan=True)


def test_a_star_does_not_depend_on_the_order_of_the_areas():
    found = result_of([[3.0, 1.0, 2.5]], (0.4, 0.1, 0.2), [2.5])
    assert found.smallest_sufficient_area().item() == pytest.approx(0.2)


def test_a_score_that_is_nan_suffices_for_nothing():
    found = result_of([[NAN, 2.0], [NAN, NAN]], (0.1, 0.2), [1.0, 1.0])
    torch.testing.assert_close(
        found.smallest_sufficient_area(), torch.tensor([0.2, NAN]), equal_nan=True
    )


def test_a_star_of_one_area():
    found = result_of([[1.0], [2.0]], (0.3,), [1.5, 1.5]).smallest_sufficient_area()
    torch.testing.assert_close(found, torch.tensor([NAN, 0.3]), equal_nan=True)


def test_a_star_has_dtype_and_device_of_the_scores(dtype, device):
    scores = torch.tensor(SCORES, dtype=dtype, device=device)
    found = result_of(scores, AREAS, scores[:, 0])
    area = found.smallest_sufficient_area(2)
    assert (area.dtype, area.device) == (dtype, scores.device)
    assert area.tolist() == torch.tensor([0.2, 0.1, 0.2, 0.4], dtype=dtype).tolist()


# --- monotonicity ---


@pytest.mark.parametrize(
    ("scores", "input_score", "expected"),
    [
        ([1.0, 2.0, 3.0, 4.0], 9.0, True),  # nothing suffices: all pairs, all grow
        ([1.0, 2.0, 1.5, 4.0], 9.0, False),
        ([1.0, 2.0, 3.0, 2.0], 9.0, False),  # the last pair counts as well
        ([1.0, 1.0, 1.0, 1.0], 9.0, True),  # eq. 8 allows equality
        ([1.0, 5.0, 0.0, 0.0], 4.5, True),  # a* is the second: one area is below it
        ([1.0, 2.0, 5.0, 0.0], 4.5, True),  # what comes at and after a* is free
        ([2.0, 1.0, 5.0, 6.0], 4.5, False),
        ([9.0, 1.0, 0.0, 3.0], 4.5, True),  # a* is the first: nothing below it
        ([1.0, 3.0, 2.0, 4.5], 4.5, False),
        ([1.0, 2.0, 3.0, 4.5], 4.5, True),
    ],
)
def test_monotonicity_by_hand(scores, input_score, expected):
    found = result_of([scores], (0.1, 0.2, 0.3, 0.4), [input_score]).is_monotonic()
    assert found.dtype == torch.bool
    assert found.tolist() == [expected]


def test_monotonicity_of_areas_in_any_order():
    areas, input_score = (0.3, 0.1, 0.4, 0.2), [9.0]
    assert result_of([[3.0, 1.0, 4.0, 2.0]], areas, input_score).is_monotonic().all()
    falls = result_of([[1.0, 2.0, 3.0, 4.0]], areas, input_score)
    assert not falls.is_monotonic().any()


def test_monotonicity_of_each_image():
    found = result_of(SCORES, AREAS, [9.0] * 4).is_monotonic()
    assert found.tolist() == [True, False, False, True]


def test_one_area_is_monotonic():
    assert result_of([[1.0]], (0.3,), [9.0]).is_monotonic().tolist() == [True]


def test_monotonicity_is_that_of_all_pairs():
    generator = torch.Generator().manual_seed(3)
    scores = torch.randint(0, 5, (200, 5), generator=generator).float()
    areas = (0.4, 0.1, 0.5, 0.2, 0.3)
    result = result_of(scores, areas, torch.full((200,), 4.0))
    a_star = result.smallest_sufficient_area().tolist()
    found = result.is_monotonic().tolist()
    for image, row in enumerate(scores.tolist()):
        limit = torch.inf if a_star[image] != a_star[image] else a_star[image]
        pairs = [(a, s) for a, s in zip(areas, row, strict=True) if a < limit - 1e-6]
        expected = all(s <= t for a, s in pairs for b, t in pairs if a <= b)
        assert found[image] == expected
    assert {True, False} == set(found)


# --- the object ---


def test_it_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        result_of(SCORES, AREAS, [1.0] * 4).areas = (0.1,)


def test_results_do_not_share_their_empty_dictionaries():
    one, other = (result_of(SCORES, AREAS, [1.0] * 4) for _ in range(2))
    assert one.history == {}
    assert one.history is not other.history
    assert one.settings is not other.settings
