"""A model -> a copy whose ReLUs Captum can hook.

Deconvnet and guided backprop change the gradients of ReLUs. Captum does so for
`torch.nn.ReLU` modules; here also for `torch.nn.ReLU6`, whose own gradient is 0 below 0
and above 6: guided backprop keeps both zeros, deconvnet passes both by, as each does
with a ReLU's. ReLUs that a model calls as functions are out of reach; a model without
any ReLU module is refused.
"""

from __future__ import annotations

import copy

from torch import Tensor, nn


class HookableReLU6(nn.ReLU):
    """min(max(x, 0), 6) as a subclass of ReLU, which is what Captum hooks.

    Example:
        >>> import torch
        >>> HookableReLU6()(torch.tensor([-1.0, 3.0, 7.0]))
        tensor([0., 3., 6.])
    """

    def forward(self, inputs: Tensor) -> Tensor:
        """The clipped input, never in place."""
        return inputs.clamp(0, 6)


def with_hookable_relus(model: nn.Module) -> nn.Module:
    """A copy of a model whose ReLUs Captum can hook: none in place, none a ReLU6.

    Args:
        model: Any model.

    Returns:
        The copy; its outputs are those of the model.

    Raises:
        ValueError: If the model has no ReLU or ReLU6 module.

    Example:
        >>> from torch import nn
        >>> with_hookable_relus(nn.Sequential(nn.ReLU(inplace=True), nn.ReLU6()))
        Sequential(
          (0): ReLU()
          (1): HookableReLU6()
        )
    """
    model = copy.deepcopy(model)
    found = False
    # A module in two places is listed twice, and replaced in both.
    for path, module in list(model.named_modules(remove_duplicate=False)):
        parent, _, name = path.rpartition(".")
        if isinstance(module, nn.ReLU6):
            setattr(model.get_submodule(parent), name, HookableReLU6())
        elif isinstance(module, nn.ReLU):
            module.inplace = False
        found = found or isinstance(module, nn.ReLU | nn.ReLU6)
    if not found:
        raise ValueError(
            "model must have ReLU or ReLU6 modules for deconvnet and guided-backprop, "
            f"got {type(model).__name__} without any"
        )
    return model
