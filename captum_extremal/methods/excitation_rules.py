r"""An operation of PyTorch -> the same value, and a backward that shares probability.

With :math:`z_j = \sum_i a_i^+ w_{ij}^+` for the excitation of a neuron above,
:math:`P(i) = \sum_j a_i^+ w_{ij}^+ P(j) / z_j` is :math:`a_i^+` times the gradient of
:math:`z` given :math:`P / z` from above: `_Excite` does that for any :math:`z` that is
linear in the activations, or their maximum. A rule says which an operation has.

Functions are replaced, not modules, so that ``F.relu(x)`` and ``x + y`` are caught as
well. What has no rule runs as ever, and shows in autograd's record of the forward,
which `check_path` looks through before anything is walked.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

# Non-negative activations -> their excitation of the neurons above, z of the formula.
Total = Callable[..., Tensor]


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
        # Next to nothing counts as nothing: a quotient must not overflow.
        excited = excitation > torch.finfo(exact).tiny
        shares = torch.where(excited, probability.to(exact) / excitation, 0)
        given = gradients(shares)
        won = [a * g for a, g in zip(activations, given, strict=True)]
        return None, None, None, *won


class ExcitationMode(TorchFunctionMode):
    """Replaces operations on what comes from the layer by those with a rule.

    Any other is left to PyTorch, whose record `check_path` then refuses.
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
        # Before the layer nothing is recorded, so nothing is followed.
        rule = _RULES.get(func) if torch.is_grad_enabled() else None
        given = (*args, *kwargs.values())
        if rule is not None and any(map(_followed, given)):
            return rule(func, *args, **kwargs)
        value = func(*args, **kwargs)
        tensors = [argument for argument in given if isinstance(argument, Tensor)]
        if tensors and all(map(_learned, tensors)) and isinstance(value, Tensor):
            return _mark_learned(value)  # a view of a parameter, say
        return value


def _mark_learned(tensor: Tensor) -> Tensor:
    """Note that a tensor is made of parameters alone: it holds no neurons."""
    tensor.is_learned = True  # type: ignore[attr-defined]
    return tensor


def _learned(argument: object) -> bool:
    return hasattr(argument, "is_learned")


def _without_parameters(argument: object) -> object:
    if isinstance(argument, nn.Parameter):
        return _mark_learned(argument.detach())
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


def _interpolated(func: Any, input: Tensor, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
    if "bicubic" in (*args, *kwargs.values()):  # its weights are negative in part
        return func(input, *args, **kwargs)
    return _pooled(func, input, *args, **kwargs)


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

    def weigh(activations: Tensor, weight: Tensor) -> Tensor:
        arrived: Tensor = func(activations, weight, None, *args, **kwargs)
        return arrived

    return _by_weight(
        lambda a: func(a, weight, bias, *args, **kwargs), weigh, input, weight
    )


def _by_weight(
    operation: Callable[[Tensor], Tensor],
    weigh: Callable[[Tensor, Tensor], Tensor],
    activations: Tensor,
    weight: Tensor,
) -> Tensor:
    def total(activations: Tensor, sign: int = 1) -> Tensor:
        return weigh(activations, (sign * weight).clamp(min=0).to(activations.dtype))

    def folded(value: Tensor, scale: Tensor) -> Tensor:
        """The same with a scale for each output channel, and the value of that."""
        scaled = weight * scale.view(-1, *[1] * (weight.dim() - 1))
        return _by_weight(lambda _: value, weigh, activations, scaled)

    dual_total = partial(total, sign=-1)
    excited: Any = _Excite.apply(operation, total, dual_total, activations)
    excited.grad_fn.folded = folded
    return excited  # type: ignore[no-any-return]


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
    if _followed(input) and _is_bias(other, input):
        return _Excite.apply(partial(func, other=other, alpha=alpha), None, None, input)
    if alpha >= 0 and _is_bias(input, other) and func is not Tensor.add_:
        return _Excite.apply(partial(func, input, alpha=alpha), None, None, other)
    if alpha >= 0 and isinstance(input, Tensor) and isinstance(other, Tensor):
        add = partial(func, alpha=alpha)
        return _Excite.apply(add, partial(torch.add, alpha=alpha), None, input, other)
    return func(input, other, alpha=alpha)


def _is_bias(summand: object, activations: Tensor) -> bool:
    """Whether what is added is no neuron: a number, or learned."""
    if not isinstance(summand, Tensor):
        return True
    shape = torch.broadcast_shapes(summand.shape, activations.shape)
    return _learned(summand) and shape == activations.shape


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
        "adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d",
    ),
    F.interpolate: _interpolated,
    **_by_name(
        _one_below_each,
        "relu relu_ relu6 leaky_relu elu celu selu gelu silu mish softplus hardtanh "
        "hardswish sigmoid sigmoid_ hardsigmoid tanh tanh_ clamp clamp_",
    ),
    **_by_name(_dropout, "dropout dropout1d dropout2d dropout3d feature_alpha_dropout"),
}

# Operations of PyTorch that move or repeat neurons: their gradient hands on, and adds.
_MOVES = {
    "AccumulateGrad", "Alias", "Cat", "Clone", "ConstantPadNd", "Expand", "Flip",
    "Index", "IndexSelect", "Permute", "PixelShuffle", "ReflectionPad2D", "Repeat",
    "ReplicationPad2D", "ReshapeAlias", "Roll", "Select", "Slice", "Split",
    "SplitWithSizes", "Squeeze", "Stack", "T", "ToCopy", "Transpose", "Unbind",
    "UnsafeSplit", "UnsafeView", "Unsqueeze", "View", "_Excite",
}  # fmt: skip


# --- the walk ---


def check_path(outputs: Tensor, tap: Tensor) -> None:
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
        if hasattr(node, "folded"):
            del node.folded  # it holds activations, and is of no more use
    if not any(getattr(node, "variable", None) is tap for node in seen):
        raise ValueError(
            "layer must lead to the output of forward_func by operations that need "
            "not be hidden from gradients, got an output that does not depend on it"
        )


def _below(node: Any) -> list[Any]:  # noqa: ANN401
    return [below for below, _ in node.next_functions if below is not None]


def negate_last_weights(outputs: Tensor) -> None:
    """Let the walks to come start at the dual class: the last layer's weights negated.

    In the record of this forward alone; the model stays as it is.
    """
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
    node.total = node.dual_total
