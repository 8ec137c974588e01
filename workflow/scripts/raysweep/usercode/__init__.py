"""This subpackage (room) reads and imports the user's Python files.

The module `target` finds and reads the files and does not run the files. The module `freeze` imports the files with the content that the files had
when the run began. The module `working_dir` makes the working directories of the trials. Both the controller and the trials run this room, which
needs only the standard library. This room imports `common`, and every higher room may import this room.
"""
