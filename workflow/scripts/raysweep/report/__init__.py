"""Builds the report of one sweep and the page that compares several sweeps.

This subpackage (room) reads the record and the files beside the record, analyses the sweep, and writes figures and text to files.
The room runs in the controller's interpreter (`.venv`). The room imports record, config, data, usercode and common. Only the entry points
`report.py` and `compare.py` import the room.
"""
