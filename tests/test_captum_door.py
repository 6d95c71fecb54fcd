"""`_captum`: the helpers that stand between us and Captum's private ones."""

from __future__ import annotations

import io

import pytest
import torch

from captum_extremal._base.captum_door import (
    as_arguments,
    as_target,
    as_tuple,
    like_inputs,
    progress_bar,
    run_forward,
    select_targets,
    take_rows,
)
from tiny_models import Blocks, TwoInputs, constant

CPU = torch.device("cpu")


# --- inputs and outputs ---


def test_a_tensor_becomes_a_tuple_and_a_tuple_stays():
    one, other = torch.zeros(1), torch.ones(2)
    assert as_tuple(one)[0] is one
    both = as_tuple((one, other))
    assert both[0] is one
    assert both[1] is other


@pytest.mark.parametrize("inputs", [[torch.zeros(1)], "cat", 3, {}], ids=repr)
def test_other_inputs_are_captums_assertion_error(inputs):
    with pytest.raises(AssertionError, match=r"`inputs` must be a torch\.Tensor or a"):
        as_tuple(inputs)


def test_outputs_take_the_form_of_the_inputs():
    one, other = torch.zeros(1), torch.ones(2)
    assert like_inputs(False, (one,)) is one
    assert like_inputs(True, (one,)) == (one,)
    both = like_inputs(True, (one, other))
    assert both[0] is one
    assert both[1] is other


def test_a_round_trip():
    for inputs in (torch.zeros(1), (torch.zeros(1),)):
        again = like_inputs(isinstance(inputs, tuple), as_tuple(inputs))
        assert type(again) is type(inputs)


# --- additional_forward_args ---


def test_arguments_become_a_tuple():
    number = torch.tensor(3.0)
    assert as_arguments(None) == ()
    assert as_arguments(()) == ()
    assert as_arguments(number) == (number,)
    assert as_arguments((number, None, "x")) == (number, None, "x")
    assert as_arguments([1, 2]) == ([1, 2],)
    assert as_arguments((None,)) == (None,)


# --- targets ---

OUTPUTS = torch.tensor([[1.0, 5.0, 4.0], [2.0, 3.0, 7.0]])

TARGETS = {
    "int": (1, [5.0, 3.0]),
    "0-d": (torch.tensor(1), [5.0, 3.0]),
    "1-element": (torch.tensor([1]), [5.0, 3.0]),
    "tuple": ((1,), [5.0, 3.0]),
    "tensor": (torch.tensor([1, 2]), [5.0, 7.0]),
    "list": ([1, 2], [5.0, 7.0]),
    "list of tuples": ([(1,), (2,)], [5.0, 7.0]),
    "negative": (-1, [4.0, 7.0]),
}


@pytest.mark.parametrize(("target", "expected"), TARGETS.values(), ids=TARGETS.keys())
def test_a_target_means_the_same_in_its_fast_form(target, expected, device):
    outputs = OUTPUTS.to(device)
    assert select_targets(outputs, target).tolist() == expected
    fast = as_target(target, device)
    assert select_targets(outputs, fast).tolist() == expected


def test_no_target_is_the_whole_output():
    assert as_target(None, CPU) is None
    assert select_targets(OUTPUTS, None) is OUTPUTS


def test_the_fast_form_needs_no_look_at_the_device_inside_a_loop(device):
    assert as_target(torch.tensor([2]), device) == 2
    assert as_target(torch.tensor(2), device) == 2
    assert type(as_target(torch.tensor(2), device)) is int
    for target in ([0, 2], torch.tensor([0, 2])):
        fast = as_target(target, device)
        assert fast.tolist() == [0, 2]
        assert fast.device.type == device.type


@pytest.mark.parametrize("target", [3, (1, 2), [(0, 1), (1, 1)], None], ids=repr)
def test_other_targets_stay_as_they_are(target):
    assert as_target(target, CPU) is target


BAD = {
    "a list too short": [1],
    "a list too long": [1, 2, 0],
    "a tensor too long": torch.tensor([1, 2, 0]),
    "a matrix": torch.zeros(2, 2, dtype=torch.long),
    "a float": 1.0,
    "a float tensor": torch.tensor(1.0),
    "a float tensor with one element": torch.tensor([1.7]),
    "a list of strings": ["a", "b"],
    "a string": "dog",
    "too many indices": (0, 0),
}


