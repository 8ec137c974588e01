"""This room turns an allocation into a Ray cluster (launcher, agents), keeps a second run away from a sweep (lock), and checks a new cluster (check).

The controller's Python runs all modules; the node environment runs `job`, `lock` and check/task_report.py as well, for the driver and the trials. The rooms
`training`, `tune` and `stages`, the entry points and the Snakefile may import this room.
"""
