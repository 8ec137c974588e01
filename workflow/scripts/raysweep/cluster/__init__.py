"""This subpackage (room) turns an allocation into a Ray cluster, prevents two runs of one sweep at the same time, and checks a new cluster.

launcher.py and agent.py start the Ray cluster, lock.py prevents the second run, and check/ checks the cluster. The controller's Python runs all modules.
The driver and the trials also import `job`, `lock` and check/task_report.py, in the node environment. The rooms `training`, `tune` and `stages`, the entry
points and the Snakefile may import this room.
"""
