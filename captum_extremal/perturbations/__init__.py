"""An input -> what it is when perturbed, by degrees, under a mask.

`levels` are the perturbations, `apply` chooses among their levels by a mask, `blur` is
the Gaussian blur beneath.
"""
