"""Tune: how the trials of a sweep are searched, scheduled, run, recorded and tried again, with Ray Tune.

The modules run in the node environment, which has Ray; only the entry points drive.py and measure_steps.py and the room `stages` may import them.
"""
