"""This subpackage (room) contains all code about Slurm and about Snakemake. The code reads a job's allocation, submits jobs and explains why a job failed.

The controller's Python runs all modules. `python -I -S` also runs `programs.py` and all that it imports: `status.py`, `submission.py`,
`earlier_jobs.py`, `notes.py` and `queries.py`. The Python of the node environment also runs `allocation.py` and `commands.py`. The rule files and the
rooms above `slurm` may import this room. Only the rule files, `stages` and `executor.py` may import `snakemake_private.py`.
"""
