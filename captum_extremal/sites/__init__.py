"""What a mask is laid on: the input, groups of its features, a layer."""
