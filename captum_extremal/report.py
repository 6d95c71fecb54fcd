"""The page of a result under its first name; it lives in `captum_extremal.page`."""

from __future__ import annotations

from captum_extremal.page import Result, notebook_html, to_html

__all__ = ["Result", "notebook_html", "to_html"]
