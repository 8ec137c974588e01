"""Builds the program that the page shows. The program loads the best model and applies the model to a few rows of the data."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from pprint import PrettyPrinter
from typing import Any

from raysweep.report.inputs import Inputs


def snippet(inputs: Inputs, root: Path) -> str:
    """Return the program that the page shows. The user runs the program in `root`, the folder in which the workflow runs."""
    if inputs.header.model and inputs.best.model_epoch is not None:
        return _model_snippet(inputs, root)
    return "\n".join(
        [
            "from pathlib import Path",
            "",
            f"config = {_source(inputs.winner.config)}",
            f"checkpoint = Path({_quoted(path_from(root, inputs.model_dir))})",
            "",
            "print(config)",
            'print(*sorted(checkpoint.rglob("*")), sep="\\n")',
        ]
    )


def _model_snippet(inputs: Inputs, root: Path) -> str:
    """Return the program for a sweep in which the workflow itself trains the model. The program predicts the first rows of the validation split."""
    lines = [
        "import runpy",
        "",
        "import numpy as np",
        "",
        f"loaded = runpy.run_path({_quoted(path_from(root, inputs.model_dir / 'load.py'))})",
        'model = loaded["model"]',
    ]
    if inputs.data is not None and inputs.data_dir is not None:
        rows = _quoted(path_from(root, inputs.data_dir / "validation" / "images.npy"))
        shape, values = ", ".join(map(str, inputs.data.image_shape)), "uint8" if inputs.data.inputs is None else "floats"
        lines += [
            "",
            f'rows = np.load({rows}, mmap_mode="r")[:8]  # {values}, shape (n, {shape})',
            'print(*loaded["predict"](rows), sep="\\n")' + ("" if inputs.data.classes else "  # in the unit of the target"),
        ]
    return "\n".join(lines)


class _SourcePrinter(PrettyPrinter):
    """Prints values as Python source. Infinity and NaN become calls of `float`, because Python has no literals for them."""

    def format(self, object: Any, context: dict[int, int], maxlevels: int, level: int) -> tuple[str, bool, bool]:
        if isinstance(object, float) and not math.isfinite(object):
            return f'float("{object}")', True, False
        return super().format(object, context, maxlevels, level)


def _source(value: Any) -> str:
    """Return `value` as Python source."""
    return _SourcePrinter(width=100, compact=True, sort_dicts=False).pformat(value)


def _quoted(value: str) -> str:
    """Return `value` as a Python string literal with double quotes. `json.dumps` is suitable because a JSON string is also a Python string."""
    return json.dumps(value, ensure_ascii=False)


def path_from(root: Path, path: Path) -> str:
    """Return `path` relative to `root`, or the absolute path if `path` lies outside `root`."""
    # Path.resolve() is not used, because Path.resolve() would follow symbolic links.
    text = os.path.relpath(os.path.abspath(path), root)
    return os.path.abspath(path) if text.startswith("..") else Path(text).as_posix()
