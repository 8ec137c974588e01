"""Everything that this package takes from PyTorch without a promise of PyTorch to keep it: private names, and texts of error messages.

Each was seen in PyTorch 2.13.0. tests/unit/training/test_private.py names each, and fails when it is gone.
"""

from __future__ import annotations

from torch.nn.modules.batchnorm import _BatchNorm

BatchNormBase = (
    _BatchNorm  # the base of all layers of batch normalisation, those of other libraries included; each public class is one of its kinds
)

# torch.compile is public and refuses an unknown option, but the names of the options are Inductor's (torch/_inductor/config.py).
COMPILER_OPTIONS = {
    # With channels last, a stack's pooling and the operations around it are not vectorised: 113 to 94 µs for an image of the reference job.
    "layout_optimization": False,
    # Otherwise Inductor tries the compiler on each instruction set that the CPU has, which takes 4 s of 20.
    "cpp.vec_isa_ok": True,
}
THREADS_OPTION = "compile_threads"

DATA_DEPENDENT = "data-dependent control flow"  # vmap raises a plain RuntimeError with these words where Python code reads a tensor's value
# batch_norm raises a plain ValueError with these words where a channel has one value only.
ONE_VALUE = "Expected more than 1 value per channel when training"
BACKEND_PREFIX_ENDING = " raised:"  # torch.compile puts the line "backend='inductor' raised:" before the compiler's own error


def compiler_options(threads: int) -> dict[str, str | int | bool]:
    """Return the options of torch.compile with which a step is compiled by at most `threads` threads."""
    return {**COMPILER_OPTIONS, THREADS_OPTION: threads}


def has_cpp_compiler() -> bool:
    """Return whether torch.compile finds a C++ compiler. No public function says so without compiling something."""
    # All trials import this module, and the import of Inductor takes more than a second.
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        return False
    return True


def is_data_dependent(error: Exception) -> bool:
    """Return whether vmap failed because the model decides by the values of tensors."""
    return DATA_DEPENDENT in str(error)


def is_refused_by_batch_norm(error: Exception) -> bool:
    """Return whether batch normalisation failed because a channel has one value only in the batch."""
    return ONE_VALUE in str(error)


def compiler_error(error: Exception) -> str:
    """Return the first line of an error of torch.compile that names the cause."""
    lines = [line for line in str(error).splitlines() if line.strip() and not line.endswith(BACKEND_PREFIX_ENDING)]
    return lines[0] if lines else type(error).__name__
