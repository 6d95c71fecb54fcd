r"""Model, layer, class -> the probability that each neuron of the layer "wins".

Excitation backprop (Zhang et al. 2016) walks from a class down through the network: a
neuron :math:`j` hands its winning probability to those below that excite it, in
proportion to their (non-negative) activation times weight,

.. math::
    P(i) = \sum_j P(i \mid j)\, P(j), \qquad
    P(i \mid j) = Z_j\, a_i^+ w_{ij}^+, \qquad
    Z_j = 1 \Big/ \sum_k a_k^+ w_{kj}^+ ,

with :math:`v^+ = \max(v, 0)` and :math:`Z_j = 0` where the sum is 0. With
:math:`z_j = \sum_i a_i^+ w_{ij}^+` this is the gradient of :math:`z` given
:math:`P(j) / z_j` from above, times :math:`a_i^+`. So each operation of the model is
replaced by one of the same value whose backward is that (`_Excite`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NoReturn

import torch
from captum.attr import LayerAttribution
from captum.log import log_usage
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from captum_extremal import _checks
from captum_extremal._captum import (
    Target,
    as_arguments,
    as_tuple,
    check_target,
    run_forward,
    select_targets,
)
from captum_extremal._model import as_found, made_in_inference_mode, training_layers

# Non-negative activations -> their excitation of the neurons above, z of the formula.
Total = Callable[..., Tensor]


class ExcitationBackprop(LayerAttribution):
    r"""Marginal winning probability (MWP) of a layer's neurons, and contrastive MWP.

    MWP starts with probability 1 at the target and is a probability distribution over
    the neurons of every layer that all paths cross: it sums to 1, or to less where
    nothing below excites a neuron. The contrastive form subtracts the MWP of the dual
    class, the target with the weights of the model's last layer negated: what speaks
    for the class minus what speaks against it.

    Rules, by the operation of PyTorch (as a module or called as a function):

    - convolutions, ``linear``: the formula of `captum_extremal.peers.excitation`, the
      bias left out;
    - ``batch_norm`` in evaluation mode: folded into the convolution or linear layer
      right before it; elsewhere a scaling of each channel;
    - activations (ReLU, ReLU6, SiLU and their like): a neuron below for each above,
      which takes its whole probability;
    - max pooling: all to the largest; average pooling, means and interpolation: by
      activation;
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
        _checks.check_callable("forward_func", forward_func)
        if not isinstance(layer, nn.Module):
            raise TypeError(f"layer must be a module, got {type(layer).__name__}")
        if device_ids is not None:
            raise ValueError(
                "device_ids must be None, a model is followed on one device only, got "
                f"{device_ids}"
            )
        super().__init__(forward_func, layer, device_ids)

    @property
    def multiplies_by_inputs(self) -> bool:
        """False: probabilities are not scaled by the activations."""
        return False

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
        with as_found(self.forward_func, device), torch.inference_mode(False):
            copies = tuple(tensor.detach().clone() for tensor in tensors)
            with (
                torch.no_grad(),
                _tapped(self.layer, attribute_to_layer_input) as taps,
                _ExcitationMode(),
            ):
                outputs = run_forward(self.forward_func, copies, arguments)
            tap = _the_only(taps)
            with torch.enable_grad():
                chosen = select_targets(outputs, target)
            _check_scores(chosen, len(tensors[0]))
            _check_path(outputs, tap)
            probabilities = _walk(chosen, tap)
            if contrastive:
                with _dual(outputs):
                    probabilities = probabilities - _walk(chosen, tap)
        return probabilities.contiguous()

    def attribute_future(self) -> NoReturn:
        """Not available, as for most of Captum's methods."""
        raise NotImplementedError(
            "attribute_future is not implemented for ExcitationBackprop"
        )

    def _check_model(self) -> None:
        if made_in_inference_mode(self.forward_func):
            raise RuntimeError(
                "forward_func was made inside torch.inference_mode(), so it cannot "
                "be walked back through; create or load the model outside of it"
            )
        model = getattr(self.forward_func, "__self__", self.forward_func)
        for module in (*_modules(model), *_modules(self.layer)):
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


