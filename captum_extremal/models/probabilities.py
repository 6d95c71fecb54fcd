r"""A model's outputs -> probabilities, by one rule for all commands.

=========== =================================================================
softmax     the classes exclude each other
sigmoid     each output is a yes or no of its own
outputs     the model ends in probabilities, which are taken as they are
auto        *outputs* where all rows lie in [0, 1] and sum to 1, as after a softmax;
            else *sigmoid* for one output, and for 20 or 80, the classes of VOC and
            COCO, of which a picture shows several; else *softmax*
=========== =================================================================

What a sigmoid gives cannot be told from scores, and no number of outputs says whether a
picture may show several of them: then the rule must be named.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from captum_extremal._base.checks import check_choice

Rule = Literal["auto", "softmax", "sigmoid", "outputs"]
RULES: tuple[Rule, ...] = ("auto", "softmax", "sigmoid", "outputs")
_TOLD = {
    "softmax": "softmax",
    "sigmoid": "sigmoid",
    "outputs": "as the model gives it",
}
_SEVERAL_LABELS = (20, 80)
_SLACK = 1e-4  # of a sum in float32; coarser types round by more


def probabilities(outputs: Tensor, rule: Rule = "auto") -> Tensor:
    """Each output as a probability.

    Args:
        outputs: Scores, classes last.
        rule: As the module's first lines tell; auto judges by these rows.

    Returns:
        Of the same shape, in the type of the outputs, or float32 for a coarser one.

    Raises:
        ValueError: If the rule is another word.

    Example:
        >>> import torch
        >>> probabilities(torch.zeros(1, 20))[0, 0], probabilities(torch.zeros(1000))[0]
        (tensor(0.5000), tensor(0.0010))
        >>> probabilities(torch.tensor([[0.25, 0.75]]))  # they are, as they sum to 1
        tensor([[0.2500, 0.7500]])
        >>> probabilities(torch.tensor([[0.25, 0.75]]), "sigmoid")
        tensor([[0.5622, 0.6792]])
    """
    chosen = rule_for(outputs, rule)
    outputs = precise(outputs)
    if chosen == "outputs":
        return outputs
    return outputs.sigmoid() if chosen == "sigmoid" else outputs.softmax(dim=-1)


def precise(outputs: Tensor) -> Tensor:
    """The outputs in their own type, or in float32 if that is coarser.

    Args:
        outputs: Any scores.

    Returns:
        The same numbers.

    Example:
        >>> import torch
        >>> precise(torch.zeros(1, dtype=torch.bfloat16)).dtype
        torch.float32
        >>> precise(torch.zeros(1, dtype=torch.float64)).dtype
        torch.float64
    """
    return outputs.to(torch.promote_types(outputs.dtype, torch.float32))


def rule_for(outputs: Tensor, rule: Rule = "auto") -> Rule:
    """What auto comes to.

    Args:
        outputs: Scores of several inputs, the more the surer, classes last.
        rule: Any but auto is returned as it is.

    Returns:
        A rule that is not auto.

    Raises:
        ValueError: If the rule is another word.

    Example:
        >>> import torch
        >>> rule_for(torch.tensor([[0.2, 0.8], [0.9, 0.1]]))
        'outputs'
        >>> rule_for(torch.tensor([[0.2, 0.8], [0.9, 0.4]]))
        'softmax'
    """
    check_choice("probability", rule, RULES)
    if rule != "auto":
        return rule
    count = outputs.shape[-1]
    if count > 1 and _sum_to_one(outputs):
        return "outputs"
    return "sigmoid" if count == 1 or count in _SEVERAL_LABELS else "softmax"


def check_rule(outputs: Tensor, rule: Rule) -> None:
    """Refuse outputs that are no probabilities where they are to be taken for some.

    Args:
        outputs: Scores.
        rule: The rule for them.

    Raises:
        ValueError: If the rule is outputs, and one lies outside [0, 1].

    Example:
        >>> import torch
        >>> check_rule(torch.tensor([0.5, 7.0]), "outputs")
        Traceback (most recent call last):
        ...
        ValueError: probability 'outputs' needs outputs in [0, 1], got 7
    """
    wrong = outputs[~((outputs >= 0) & (outputs <= 1))]
    if rule == "outputs" and len(wrong):
        raise ValueError(
            f"probability 'outputs' needs outputs in [0, 1], got {float(wrong[0]):.4g}"
        )


def told(rule: Rule) -> str:
    """A rule in words, for tables and figures.

    Args:
        rule: Any but auto.

    Returns:
        The words.

    Example:
        >>> told("outputs")
        'as the model gives it'
    """
    return _TOLD[rule]


def _sum_to_one(outputs: Tensor) -> bool:
    slack = max(_SLACK, 2 * torch.finfo(outputs.dtype).eps)
    values = precise(outputs.detach())
    inside = (values >= 0) & (values <= 1 + slack)
    sums = values.sum(dim=-1)
    return bool(inside.all() & ((sums - 1).abs() <= slack).all())
