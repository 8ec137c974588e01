"""This subpackage (room) checks the config once, when the workflow loads, and gives the config to all stages as frozen dataclasses.

Only the controller imports `load`. A trial imports only `model` and `space`, which need neither jsonschema nor the checks.
"""
