"""This module finds out whether C++ code that extends this Python can be compiled. torch.compile makes such code for a CPU."""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig

NO_COMPILER = "there is no C++ compiler"
COMPILER_DEADLINE_S = 60  # time in seconds after which a compiler that does not answer is not waited for


def default_compiler() -> str | None:
    """Return the C++ compiler that torch.compile uses by default on Linux, or None where this machine has no such compiler."""
    return shutil.which(os.environ.get("CXX") or "g++")


def reason_not_to_compile(compiler: str | None) -> str | None:
    """Return why `compiler` cannot compile an extension of this Python, or None where the compiler can. The compiler looks for the header Python.h.

    Many distributions have this header in a package of its own, and the compiler also searches the folders of the variable CPATH.
    """
    include = sysconfig.get_path("include")
    try:
        run = subprocess.run(
            [compiler or "", "-E", "-x", "c++", "-I", include, "-"],
            input="#include <Python.h>\n",
            capture_output=True,
            text=True,
            check=False,
            timeout=COMPILER_DEADLINE_S,
        )
    except OSError:
        return NO_COMPILER
    except subprocess.TimeoutExpired:
        return f"the C++ compiler did not answer within {COMPILER_DEADLINE_S} s"
    return None if run.returncode == 0 else f"the C++ compiler does not find Python's headers (Python.h), which belong into {include}"
