"""A result and its pictures -> one HTML page that needs nothing but a browser.

`to_html` shows one image of an `ExtremalResult`: a slider over the areas, what each
mask keeps and removes, the scores over the area with a cursor, the maps of other
methods and the settings. Everything is inside the file; a content security policy
forbids the page to fetch anything. Without JavaScript all areas still stand below each
other.
"""

from __future__ import annotations

from captum_extremal.page.page import notebook_html, to_html
from captum_extremal.results.extremal import ExtremalResult as Result

__all__ = ["Result", "notebook_html", "to_html"]
