"""Argument checks: each error names the argument, what is legal and what came.

They look at types, shapes and Python numbers. None of them reads values from a device,
so a check never waits for one; the exception is `check_areas`, which takes numbers.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from numbers import Integral, Real

from torch import Tensor


def check_areas(areas: float | Iterable[float] | Tensor) -> tuple[float, ...]:
    """One area or several, each a fraction in (0, 1].

    Args:
        areas: A number, a sequence of numbers or a tensor of any shape, whose values
            are copied to the CPU.

    Returns:
        The areas as plain floats, in their order.

    Raises:
        TypeError: If an area is not a number.
        ValueError: If an area lies outside (0, 1] or there is none.

    Example:
        >>> check_areas([0.05, 0.1])
        (0.05, 0.1)
        >>> check_areas(1.5)
        Traceback (most recent call last):
        ...
        ValueError: area must lie in (0, 1], got 1.5
    """
    return tuple(_area(area) for area in _several("areas", areas))


def _several(name: str, values: object) -> list[object]:
    """One value or an iterable or tensor of them, numbers as Python's own."""
    if isinstance(values, Tensor):
        values = values.flatten().tolist()
    is_scalar = isinstance(values, str) or getattr(values, "ndim", None) == 0
    several = list(values) if isinstance(values, Iterable) and not is_scalar else None
    found = [values] if several is None else several
    if not found:
        raise ValueError(f"{name} must hold at least one area, got none")
    return [_as_python(value) for value in found]


def _as_python(value: object) -> object:
    """A number of NumPy or PyTorch as one of Python's."""
    is_zero_dimensional = getattr(value, "ndim", None) == 0
    return value.item() if is_zero_dimensional and hasattr(value, "item") else value


def _area(area: object) -> float:
    value = _number("area", area)
    if not 0 < value <= 1:
        raise ValueError(f"area must lie in (0, 1], got {area}")
    return value


def check_channel_areas(
    areas: float | Iterable[float] | Tensor, position: str = "channel"
) -> tuple[int | float, ...]:
    """One area or several: an int counts channels, a float is a fraction in (0, 1].

    Args:
        areas: A number, a sequence of numbers or a tensor of any shape, whose values
            are copied to the CPU.
        position: What is counted, for messages.

    Returns:
        The areas as plain ints and floats, in their order.

    Raises:
        TypeError: If an area is not a number.
        ValueError: If a fraction lies outside (0, 1], a number is below 1, or there is
            none.

    Example:
        >>> check_channel_areas([1, 5, 0.5, 1.0])
        (1, 5, 0.5, 1.0)
        >>> check_channel_areas(0)
        Traceback (most recent call last):
        ...
        ValueError: area must be at least 1 channel, got 0
    """
    checked: list[int | float] = []
    for area in _several("areas", areas):
        if isinstance(area, Integral) and not isinstance(area, bool):
            if area < 1:
                raise ValueError(f"area must be at least 1 {position}, got {area}")
            checked.append(int(area))
        else:
            checked.append(_area(area))
    return tuple(checked)


def read_areas(text: str, *, channels: bool = False) -> tuple[int | float, ...]:
    """The areas that a text names, with commas between.

    Args:
        text: Such as ``"0.05, 0.1"``.
        channels: Whether a number without a point counts channels.

    Example:
        >>> read_areas("0.05, 0.1"), read_areas("1,5,0.1", channels=True)
        ((0.05, 0.1), (1, 5, 0.1))
        >>> read_areas("5")
        Traceback (most recent call last):
        ...
        ValueError: areas must be numbers in (0, 1], separated by commas, such as '0.05, 0.1, 0.2', got '5'
    """  # noqa: E501
    parts = text.replace(",", " ").split()
    legal, example = "numbers in (0, 1]", "0.05, 0.1, 0.2"
    if channels:
        legal, example = f"numbers of channels or, with a point, {legal}", "1, 5, 0.1"
    try:
        if not channels:
            return check_areas(map(float, parts))
        return check_channel_areas(
            [float(part) if set(part) & set(".eEnN") else int(part) for part in parts]
        )
    except ValueError:
        raise ValueError(
            f"areas must be {legal}, separated by commas, such as {example!r}, got "
            f"{text!r}"
        ) from None


def check_positive(name: str, value: float) -> float:
    """A finite number above zero, returned as a float.

    Example:
        >>> check_positive("sigma_max", 0)
        Traceback (most recent call last):
        ...
        ValueError: sigma_max must be positive and finite, got 0
    """
    number = _number(name, value)
    if not (number > 0 and math.isfinite(number)):
        raise ValueError(f"{name} must be positive and finite, got {value}")
    return number


