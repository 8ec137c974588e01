"""This subpackage (room) reads and writes the record of a sweep, computes the trials and the identity of the sweep, and writes the sweep's outputs.

The rooms cluster, tune, report and stages import this room. This room imports the rooms config and common.
"""
