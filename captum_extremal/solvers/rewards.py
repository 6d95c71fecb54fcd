"""Model outputs -> one reward per perturbed input.

A reward function takes ``(outputs, target)`` and returns a tensor (K,), higher is
better. Two come with the library; any callable of that form will do:

- `simple_reward`: the score of the target, Phi in the paper's eq. 2,
- `contrastive_reward`: that score minus the best score of any other class.

What is maximised depends on the game (Sec. 3.2): the reward of what the mask keeps
(preservation), minus the reward of what is left without it (deletion), or both
(hybrid); `GAMES` holds the two weights.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from captum_extremal._base.captum_door import Target, select_targets

Reward = Callable[[Tensor, Target], Tensor]
Game = Literal["preservation", "deletion", "hybrid"]

GAMES: dict[Game, tuple[float, float]] = {
    "preservation": (1.0, 0.0),
    "deletion": (0.0, -1.0),
    "hybrid": (1.0, -1.0),
}
"""Weights of the reward of ``m * x`` and of ``(1 - m) * x`` in what is maximised."""


def simple_reward(outputs: Tensor, target: Target) -> Tensor:
    """The score of the target: Captum's own selection.

    Args:
        outputs: What the model returned, first dimension K.
        target: Captum's ``target``, see :meth:`captum.attr.Saliency.attribute`.

    Returns:
        The selected scores, (K,) where the target names one output per example.

    Raises:
        AssertionError: Captum's, where the target does not fit the outputs.

    Example:
        >>> import torch
        >>> simple_reward(torch.tensor([[1.0, 5.0], [2.0, 3.0]]), 1)
        tensor([5., 3.])
    """
    return select_targets(outputs, target)


def contrastive_reward(outputs: Tensor, target: Target) -> Tensor:
    """The score of the target minus the highest score of the other classes.

    Args:
        outputs: Class scores, (K, classes) with at least two classes.
        target: One class index, or one for each of the K examples: an int, a tensor
            or a list of ints.

    Returns:
        ``outputs[k, target_k] - max_{j != target_k} outputs[k, j]``, (K,).

    Raises:
        ValueError: If ``outputs`` is not (K, classes) with two classes or more, or
            there is no target.
        AssertionError: Captum's, where the target does not fit the outputs.

    Example:
        >>> import torch
        >>> contrastive_reward(torch.tensor([[1.0, 5.0, 4.0], [2.0, 3.0, 7.0]]), 1)
        tensor([ 1., -4.])
    """
    if outputs.dim() != 2 or outputs.shape[1] < 2:
        raise ValueError(
            "contrastive_reward needs outputs of shape (K, classes) with at least "
            f"2 classes, got {tuple(outputs.shape)}"
        )
    if target is None:
        raise ValueError("contrastive_reward needs a target, got None")
    score = select_targets(outputs, target)
    index = torch.as_tensor(target, device=outputs.device).reshape(-1, 1)
    index = (index % outputs.shape[1]).expand(len(outputs), 1)
    others = outputs.scatter(1, index, -torch.inf)
    return score - others.amax(dim=1)
