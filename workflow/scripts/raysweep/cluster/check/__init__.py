"""This subpackage (room) implements `snakemake check_cluster`, which checks a new cluster before the first sweep, and says how to repair each problem.

run.py first checks the answers of Slurm's commands on the machine where Snakemake runs (slurm_checks.py). Then a job measures all nodes of the job (probe.py,
node_checks.py), and starts a Ray cluster in the same way as a sweep (ray_checks.py). The controller's Python runs all modules. The driver imports
task_report.py in the node environment.
"""
