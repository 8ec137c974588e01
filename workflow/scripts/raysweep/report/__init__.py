"""The report of a sweep and the page that compares sweeps: what is read, what is found in it, figures, text, and the files that hold them.

The room runs in the controller's interpreter (`.venv`). It imports record, config, data, usercode and common; only the entry points
`report.py` and `compare.py` import it.
"""
