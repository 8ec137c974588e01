"""Trains the models of a sweep on the staged arrays, either one model alone, or many models as one stacked computation.

The modules of this subpackage (room) run in the node environment, which contains PyTorch. Only `raysweep.tune` and `raysweep.stages` may import
these modules.
"""
