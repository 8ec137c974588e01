"""Slots: the places in which trials sit. Today a slot is a place in an engine, a process that trains several trials together (`fuse`).

The modules run in the node environment, where the driver, the engines and the measurement of `snakemake plan` import them. messages.py needs neither Ray nor
PyTorch, so `raysweep.stages` may import it.
"""
