"""The record of a sweep: the file of events, the trials that follow from the events, the identity of the sweep, and the outputs that are rendered.

cluster, tune, report and stages import this room; it imports config and common.
"""
