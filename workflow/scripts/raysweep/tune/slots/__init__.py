"""The subpackage (room) `slots` runs several trials in one process. Such a process is an engine, and a slot is a place for one trial in an engine (`fuse`).

These modules run in the node environment. The driver, the engines and the measurement of `snakemake plan` import these modules. The module messages.py needs
neither Ray nor PyTorch, so `raysweep.stages` may import messages.py.
"""
