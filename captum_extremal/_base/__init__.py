"""What everything stands on: checks, Captum's door, the caller's model and layers.

`checks` refuses bad arguments, `captum_door` is the only door to Captum's underscored
names, `model` and `layer` use the caller's network and leave it as found, `causes` and
`features` say what may be wrong with it, `axes` which axes of an input are alike, and
`files` writes what is kept.
"""
