"""What every room needs: errors, files that are complete, processes, seeds, bounds of metrics, durations, numbers as text, GPUs and CPUs.

Every interpreter of the project runs this room, with numpy and PyYAML where a module needs them; it imports nothing of raysweep, and every
room may import it.
"""
