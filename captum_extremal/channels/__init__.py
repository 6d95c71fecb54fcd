"""What channels stand for: images made for them, and channels over a data set.

`inversion` makes images that excite a layer or a channel, kept natural by
`image_priors`; `class_channels` gathers the channels that a class needs and
`exciting_images` the images that excite each of them most.
"""
