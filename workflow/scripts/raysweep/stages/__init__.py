"""This subpackage (room) contains the stages that use several rooms: the sweep, the confirmation, the plan, and the view of a sweep in the terminal.

Only the entry points and the rule files import this room. This room imports every room except report and models.
"""
