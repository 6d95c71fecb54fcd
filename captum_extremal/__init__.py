"""Extremal perturbations for Captum: the part of an input that a network needs.

Public names only; each module says what it turns into what.
"""

from __future__ import annotations

from importlib.metadata import version

__all__: list[str] = []

__version__ = version("captum_extremal")
