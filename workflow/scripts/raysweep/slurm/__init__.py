"""Everything that the workflow knows of Slurm and of Snakemake: what a job was given, what the Slurm plugin is told, and why a job failed.

It runs in the controller's interpreter, apart from `status.py`, which a bare `python -I -S` runs; `allocation.py` and `commands.py` also run in the
node environment. The rule files and the rooms above `slurm` may import it; only the rule files and `stages` may import `snakemake_private.py`.
"""
