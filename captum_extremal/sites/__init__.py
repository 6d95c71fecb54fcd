"""What a mask is laid on: the input, groups of its features, channels or places.

`site` says what a kind of site must answer; `input` and `layer` do, `groups` lets one
value of a mask stand for a group of input features. How a mask lives there, smooth or
free, is the solvers' business.
"""
