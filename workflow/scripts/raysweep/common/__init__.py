"""This subpackage (room) has the helpers that every room needs.

The helpers are for errors, complete files, processes, seeds, bounds of metrics, durations, numbers as text, GPUs and CPUs.
Every interpreter of the project runs this room. Some modules of this room need numpy or PyYAML. This room imports no other room of raysweep, and
every room may import this room.
"""
