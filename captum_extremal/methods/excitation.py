r"""Model, layer, class -> the probability that each neuron of the layer "wins".

Excitation backprop (Zhang et al. 2016) walks from a class down through the network: a
neuron :math:`j` hands its winning probability to those below that excite it, in
proportion to their (non-negative) activation times weight,

.. math::
    P(i) = \sum_j P(i \mid j)\, P(j), \qquad
    P(i \mid j) = Z_j\, a_i^+ w_{ij}^+, \qquad
    Z_j = 1 \Big/ \sum_k a_k^+ w_{kj}^+ ,

with :math:`v^+ = \max(v, 0)` and :math:`Z_j = 0` where the sum is 0. The operations of
the model get a backward that does this (`_rules`), and autograd walks.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from captum.attr import LayerAttribution
from captum.log import log_usage
from torch import Tensor, nn

from captum_extremal._base import checks
from captum_extremal._base.captum_door import (
    Target,
    as_arguments,
    as_tuple,
    check_target,
    run_forward,
    select_targets,
)
from captum_extremal._base.layer import Layer, check_module
from captum_extremal._base.model import (
    check_differentiable,
    modules_of,
    training_layers,
    uncompiled,
)
from captum_extremal.attribution.on_model import OnModel
from captum_extremal.methods.excitation_rules import (
    ExcitationMode,
    check_path,
    negate_last_weights,
)


class ExcitationBackprop(OnModel, LayerAttribution):
    r"""Marginal winning probability (MWP) of a layer's neurons, and contrastive MWP.

    MWP starts with probability 1 at the target and is a probability distribution over
    the neurons of every layer that all paths cross: it sums to 1, or to less where
    nothing below excites a neuron. The contrastive form subtracts the MWP of the dual
    class, the target with the weights of the model's last layer negated: what speaks
    for the class minus what speaks against it.

    With :math:`v^+ = \max(v, 0)`, neuron i below wins

    .. math::
        P(i) = \sum_j \frac{a_i^+ w_{ij}^+}{\sum_k a_k^+ w_{kj}^+} P(j)

    of the neurons j above. By the operation of PyTorch, as a module or called as a
    function:

    - convolutions, ``linear``: that, without the bias;
    - ``batch_norm`` in evaluation mode: folded into the convolution or linear layer
      right before it; elsewhere a scaling of each channel;
    - activations (ReLU, ReLU6, SiLU and their like): a neuron below for each above,
      which takes its whole probability;
    - max pooling: all to the largest; average pooling, sums, means and interpolation:
      the formula;
    - ``+``: shared by the activations of the summands;
    - a product of activations with a parameter, a number or a smaller tensor such as
      the gates of a squeeze-excite block: the latter is a weight and gets nothing;
    - reshaping, concatenation, dropout in evaluation mode: handed on.

    Convention: the paper assumes activations that are not negative; others (a linear
    bottleneck, SiLU) count as 0.

    Args:
        forward_func: The model, or a function that calls it, in evaluation mode.
        layer: The layer whose neurons are wanted. It must be called once in a forward
            and return one tensor.
        device_ids: For Captum's signature; must be None, since only a model on one
            device can be followed.

    Raises:
        TypeError: If ``forward_func`` cannot be called or ``layer`` is no module.
        ValueError: If ``device_ids`` is given.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from captum_extremal.peers import ExcitationBackprop
        >>> model = nn.Sequential(nn.Identity(), nn.Linear(3, 2))
        >>> model[1].weight.data = torch.tensor([[3.0, 1.0, -1.0], [0.0, 0.0, 1.0]])
        >>> method = ExcitationBackprop(model, model[0])
        >>> method.attribute(torch.tensor([[1.0, 1.0, 2.0]]), target=0)
        tensor([[0.7500, 0.2500, 0.0000]])
        >>> method.attribute(torch.tensor([[1.0, 1.0, 2.0]]), 0, contrastive=True)
        tensor([[ 0.7500,  0.2500, -1.0000]])

    References:
        J. Zhang, Z. Lin, J. Brandt, X. Shen, S. Sclaroff: Top-down Neural Attention by
        Excitation Backprop. ECCV 2016.
    """

    def __init__(
        self,
        forward_func: Callable[..., Tensor],
        layer: nn.Module,
        device_ids: list[int] | None = None,
    ) -> None:
        checks.check_callable("forward_func", forward_func)
        check_module(layer)
        if device_ids is not None:
            raise ValueError(
                "device_ids must be None, a model is followed on one device only, got "
                f"{device_ids}"
            )
        super().__init__(forward_func, layer, device_ids)

    @log_usage(part_of_slo=True)  # type: ignore[untyped-decorator]
    def attribute(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        target: Target = None,
        additional_forward_args: object = None,
        *,
        contrastive: bool = False,
        attribute_to_layer_input: bool = False,
    ) -> Tensor:
        """Winning probabilities in the shape of the layer's output.

        For a map over positions, as in the paper, sum over channels:
        ``attribution.sum(1, keepdim=True)``, enlarged by
        `captum.attr.LayerAttribution.interpolate`.

        Args:
            inputs: Inputs of the model, or a tuple of them.
            target: Captum's ``target``: which output to explain, see
                :meth:`captum.attr.Saliency.attribute`. Outputs are to be logits: there
                is no rule for a softmax.
            additional_forward_args: Further arguments of the model.
            contrastive: Subtract the MWP of the dual class. The paper shows the
                positive part of the sum over channels; nothing is cut off here.
            attribute_to_layer_input: Give the neurons that enter the layer instead.

        Returns:
            MWP in [0, 1], contrastive in [-1, 1]: the shape, dtype and device of the
            layer's output.

        Raises:
            TypeError: If an argument or what the layer gives is of the wrong type, or
                the model holds scripted modules, which cannot be followed.
            ValueError: If the model is in training mode, does not call the layer
                exactly once, or goes from it to the output by an operation without a
                rule; the message names it.
            RuntimeError: If the model was made in inference mode.
            AssertionError: Captum's, if ``target`` does not fit the model's output.

        Example:
            See `ExcitationBackprop`.
        """
        tensors = as_tuple(inputs)
        if not tensors:
            raise ValueError("inputs must hold at least one tensor, got none")
        check_target(target, len(tensors[0]))
        self._check_model()
        arguments = tuple(
            arg.detach() if isinstance(arg, Tensor) else arg
            for arg in as_arguments(additional_forward_args)
        )
        device = tensors[0].device
        with self._model_as_found(device), uncompiled():
            copies = tuple(tensor.detach().clone() for tensor in tensors)
            taps: list[Tensor] = []
            layer = Layer(self.forward_func, self.layer, attribute_to_layer_input)
            with (
                torch.no_grad(),
                layer.watched(lambda found: _tapped(found, taps), only_one=True),
                ExcitationMode(),
            ):
                outputs = run_forward(self.forward_func, copies, arguments)
            (tap,) = taps
            with torch.enable_grad():
                chosen = select_targets(outputs, target)
            _check_scores(chosen, len(tensors[0]))
            check_path(outputs, tap)
            probabilities = _walk(chosen, tap)
            if contrastive:
                negate_last_weights(outputs)
                probabilities = probabilities - _walk(chosen, tap)
        return probabilities.contiguous()

    def _check_model(self) -> None:
        check_differentiable(self.forward_func)
        for module in (*modules_of(self.forward_func), *self.layer.modules()):
            if isinstance(module, torch.jit.ScriptModule | nn.DataParallel):
                raise TypeError(
                    "forward_func must be a model in plain Python on one device, got "
                    f"one with a {type(module).__name__}"
                )
        layers = training_layers(self.forward_func)
        if layers:
            raise ValueError(
                "forward_func must be in evaluation mode (forward_func.eval()), got "
                f"layers in training mode: {', '.join(layers[:3])}"
            )


def _check_scores(chosen: Tensor, count: int) -> None:
    if chosen.numel() != count:
        raise ValueError(
            "forward_func and target must give one score per example: expected shape "
            f"({count},), got {tuple(chosen.shape)}"
        )


# --- where the walk ends ---


def _tapped(found: tuple[Tensor, ...], taps: list[Tensor]) -> tuple[Tensor]:
    """Let the record start at the layer's tensor, collected in a list.

    What the model computes before it is not recorded.
    """
    checks.check_floating("what layer gives", found[0])
    taps.append(found[0].detach().clone().requires_grad_())
    torch.set_grad_enabled(True)
    # A copy, since a later layer may work in place on what it gets.
    return (taps[-1].clone(),)


def _walk(chosen: Tensor, tap: Tensor) -> Tensor:
    (probabilities,) = torch.autograd.grad(chosen.sum(), tap, retain_graph=True)
    return probabilities
