"""An overwritten layer -> the modules whose work goes nowhere, to be passed over.

A child of an `nn.Sequential` hands its output to the next child and to nobody else. So
the children before the layer, and before each `nn.Sequential` that holds it, compute
nothing that outlives the overwriting, provided that these containers run as they are
written, that each module is called once and that none of them has hooks. What cannot be
seen from there, such as a module that keeps something for a later one, a comparison
finds: the outputs with and without passing over must agree. If anything is otherwise,
everything runs as usual.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
)


def skippable(
    model: Callable[..., Any],
    layer: nn.Module,
    at_input: bool,
    outputs: Callable[[], Sequence[object]],
) -> list[nn.Module]:
    """The modules that may be passed over while a layer is overwritten.

    Args:
        model: What is run; of a function nothing is known.
        layer: What is overwritten.
        at_input: Whether its input is, so that the layer itself is still needed.
        outputs: Runs the model, overwritten, on rows that it did not see last, so that
            nothing which a module kept can fit; the tensors and numbers that it gives.

    Returns:
        The modules, for `passed_over`; none where the outputs differ without them.
    """
    modules, containers = _before(model, layer, at_input)
    if not modules:
        return []
    called: list[nn.Module] = []
    try:
        with passed_over(modules):
            short = outputs()
        with ExitStack() as stack:
            for module in [*modules, *containers]:
                count = module.register_forward_pre_hook(lambda m, _: called.append(m))
                stack.callback(count.remove)
            whole = outputs()
        if _texts(short) != _texts(whole):
            return []
        short, whole = (
            [x for x in each if not isinstance(x, str)] for each in (short, whole)
        )
        # But for what a device may round.
        torch.testing.assert_close(short, whole, rtol=1e-4, atol=1e-6, equal_nan=True)
    except Exception:  # the model's own, of any kind
        return []
    once = sorted(map(id, called)) == sorted(map(id, [*modules, *containers]))
    return modules if once else []


def _texts(outputs: Sequence[object]) -> list[object]:
    return [x for x in outputs if isinstance(x, str)]


@contextmanager
def passed_over(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Let these modules hand on their input."""
    try:
        for module in modules:
            module.forward = _hand_on
        yield
    finally:
        for module in modules:
            vars(module).pop("forward", None)


def _hand_on(*args: Any, **_: Any) -> Any:  # noqa: ANN401
    return args[0]


def _before(
    model: Callable[..., Any], layer: nn.Module, at_input: bool
) -> tuple[list[nn.Module], list[nn.Module]]:
    """What runs before the layer and for it alone, and the containers of that."""
    parents: dict[nn.Module, list[nn.Module]] = defaultdict(list)
    for parent in model.modules() if isinstance(model, nn.Module) else ():
        for child in parent.children():
            parents[child].append(parent)
    modules = [] if at_input else [layer]
    containers = [layer]
    while [_is_plain(parent) for parent in parents[containers[-1]]] == [True]:
        (parent,) = parents[containers[-1]]
        siblings = list(parent.children())
        modules += siblings[: siblings.index(containers[-1])]
        containers.append(parent)
    del containers[0]
    inside = [part for module in modules for part in module.modules()]
    hooked = at_input and bool(layer._forward_pre_hooks)  # noqa: SLF001
    hooked |= any(getattr(nn.modules.module, f"_global{name}", ()) for name in _HOOKS)
    if not containers or hooked or not all(map(_is_bare, inside + containers)):
        return [], []
    return modules, containers


def _is_plain(module: nn.Module) -> bool:
    """Whether it hands each child's output to the next child alone."""
    kind = type(module)
    return (
        not isinstance(module, torch.jit.ScriptModule)
        and getattr(kind, "forward", None) is nn.Sequential.forward
        and getattr(kind, "__iter__", None) is nn.Sequential.__iter__
        and kind.__call__ is nn.Module.__call__
    )


def _is_bare(module: nn.Module) -> bool:
    """Without hooks or a forward of its own, and no scripted one."""
    hooked = any(getattr(module, hooks, None) for hooks in _HOOKS)
    return not (
        hooked
        or "forward" in vars(module)
        or isinstance(module, torch.jit.ScriptModule)
    )