@pytest.mark.parametrize("target", BAD.values(), ids=BAD.keys())
def test_a_bad_target_stays_captums_assertion_error(target):
    with pytest.raises(AssertionError):
        select_targets(OUTPUTS, target)
    with pytest.raises(AssertionError):
        select_targets(OUTPUTS, as_target(target, CPU))


def test_a_target_in_a_wide_output():
    outputs = torch.arange(12.0).reshape(2, 2, 3)
    assert select_targets(outputs, (1, 2)).tolist() == [5.0, 11.0]
    assert select_targets(outputs, [(0, 1), (1, 0)]).tolist() == [1.0, 9.0]
    assert select_targets(outputs, as_target([(0, 1), (1, 0)], CPU)).tolist() == [1, 9]


def test_the_gradient_goes_to_the_selected_entries():
    outputs = OUTPUTS.clone().requires_grad_()
    select_targets(outputs, [1, 2]).sum().backward()
    assert outputs.grad.tolist() == [[0, 1, 0], [0, 0, 1]]


# --- take_rows ---

ROWS = torch.tensor([0, 0, 1, 2, 1])


def test_rows_of_a_tensor_with_one_entry_an_example():
    value = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    found = take_rows(value, ROWS, 3)
    assert found.tolist() == [[1, 2], [1, 2], [3, 4], [5, 6], [3, 4]]
    assert take_rows(torch.tensor([7, 8, 9]), ROWS, 3).tolist() == [7, 7, 8, 9, 8]


def test_rows_of_a_list_of_targets():
    assert take_rows([7, 8, 9], ROWS, 3) == [7, 7, 8, 9, 8]
    assert take_rows([(7,), (8,), (9,)], ROWS, 3) == [(7,), (7,), (8,), (9,), (8,)]


@pytest.mark.parametrize(
    "value",
    [None, 3, 2.5, "abc", (1, 2, 3), {"a": 1}, torch.tensor(5), object()],
    ids=["None", "int", "float", "str", "tuple", "dict", "0-d tensor", "object"],
)
def test_what_is_for_all_examples_passes_through(value):
    assert take_rows(value, ROWS, 3) is value


def test_rows_of_one_example():
    zeros = torch.zeros(4, dtype=torch.long)
    assert take_rows(torch.tensor([5]), zeros, 1).tolist() == [5, 5, 5, 5]
    assert take_rows([5], zeros, 1) == [5, 5, 5, 5]


def test_rows_may_lie_on_another_device_than_the_value(device):
    value = torch.tensor([7, 8, 9])
    assert take_rows(value, ROWS.to(device), 3).tolist() == [7, 7, 8, 9, 8]
    on_device = take_rows(value.to(device), ROWS, 3)
    assert on_device.device.type == device.type


# --- run_forward ---


def test_the_model_gets_inputs_then_arguments_and_gives_its_whole_output():
    model = TwoInputs()
    inputs = constant((2, 1, 12, 12)), constant((2, 3, 8, 16))
    assert torch.equal(run_forward(model, inputs, ()), model(*inputs))

    def function(first, second, factor, word):
        assert word == "word"
        return model(first, second) * factor

    found = run_forward(function, inputs, (2.0, "word"))
    assert torch.equal(found, model(*inputs) * 2)


def test_the_output_keeps_its_gradient():
    inputs = constant().requires_grad_()
    run_forward(Blocks(), (inputs,), ()).sum().backward()
    assert (inputs.grad > 0).all()


# --- progress_bar ---


def test_a_bar_that_shows_nothing(capsys):
    bar = progress_bar(False, "words", 3)
    bar.update(1)
    bar.update()
    bar.close()
    bar.close()
    assert capsys.readouterr() == ("", "")


def test_a_bar_on_stderr(capsys):
    bar = progress_bar(True, "some words", 4)
    bar.update(1)
    bar.update(3)
    bar.close()
    bar.close()
    out, err = capsys.readouterr()
    assert out == ""
    assert "some words" in err
    assert "4/4" in err


def test_a_bar_is_captums(monkeypatch):
    made = []
    stream = io.StringIO()

    def progress(desc, total):
        made.append((desc, total))
        return stream

    monkeypatch.setattr("captum_extremal._base.captum_door.progress", progress)
    assert progress_bar(True, "words", 3) is stream
    assert made == [("words", 3)]