def _modules(model: object) -> Iterator[nn.Module]:
    return model.modules() if isinstance(model, nn.Module) else iter(())


def _check_scores(chosen: Tensor, count: int) -> None:
    if chosen.numel() != count:
        raise ValueError(
            "forward_func and target must give one score per example: expected shape "
            f"({count},), got {tuple(chosen.shape)}"
        )


# --- where the walk ends ---


@contextmanager
def _tapped(layer: nn.Module, at_input: bool) -> Iterator[list[Tensor]]:
    """Let the record start at what leaves (or enters) the layer, collected in a list.

    What the model computes before it is not recorded.
    """
    taps: list[Tensor] = []

    def tap(given: object) -> Tensor:
        value = given[0] if isinstance(given, tuple) and len(given) == 1 else given
        if not isinstance(value, Tensor) or not value.is_floating_point():
            came = value.dtype if isinstance(value, Tensor) else type(value).__name__
            way = "take" if at_input else "return"
            raise TypeError(f"layer must {way} one floating point tensor, got {came}")
        taps.append(value.detach().clone().requires_grad_())
        torch.set_grad_enabled(True)
        # A copy, since a later layer may work in place on what it gets.
        return taps[-1].clone()

    def before(_: nn.Module, args: tuple[Any, ...]) -> tuple[Tensor]:
        return (tap(args),)

    def after(_: nn.Module, __: object, output: object) -> Tensor | tuple[Tensor]:
        return (tap(output),) if isinstance(output, tuple) else tap(output)

    hook = (
        layer.register_forward_pre_hook(before)
        if at_input
        else layer.register_forward_hook(after)
    )
    try:
        yield taps
    finally:
        hook.remove()


def _the_only(taps: list[Tensor]) -> Tensor:
    if len(taps) != 1:
        raise ValueError(
            "layer must be called once in a forward of forward_func, got "
            f"{len(taps)} calls"
        )
    return taps[0]


# --- the operations ---


