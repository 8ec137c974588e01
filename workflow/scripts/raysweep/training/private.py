"""Contains all private names and error messages of PyTorch that this package uses, because PyTorch may change them in any release.

All these names and messages exist in PyTorch 2.6.0, 2.13.0 and 2.15.0. tests/unit/training/test_private.py checks each name and message, and fails
when PyTorch changes one of them.
"""

from __future__ import annotations

import functools
import sys
from typing import Any

from torch.nn.modules.batchnorm import _BatchNorm

# The base class of all batch normalisation layers, including the layers of other libraries. PyTorch has no public class that is a base of all these layers.
BatchNormBase = _BatchNorm

# torch.compile is public and raises an error for an unknown option, but the names of the options belong to Inductor (torch/_inductor/config.py).
COMPILER_OPTIONS = {
    # Where this option is true, Inductor uses the memory format "channels last", in which a stack's pooling and the operations around the pooling are not
    # vectorised. Setting the option to False reduced the time for an image of the reference job from 113 to 94 µs.
    "layout_optimization": False,
    # Where this option is not set, Inductor tests the compiler on each instruction set of the CPU, which takes 4 s of the 20 s for compiling a step.
    "cpp.vec_isa_ok": True,
}
THREADS_OPTION = "compile_threads"
# If this option is true, each process on a node without PyTorch's compiled headers compiles these headers first, even if the step is compiled already (8 of the
# 20 s for loading a compiled step of LeNet, and 155 MB, on 2 cores on 2026-11-30), and needs the program `openssl`. If this option is False, compiling a new
# step takes 51 s instead of 40 s.
HEADERS_OPTION = "cpp_cache_precompile_headers"
# This variable is public: https://docs.pytorch.org/tutorials/recipes/torch_compile_caching_configuration_tutorial.html
COMPILER_DIR_ENV = "TORCHINDUCTOR_CACHE_DIR"

# vmap raises a plain RuntimeError with these words where Python code reads a tensor's value.
DATA_DEPENDENT = "data-dependent control flow"
# batch_norm raises a plain ValueError with these words where a channel has only one value.
ONE_VALUE = "Expected more than 1 value per channel when training"
BACKEND_PREFIX_ENDING = " raised:"  # torch.compile puts the line "backend='inductor' raised:" before the compiler's error.


def compiler_options(threads: int) -> dict[str, str | int | bool]:
    """Return the options of torch.compile for the steps of a stack. The compiler uses at most `threads` threads."""
    from torch._inductor import config  # inside the function for the reason in `cpp_compiler`

    options: dict[str, str | int | bool] = {**COMPILER_OPTIONS, THREADS_OPTION: threads}
    if hasattr(config, HEADERS_OPTION):  # PyTorch 2.6 has no such option, and compiles no headers in advance
        options[HEADERS_OPTION] = False
    return options


def cpp_compiler() -> str | None:
    """Return the C++ compiler that torch.compile uses, or None. PyTorch has no public function that finds the compiler without compiling code."""
    # These imports are inside the function, because all trials import this module, and the import of Inductor takes more than one second.
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        return str(get_cpp_compiler())
    except InvalidCxxCompiler:
        return None


@functools.cache
def ignore_path_of_environment() -> None:
    """Let Inductor find compiled code again after the environment was unpacked in another folder.

    Inductor names a compiled file by a hash of its source and of the compiler's command. The command contains the paths of PyTorch's headers, which lie in the
    environment. Without `env.cache_dir`, each job unpacks the environment to a new folder. PyTorch's version belongs to the key of the findings (findings.py).
    """
    from torch._inductor import codecache

    write = codecache.write

    @functools.wraps(write)
    def write_without_path(content: str | bytes, extension: str, extra: str = "", *args: Any, **options: Any) -> tuple[str, str]:
        written: tuple[str, str] = write(content, extension, extra.replace(sys.prefix, ""), *args, **options)
        return written

    codecache.write = write_without_path


def is_data_dependent(error: Exception) -> bool:
    """Return whether vmap failed because the Python code of the model makes a decision with the value of a tensor."""
    return DATA_DEPENDENT in str(error)


def is_refused_by_batch_norm(error: Exception) -> bool:
    """Return whether batch normalisation failed because a channel has only one value in the batch."""
    return ONE_VALUE in str(error)


def compiler_error(error: Exception) -> str:
    """Return the first line that names the cause in an error of torch.compile."""
    lines = [line for line in str(error).splitlines() if line.strip() and not line.endswith(BACKEND_PREFIX_ENDING)]
    return lines[0] if lines else type(error).__name__
