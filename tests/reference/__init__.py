"""Slow, literal versions of the formulas in NumPy float64, to compare the package with.

One loop for each sum of the formula, nothing shared with the package.
"""
