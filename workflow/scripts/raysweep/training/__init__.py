"""Training of a sweep's model on the staged arrays: one model alone, or many as one stacked computation.

The modules run in the node environment, which has PyTorch; only `raysweep.tune` and `raysweep.stages` may import them.
"""
