"""The subpackage (room) `tune` searches, schedules, runs, records and retries the trials of a sweep with Ray Tune.

These modules run in the node environment, which has Ray. Only the entry points drive.py and measure_steps.py and the room `stages` may import these modules.
"""
