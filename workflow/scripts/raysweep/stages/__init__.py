"""The stages that do more than call one room: the sweep, its confirmation, its plan, and the view of a sweep that runs.

Only the entry points and the rule files import this room; it imports every room except report and models.
"""
