"""This subpackage (room) reads and imports the user's Python files.

The module `target` finds and reads the files and does not run the files. The module `freeze` imports the files with the content that the files had
when the run began. Both the controller and the trials run this room, which needs only the standard library. This room imports `common`, and every
higher room may import this room.
"""
