"""The config of the user: checked once, when the workflow loads, and read by all stages as frozen dataclasses.

Higher rooms import `load` in the controller alone; a trial imports only `model` and `space`, which need neither jsonschema nor the checks.
"""
