"""What `snakemake check_cluster` does: it checks a new cluster before a sweep meets the cluster's faults, and each check says what to do.

run.py begins with what Slurm says where Snakemake runs (slurm_checks.py). Then each node of a job measures itself (probe.py, node_checks.py), and a Ray
cluster comes up as for a sweep (ray_checks.py). The controller's Python runs all modules. The driver imports task_report.py in the node environment.
"""
