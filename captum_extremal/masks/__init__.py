"""Parameters -> masks: fields, the paper's maximum; edges and exact areas.

`fields` are cut to their area and given an edge in `edges`, `unions` makes their
regions unions of disks, `max_convolution` holds the paper's `MaskGenerator`, `area`
counts pixels and maps any mask to its exact area.
"""
