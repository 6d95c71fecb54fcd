"""`attribute`, `optimize` and `evaluate`: what the attribution methods share.

A method lays masks on a site: with the model and the target it becomes a `Problem`,
from which to masks and scores the way is the same. `running` goes it, `on_model` leaves
the caller's model as found, `masks` is the base of all methods that look for masks,
`layer_masks` of those of a layer.
"""