def check_finite(name: str, value: float) -> float:
    """A finite number, returned as a float.

    Example:
        >>> check_finite("mean", float("nan"))
        Traceback (most recent call last):
        ...
        ValueError: mean must be finite, got nan
    """
    number = _number(name, value)
    if not math.isfinite(number):
        raise ValueError(f"{name} must be finite, got {value}")
    return number


def check_non_negative(name: str, value: float) -> float:
    """A finite number that is zero or more, returned as a float.

    Example:
        >>> check_non_negative("sigma", -2.0)
        Traceback (most recent call last):
        ...
        ValueError: sigma must be finite and at least 0, got -2.0
    """
    number = _number(name, value)
    if not (number >= 0 and math.isfinite(number)):
        raise ValueError(f"{name} must be finite and at least 0, got {value}")
    return number


def check_fraction(name: str, value: float) -> float:
    """A number strictly between 0 and 1, returned as a float.

    Example:
        >>> check_fraction("probability", 1)
        Traceback (most recent call last):
        ...
        ValueError: probability must lie in (0, 1), got 1
    """
    number = _number(name, value)
    if not 0 < number < 1:
        raise ValueError(f"{name} must lie in (0, 1), got {value}")
    return number


def _number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, got {_described(value)}")
    return float(value)


def check_count(name: str, value: int, minimum: int = 1) -> int:
    """A whole number that is at least ``minimum``, returned as an int.

    Example:
        >>> check_count("num_levels", 1, minimum=2)
        Traceback (most recent call last):
        ...
        ValueError: num_levels must be at least 2, got 1
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be an int, got {_described(value)}")
    if value < minimum:
        raise ValueError(f"{name} must be at least {minimum}, got {value}")
    return int(value)


def check_bool(name: str, value: object) -> None:
    """True or False, nothing that stands for it.

    Example:
        >>> check_bool("mirror", 1)
        Traceback (most recent call last):
        ...
        TypeError: mirror must be True or False, got 1
    """
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}")


def check_channel_dim(shape: Sequence[int], channel_dim: int) -> int:
    """The dimension of the channels of an activation, counted from the front.

    Example:
        >>> check_channel_dim((2, 8, 7, 7), -3)
        1
        >>> check_channel_dim((2, 8, 7, 7), 4)
        Traceback (most recent call last):
        ...
        ValueError: channel_dim must lie in [1, 3] or [-3, -1] for an activation of shape (2, 8, 7, 7), got 4
    """  # noqa: E501
    dim = check_count("channel_dim", channel_dim, minimum=-(10**6))
    last = len(shape) - 1
    if last < 1:
        raise ValueError(
            f"activations must have channels besides their examples, got {tuple(shape)}"
        )
    if not (1 <= dim <= last or -last <= dim <= -1):
        raise ValueError(
            f"channel_dim must lie in [1, {last}] or [-{last}, -1] for an activation "
            f"of shape {tuple(shape)}, got {channel_dim}"
        )
    return dim % len(shape)


def check_choice(name: str, value: str, choices: Collection[str]) -> None:
    """One of a closed set of names.

    Example:
        >>> check_choice("game", "chess", ("preservation", "deletion"))
        Traceback (most recent call last):
        ...
        ValueError: game must be 'preservation' or 'deletion', got 'chess'
    """
    # Some callers pass whatever came, a list for example, which no set can look up.
    if not isinstance(value, str) or value not in choices:
        legal = " or ".join(map(repr, choices))
        raise ValueError(f"{name} must be {legal}, got {value!r}")


def check_callable(name: str, value: object) -> None:
    """Something that can be called.

    Example:
        >>> check_callable("reward", 3)
        Traceback (most recent call last):
        ...
        TypeError: reward must be callable, got 3 (int)
    """
    if not callable(value):
        raise TypeError(f"{name} must be callable, got {_described(value)}")


def check_method(name: str, value: object, method: str) -> None:
    """An object (not its class) with a certain method.

    Example:
        >>> check_method("solver", [], "solve")
        Traceback (most recent call last):
        ...
        TypeError: solver must be an object with a solve method, got [] (list)
    """
    if isinstance(value, type) or not callable(getattr(value, method, None)):
        raise TypeError(
            f"{name} must be an object with a {method} method, got {_described(value)}"
        )


def check_floating(name: str, value: Tensor) -> None:
    """A tensor of a floating type.

    Example:
        >>> import torch
        >>> check_floating("mask", torch.tensor([1, 0]))
        Traceback (most recent call last):
        ...
        TypeError: mask must be a floating point tensor, got torch.int64
    """
    if not isinstance(value, Tensor):
        raise TypeError(
            f"{name} must be a floating point tensor, got {_described(value)}"
        )
    if not value.is_floating_point():
        raise TypeError(f"{name} must be a floating point tensor, got {value.dtype}")


def check_shape(
    name: str,
    value: Tensor,
    shape: str,
    note: str = "",
    *,
    filled: bool = False,
    **sizes: int | Sequence[int],
) -> None:
    """A tensor of a shape.

    Args:
        name: Of the argument.
        value: The tensor.
        shape: A word for each dimension: a number; several, as in ``1|3``; or a letter,
            for one size wherever it stands. A last ``*S`` is 1 to 3 spatial sizes. Only
            the first letter's size may be 0.
        note: Added to what is legal.
        filled: Not even that may be 0.
        **sizes: What letters stand for, a whole shape for ``S``.

    Example:
        >>> import torch
        >>> check_shape("images", torch.zeros(2, 3, 8, 8), "N 1|3 H W", N=2)
        >>> check_shape("mask", torch.zeros(2, 8), "K 1 *S", ", as it is", S=(8, 4))
        Traceback (most recent call last):
        ...
        ValueError: mask must be of shape (K, 1, 8, 4), as it is, got (2, 8)
    """
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor, got {_described(value)}")
    words: list[str] = []
    for word in shape.split():
        given = sizes.get(word.removeprefix("*"), word)
        words += map(str, [given] if isinstance(given, int | str) else given)
    if not _fits(tuple(value.shape), words, filled):
        comma = "," if len(words) == 1 else ""
        legal = f"({', '.join(words)}{comma})".replace("|", " or ")
        if "*S" in words:
            legal += " with 1, 2 or 3 spatial sizes"
        if "*S" in words or filled:
            legal += ", none of them 0"
        came = tuple(value.shape)
        raise ValueError(f"{name} must be of shape {legal}{note}, got {came}")


def _fits(found: tuple[int, ...], words: list[str], filled: bool) -> bool:
    if words[-1] == "*S":
        words = words + ["S2", "S3"][: max(0, len(found) - len(words))]
    bound: dict[str, int] = {}
    return len(found) == len(words) and all(
        size in map(int, word.split("|"))
        if word[0].isdigit()
        else size >= int(place > 0 or filled) and bound.setdefault(word, size) == size
        for place, (word, size) in enumerate(zip(words, found, strict=True))
    )


def check_spatial(name: str, value: Tensor, tables: bool = False) -> None:
    """A floating point tensor (N, C, *S) with 1, 2 or 3 spatial sizes, none of them 0.

    With ``tables`` (N, F) will do as well.

    Example:
        >>> import torch
        >>> check_spatial("inputs", torch.zeros(2, 5))
        Traceback (most recent call last):
        ...
        ValueError: inputs must be of shape (N, C, *S) with 1, 2 or 3 spatial sizes, none of them 0, got (2, 5)
    """  # noqa: E501
    check_floating(name, value)
    is_table = tables and value.dim() == 2
    check_shape(name, value, "N F" if is_table else "N C *S")


def check_inputs(tensors: Sequence[Tensor], tables: bool = False) -> None:
    """The tensors of one input: each (N, C, *S), of one N and on one device.

    Args:
        tensors: The tensors.
        tables: Whether (N, F) will do as well.

    Example:
        >>> import torch
        >>> check_inputs((torch.zeros(2, 3, 8, 8), torch.zeros(1, 1, 8)))
        Traceback (most recent call last):
        ...
        ValueError: inputs must agree in their first dimension N, got 2 and 1
    """
    if not tensors:
        raise ValueError("inputs must hold at least one tensor, got none")
    for tensor in tensors:
        check_spatial("inputs", tensor, tables)
        if len(tensor) == 0:
            raise ValueError("inputs must hold at least one example, got none")
    _agree("in their first dimension N", [len(tensor) for tensor in tensors])
    _agree("in their device", [tensor.device for tensor in tensors])


def _agree(what: str, found: Sequence[object]) -> None:
    if any(item != found[0] for item in found):
        raise ValueError(
            f"inputs must agree {what}, got {' and '.join(map(str, found))}"
        )


def _described(value: object) -> str:
    """What came, short enough for one line."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    text = repr(value)
    return f"{text if len(text) <= 40 else text[:37] + '...'} ({type(value).__name__})"