class _Excite(torch.autograd.Function):
    """An operation whose backward shares probability by excitation.

    Without ``total`` each neuron has one below it, which gets everything.
    """

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        operation: Callable[..., Tensor],
        total: Total | None,
        dual_total: Total | None,
        *activations: Tensor,
    ) -> Tensor:
        ctx.total, ctx.dual_total = total, dual_total
        if total is not None:
            ctx.save_for_backward(*[a.clamp(min=0) for a in activations])
        value = operation(*activations)
        if value is activations[0]:
            ctx.mark_dirty(value)
        return value

    @staticmethod
    def backward(ctx: Any, probability: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        if ctx.total is None:
            return None, None, None, probability
        exact = torch.promote_types(probability.dtype, torch.float32)
        activations = [a.to(exact) for a in ctx.saved_tensors]
        excitation, gradients, *_ = torch.func.vjp(ctx.total, *activations)
        shares = torch.where(excitation > 0, probability.to(exact) / excitation, 0)
        given = gradients(shares)
        won = [a * g for a, g in zip(activations, given, strict=True)]
        return None, None, None, *won


class _ExcitationMode(TorchFunctionMode):
    """Replaces operations on what comes from the layer by those with a rule.

    Any other is left to PyTorch, whose record `_check_path` then refuses.
    """

    def __torch_function__(
        self,
        func: Any,  # noqa: ANN401
        types: Any,  # noqa: ANN401
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        kwargs = kwargs or {}
        if torch.is_grad_enabled():
            # Then a tensor needs a gradient if, and only if, it comes from the layer.
            args = tuple(map(_without_parameters, args))
            kwargs = {name: _without_parameters(arg) for name, arg in kwargs.items()}
        rule = _RULES.get(func)
        if rule is None or not any(map(_followed, (*args, *kwargs.values()))):
            return func(*args, **kwargs)
        return rule(func, *args, **kwargs)


def _without_parameters(argument: object) -> object:
    if isinstance(argument, nn.Parameter):
        return argument.detach()
    if type(argument) is list:
        return [_without_parameters(part) for part in argument]
    if type(argument) is tuple:
        return tuple(_without_parameters(part) for part in argument)
    return argument


def _followed(argument: object) -> bool:
    """Whether an argument comes from the layer."""
    return isinstance(argument, Tensor) and argument.requires_grad


# --- the rules: a function of PyTorch and its arguments -> what it would return ---


def _one_below_each(func: Any, input: Tensor, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
    return _Excite.apply(lambda a: func(a, *args, **kwargs), None, None, input)


def _pooled(func: Any, input: Tensor, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
    def pool(activations: Tensor) -> Tensor:
        pooled: Tensor = func(activations, *args, **kwargs)
        return pooled

    return _Excite.apply(pool, pool, None, input)


def _weighted(
    func: Any,  # noqa: ANN401
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *args: Any,  # noqa: ANN401
    **kwargs: Any,  # noqa: ANN401
) -> Any:  # noqa: ANN401
    if _followed(weight):
        return func(input, weight, bias, *args, **kwargs)

    def share(operation: Callable[[Tensor], Tensor], weight: Tensor) -> Tensor:
        def total(activations: Tensor, sign: int = 1) -> Tensor:
            weights = (sign * weight).clamp(min=0).to(activations.dtype)
            arrived: Tensor = func(activations, weights, None, *args, **kwargs)
            return arrived

        def folded(value: Tensor, scale: Tensor) -> Tensor:
            by_output = scale.view(-1, *[1] * (weight.dim() - 1))
            return share(lambda _: value, weight * by_output)

        dual_total = partial(total, sign=-1)
        excited: Any = _Excite.apply(operation, total, dual_total, input)
        excited.grad_fn.folded = folded
        return excited  # type: ignore[no-any-return]

    return share(lambda a: func(a, weight, bias, *args, **kwargs), weight)


def _batch_norm(
    func: Any,  # noqa: ANN401
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Any:  # noqa: ANN401
    def normalise(a: Tensor) -> Tensor:
        normal: Tensor = func(
            a, running_mean, running_var, weight, bias, training, momentum, eps
        )
        return normal

    if training or running_var is None:
        return normalise(input)
    scale = (running_var + eps).rsqrt() * (1 if weight is None else weight)
    folded = getattr(input.grad_fn, "folded", None)
    if folded:
        return folded(normalise(input.detach()), scale)
    positive = scale.clamp(min=0).view(-1, *[1] * (input.dim() - 2))
    return _Excite.apply(normalise, lambda a: a * positive.to(a.dtype), None, input)


def _sum(func: Any, input: Any, other: Any, *, alpha: float = 1) -> Any:  # noqa: ANN401
    tensors = isinstance(input, Tensor) and isinstance(other, Tensor)
    if tensors and alpha >= 0:
        add = partial(func, alpha=alpha)
        return _Excite.apply(add, partial(torch.add, alpha=alpha), None, input, other)
    if _followed(input) and not tensors:  # a number is a bias
        return _Excite.apply(partial(func, other=other, alpha=alpha), None, None, input)
    return func(input, other, alpha=alpha)


def _product(func: Any, input: Any, other: Any) -> Any:  # noqa: ANN401
    first, second = _followed(input), _followed(other)
    if first and second and input.numel() != other.numel():
        first = input.numel() > other.numel()
        second = not first
    if first == second or (second and func is Tensor.mul_):
        return func(input, other)
    activations, weight = (input, other) if first else (other, input)
    weight = torch.as_tensor(weight, device=activations.device).detach()
    positive = weight.clamp(min=0)
    return _Excite.apply(
        lambda a: func(a, weight), lambda a: a * positive.to(a.dtype), None, activations
    )


def _dropout(
    func: Any,  # noqa: ANN401
    input: Tensor,
    p: float = 0.5,
    training: bool = True,
    inplace: bool = False,
) -> Any:  # noqa: ANN401
    return func(input, p, training, inplace) if training else input


def _by_name(rule: Callable[..., Any], names: str) -> dict[Any, Callable[..., Any]]:
    """The rule under each function or method of PyTorch that has one of the names."""
    homes = (torch, F, Tensor)
    found = [getattr(home, name, None) for name in names.split() for home in homes]
    return {func: rule for func in found if func is not None}


_RULES: dict[Any, Callable[..., Any]] = {
    **_by_name(_weighted, "conv1d conv2d conv3d linear"),
    F.batch_norm: _batch_norm,
    **_by_name(_sum, "add add_"),
    **_by_name(_product, "mul mul_ multiply"),
    **_by_name(
        _pooled,
        "max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d mean sum "
        "adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d "
        "adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d interpolate",
    ),
    **_by_name(
        _one_below_each,
        "relu relu_ relu6 leaky_relu elu celu selu gelu silu mish softplus hardtanh "
        "hardswish sigmoid sigmoid_ hardsigmoid tanh tanh_ clamp clamp_",
    ),
    **_by_name(_dropout, "dropout dropout1d dropout2d dropout3d feature_alpha_dropout"),
}

# Operations of PyTorch that only move neurons: their gradient hands probability on.
_MOVES = {
    "AccumulateGrad", "Alias", "Cat", "Clone", "ConstantPadNd", "Expand", "Flip",
    "Permute", "PixelShuffle", "ReshapeAlias", "Roll", "Select", "Slice", "Split",
    "SplitWithSizes", "Squeeze", "Stack", "ToCopy", "Transpose", "Unbind",
    "UnsafeSplit", "UnsafeView", "Unsqueeze", "View", "T", "_Excite",
}  # fmt: skip


# --- the walk ---


def _check_path(outputs: Tensor, tap: Tensor) -> None:
    """Everything between layer and output has a rule, and there is something."""
    queue: list[Any] = [outputs.grad_fn] if outputs.requires_grad else []
    seen = set()
    while queue:
        node = queue.pop()
        if node in seen:
            continue
        seen.add(node)
        name = re.sub(r"^.*::|Backward\d*$", "", node.name())
        if name not in _MOVES:
            raise ValueError(
                "forward_func must go from layer to its output by operations that "
                f"have a rule, which ExcitationBackprop lists, got {name}"
            )
        queue += _below(node)
    if not any(getattr(node, "variable", None) is tap for node in seen):
        raise ValueError(
            "layer must lead to the output of forward_func by operations that need "
            "not be hidden from gradients, got an output that does not depend on it"
        )


def _below(node: Any) -> list[Any]:  # noqa: ANN401
    return [below for below, _ in node.next_functions if below is not None]


def _walk(chosen: Tensor, tap: Tensor) -> Tensor:
    (probabilities,) = torch.autograd.grad(chosen.sum(), tap, retain_graph=True)
    return probabilities


@contextmanager
def _dual(outputs: Tensor) -> Iterator[None]:
    """Negate the weights of the model's last layer, for a walk."""
    node: Any = outputs.grad_fn
    while getattr(node, "dual_total", None) is None:
        below = _below(node)
        if len(below) != 1:
            raise ValueError(
                "contrastive must be False unless everything from layer to the output "
                "goes through a last linear layer or convolution, got a model in which "
                f"{node.name()} comes first"
            )
        (node,) = below
    node.total, node.dual_total = node.dual_total, node.total
    try:
        yield
    finally:
        node.total, node.dual_total = node.dual_total, node.total
