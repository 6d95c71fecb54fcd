"""Rewards and games against values worked out by hand."""

from __future__ import annotations

import pytest
import torch

from captum_extremal.solvers.rewards import GAMES, contrastive_reward, simple_reward

OUTPUTS = torch.tensor([[1.0, 5.0, 4.0], [2.0, 3.0, 7.0], [-9.0, -8.0, -300.0]])


def test_the_weights_of_the_games():
    # Sec. 3.2: keep the score inside, bring it down outside, or both.
    assert GAMES == {
        "preservation": (1.0, 0.0),
        "deletion": (0.0, -1.0),
        "hybrid": (1.0, -1.0),
    }


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (1, [5.0, 3.0, -8.0]),
        (torch.tensor(1), [5.0, 3.0, -8.0]),
        (torch.tensor([1]), [5.0, 3.0, -8.0]),
        ((1,), [5.0, 3.0, -8.0]),
        ([1, 2, 0], [5.0, 7.0, -9.0]),
        (torch.tensor([1, 2, 0]), [5.0, 7.0, -9.0]),
        ([(1,), (2,), (0,)], [5.0, 7.0, -9.0]),
    ],
    ids=repr,
)
def test_simple_reward_is_the_score_of_the_target(target, expected):
    assert simple_reward(OUTPUTS, target).tolist() == expected


def test_simple_reward_without_target_is_the_output():
    scores = torch.tensor([1.0, 2.0])
    assert torch.equal(simple_reward(scores, None), scores)


@pytest.mark.parametrize("reward", [simple_reward, contrastive_reward])
@pytest.mark.parametrize("target", [[0, 1], torch.tensor([0, 1]), "dog", 1.0])
def test_a_bad_target_is_captums_error(reward, target):
    with pytest.raises(AssertionError):
        reward(OUTPUTS, target)


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (1, [1.0, -4.0, 1.0]),
        (0, [-4.0, -5.0, -1.0]),
        (torch.tensor(1), [1.0, -4.0, 1.0]),
        (torch.tensor([1]), [1.0, -4.0, 1.0]),
        ([1, 2, 0], [1.0, 4.0, -1.0]),
        (torch.tensor([1, 2, 0]), [1.0, 4.0, -1.0]),
        (torch.tensor([1, 2, 0], dtype=torch.int32), [1.0, 4.0, -1.0]),
        ((1,), [1.0, -4.0, 1.0]),
        ([(1,), (2,), (0,)], [1.0, 4.0, -1.0]),
    ],
    ids=repr,
)
def test_contrastive_reward_is_the_lead_over_the_best_other_class(target, expected):
    found = contrastive_reward(OUTPUTS, target)
    assert found.shape == (3,)
    assert found.tolist() == expected


def test_contrastive_reward_of_scores_far_below_any_constant():
    # A mask of -100 instead of -inf would win against such scores.
    outputs = torch.tensor([[-900.0, -1000.0, -1200.0]])
    assert contrastive_reward(outputs, 1).tolist() == [-100.0]


def test_contrastive_reward_is_zero_where_classes_tie():
    assert contrastive_reward(torch.tensor([[2.0, 2.0, 1.0]]), 0).tolist() == [0.0]


def test_contrastive_reward_of_two_classes_is_their_difference():
    outputs = torch.tensor([[3.0, 5.0], [1.0, 0.5]])
    assert contrastive_reward(outputs, 0).tolist() == [-2.0, 0.5]


def test_gradients_by_hand():
    outputs = OUTPUTS.clone().requires_grad_()
    simple_reward(outputs, [1, 2, 0]).sum().backward()
    assert outputs.grad.tolist() == [[0, 1, 0], [0, 0, 1], [1, 0, 0]]
    outputs.grad = None
    contrastive_reward(outputs, [1, 2, 0]).sum().backward()
    assert outputs.grad.tolist() == [[0, 1, -1], [0, -1, 1], [1, -1, 0]]


def test_contrastive_gradcheck():
    outputs = OUTPUTS.double().requires_grad_()
    torch.autograd.gradcheck(lambda x: contrastive_reward(x, [1, 2, 0]), outputs)


@pytest.mark.parametrize("shape", [(3,), (3, 1), (3, 4, 2), ()])
def test_contrastive_reward_needs_classes(shape):
    text = r"contrastive_reward needs outputs of shape \(K, classes\) with at least 2"
    with pytest.raises(ValueError, match=text):
        contrastive_reward(torch.zeros(shape), 0)


def test_contrastive_reward_needs_a_target():
    with pytest.raises((ValueError, TypeError), match="target"):
        contrastive_reward(OUTPUTS, None)


def test_rewards_keep_dtype_and_device(dtype, device):
    outputs = OUTPUTS.to(device, dtype)
    for reward in (simple_reward, contrastive_reward):
        for target in (1, [1, 2, 0], torch.tensor([1, 2, 0], device=device)):
            found = reward(outputs, target)
            assert (found.dtype, found.device) == (outputs.dtype, outputs.device)
            expected = reward(OUTPUTS, torch.as_tensor(target).cpu())
            assert found.tolist() == expected.tolist()


def test_rewards_change_nothing():
    outputs, target = OUTPUTS.clone(), torch.tensor([1, 2, 0])
    for reward in (simple_reward, contrastive_reward):
        reward(outputs, target)
    assert torch.equal(outputs, OUTPUTS)
    assert target.tolist() == [1, 2, 0]
