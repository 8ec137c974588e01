"""Hyper-parameter sweeps with Ray Tune that survive a cluster. Imports nothing of Snakemake, and torch and Ray only where they are needed."""

__version__ = "0.2.0"
