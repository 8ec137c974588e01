"""Slots: the places in which trials sit. Today a slot is a place in an engine, a process that trains several trials together (`fuse`).

The modules run in the node environment. The driver and the measurement of `snakemake plan` import them; engine.py needs PyTorch, and only engines import it.
"""
