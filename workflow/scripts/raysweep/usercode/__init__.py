"""The user's Python files: `target` finds and reads them without running them, and `freeze` imports them as they were when the run began.

Both the controller and the trials run this room, with nothing but the standard library; it imports `common`, and every higher room may
import it.
"""
