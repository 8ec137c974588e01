"""This room checks the config of the user once, when the workflow loads, and gives the config to all stages as frozen dataclasses.

Only the controller imports `load`; a trial imports `model` and `space`, which need neither jsonschema nor the checks.
"""
