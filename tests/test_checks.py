"""Argument checks: what passes, and the text of what does not."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from captum_extremal._base import checks


@pytest.mark.parametrize(
    ("areas", "expected"),
    [
        (0.1, (0.1,)),
        (1, (1.0,)),
        ([0.05, 0.1], (0.05, 0.1)),
        ((0.5,), (0.5,)),
        (np.array([0.25, 0.5]), (0.25, 0.5)),
        (np.float32(0.5), (0.5,)),
        (torch.tensor(0.5), (0.5,)),
        (torch.tensor([[0.25], [0.75]]), (0.25, 0.75)),
        (iter([0.2, 0.2]), (0.2, 0.2)),
    ],
)
def test_areas_become_a_tuple_of_floats_in_their_order(areas, expected):
    checked = checks.check_areas(areas)
    assert checked == expected
    assert all(type(area) is float for area in checked)


@pytest.mark.parametrize(
    ("areas", "expected"),
    [
        (1, (1,)),
        (1.0, (1.0,)),
        ([528, 0.5], (528, 0.5)),
        (np.int64(3), (3,)),
        (np.array([1, 5]), (1, 5)),
        (torch.tensor([1, 5]), (1, 5)),
        (torch.tensor(0.5), (0.5,)),
        (range(1, 4), (1, 2, 3)),
    ],
)
def test_areas_of_channels_stay_ints_or_floats(areas, expected):
    checked = checks.check_channel_areas(areas)
    assert checked == expected
    assert [type(area) for area in checked] == [type(area) for area in expected]


@pytest.mark.parametrize("area", [True, "1", None, 1j])
def test_an_area_of_channels_is_a_number(area):
    with pytest.raises(TypeError, match=r"^area must be a number, got "):
        checks.check_channel_areas([area])


@pytest.mark.parametrize("area", [0, -1])
def test_an_area_of_channels_is_at_least_one(area):
    with pytest.raises(
        ValueError, match=rf"^area must be at least 1 channel, got {area}"
    ):
        checks.check_channel_areas(area)


@pytest.mark.parametrize("area", [0, -0.1, 1.5, float("nan"), float("inf")])
def test_an_area_outside_of_its_range_is_named(area):
    for given in (area, [0.1, area], torch.tensor([area])):
        with pytest.raises(
            ValueError, match=r"^area must lie in \(0, 1\], got "
        ) as error:
            checks.check_areas(given)
        came = float(str(error.value).split("got ")[1])
        assert came == pytest.approx(area, nan_ok=True)


@pytest.mark.parametrize("area", ["0.1", True, None, [0.1, None], ["a"], 1j])
def test_an_area_that_is_no_number_is_a_type_error(area):
    with pytest.raises(TypeError, match="area must be a number, got"):
        checks.check_areas(area)


@pytest.mark.parametrize("areas", [[], (), torch.zeros(0)])
def test_no_area_at_all_is_refused(areas):
    with pytest.raises(ValueError, match="at least one area, got none"):
        checks.check_areas(areas)


@pytest.mark.parametrize(
    ("check", "good", "bad", "message"),
    [
        (checks.check_positive, 1e-9, 0, "x must be positive and finite, got 0"),
        (checks.check_positive, 2, -1, "x must be positive and finite, got -1"),
        (checks.check_positive, 2, float("inf"), "positive and finite, got inf"),
        (checks.check_positive, 2, float("nan"), "positive and finite, got nan"),
        (
            checks.check_non_negative,
            0,
            -0.5,
            "x must be finite and at least 0, got -0.5",
        ),
        (checks.check_non_negative, 3, float("nan"), "at least 0, got nan"),
        (checks.check_non_negative, 3, float("inf"), "at least 0, got inf"),
        (checks.check_count, 1, 0, "x must be at least 1, got 0"),
    ],
)
def test_numbers_out_of_range(check, good, bad, message):
    assert check("x", good) == good
    with pytest.raises(ValueError, match=message):
        check("x", bad)


def test_a_count_has_its_own_minimum():
    assert checks.check_count("x", np.int64(2), minimum=2) == 2
    with pytest.raises(ValueError, match="x must be at least 2, got 1"):
        checks.check_count("x", 1, minimum=2)


@pytest.mark.parametrize("check", [checks.check_positive, checks.check_non_negative])
@pytest.mark.parametrize("value", ["1", None, True, torch.ones(2)])
def test_numbers_of_another_type(check, value):
    with pytest.raises(TypeError, match="x must be a number, got"):
        check("x", value)


@pytest.mark.parametrize("value", [1.0, "1", True, None])
def test_counts_of_another_type(value):
    with pytest.raises(TypeError, match="x must be an int, got"):
        checks.check_count("x", value)


@pytest.mark.parametrize("value", ["c", None, ["a"], 1])
def test_a_choice_lists_what_is_legal(value):
    checks.check_choice("game", "a", ("a", "b"))
    with pytest.raises(ValueError, match="game must be 'a' or 'b', got ") as error:
        checks.check_choice("game", value, ("a", "b"))
    assert str(error.value).endswith(repr(value))


def test_callables_and_methods():
    checks.check_callable("f", len)
    checks.check_method("s", "text", "upper")
    with pytest.raises(TypeError, match="f must be callable, got None"):
        checks.check_callable("f", None)
    with pytest.raises(TypeError, match="s must be an object with a solve method"):
        checks.check_method("s", "text", "solve")
    with pytest.raises(TypeError, match=r"got <class 'str'> \(type\)"):
        checks.check_method("s", str, "upper")


def test_long_values_are_cut_in_messages():
    with pytest.raises(TypeError, match=r"'a{36}\.\.\. \(str\)$"):
        checks.check_count("x", "a" * 500)


@pytest.mark.parametrize(
    ("shape", "words", "options"),
    [
        ((2, 3), "N K", {}),
        ((0, 3), "N K", {}),  # no example is an example
        ((2, 3), "N K", {"N": 2, "K": 3}),
        ((2, 3, 4, 5), "N 1|3 H W", {"filled": True}),
        ((2, 1, 4, 5), "N 1|3 H W", {}),
        ((4, 4), "H H", {}),
        ((2, 3, 7), "N C *S", {}),
        ((2, 3, 7, 8, 9), "N C *S", {}),
        ((2, 1, 7, 8), "N 1 *S", {"S": torch.Size([7, 8])}),
        ((2, 1), "N 1 *S", {"S": ()}),
        ((7, 8, 9, 6), "*S", {"S": (7, 8, 9, 6)}),
    ],
)
def test_a_shape_that_fits(shape, words, options):
    checks.check_shape("x", torch.zeros(shape), words, **options)


@pytest.mark.parametrize(
    ("shape", "words", "options", "legal"),
    [
        ((2,), "N K", {}, "(N, K)"),
        ((2, 3, 4), "N K", {}, "(N, K)"),
        ((2, 0), "N K", {}, "(N, K)"),
        ((0, 2), "N K", {"filled": True}, "(N, K), none of them 0"),
        ((2,), "N", {"N": 3}, "(3,)"),
        ((2, 3), "N K", {"K": 2, "note": ", as it is"}, "(N, 2), as it is"),
        ((2, 2, 4, 5), "N 1|3 H W", {}, "(N, 1 or 3, H, W)"),
        ((2, 13, 4, 5), "N 1|3 H W", {}, "(N, 1 or 3, H, W)"),
        ((4, 5), "H H", {}, "(H, H)"),
        (
            (2, 3),
            "N C *S",
            {},
            "(N, C, *S) with 1, 2 or 3 spatial sizes, none of them 0",
        ),
        ((2, 3, 1, 1, 1, 1), "N C *S", {}, "(N, C, *S) with 1, 2 or 3 spatial"),
        ((2, 3, 4, 0), "N C *S", {}, "(N, C, *S) with 1, 2 or 3 spatial"),
        ((2, 1, 8, 7), "N 1 *S", {"S": (7, 8)}, "(N, 1, 7, 8)"),
        ((2, 1, 7, 8, 1), "N 1 *S", {"S": (7, 8)}, "(N, 1, 7, 8)"),
    ],
)
def test_a_shape_that_does_not_fit(shape, words, options, legal):
    with pytest.raises(ValueError, match=f"x must be of shape {re.escape(legal)}") as e:
        checks.check_shape("x", torch.zeros(shape), words, **options)
    assert str(e.value).endswith(f", got {shape}")


def test_what_is_no_tensor_has_no_shape():
    with pytest.raises(TypeError, match=r"x must be a tensor, got \[1\] \(list\)"):
        checks.check_shape("x", [1], "N")


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 3, 4, 5), (1, 1, 2, 2, 2), (0, 3, 4)])
def test_spatial_tensors_pass(shape):
    checks.check_spatial("inputs", torch.zeros(shape))


@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (1, 1, 2, 2, 2, 2), (2, 3, 0)])
def test_other_shapes_are_shown(shape):
    with pytest.raises(ValueError, match="with 1, 2 or 3 spatial sizes") as error:
        checks.check_spatial("inputs", torch.zeros(shape))
    assert str(error.value).endswith(f"got {shape}")


@pytest.mark.parametrize("value", [np.zeros((1, 1, 1)), [1.0], None])
def test_what_is_no_tensor_is_named(value):
    with pytest.raises(TypeError, match="inputs must be a floating point tensor, got"):
        checks.check_spatial("inputs", value)


def test_inputs_must_agree():
    image, series = torch.zeros(2, 3, 4, 4), torch.zeros(2, 1, 9)
    checks.check_inputs((image, series))
    with pytest.raises(ValueError, match="in their first dimension N, got 2 and 1"):
        checks.check_inputs((image, series[:1]))
    with pytest.raises(ValueError, match="in their device, got cpu and meta"):
        checks.check_inputs((image, series.to("meta")))
    with pytest.raises(ValueError, match="at least one tensor, got none"):
        checks.check_inputs(())
    with pytest.raises(TypeError, match=r"got torch.int64"):
        checks.check_inputs((image, series.long()))
