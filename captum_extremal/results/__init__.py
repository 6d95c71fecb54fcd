"""What a run found, as plain data that can be saved and loaded.

`extremal` holds masks over inputs and over the places of a layer, `channels` masks over
channels, `saliency` lays those on the activation, `stability` says how far runs agree.
"""
