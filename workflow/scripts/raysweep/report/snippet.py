"""Builds the program that the page shows. The program loads the best model and applies the model to a few rows of the data."""

from __future__ import annotations

import json
import keyword
import math
import os
import sys
from pathlib import Path
from pprint import PrettyPrinter
from typing import Any

from raysweep.common.weights_file import WeightsFacts, read_weights_facts
from raysweep.config.space import TRAINING_KEYS
from raysweep.data.manifest import DataManifest
from raysweep.report.inputs import Inputs
from raysweep.usercode.target import Target, find_target


def snippet(inputs: Inputs, root: Path) -> str:
    """Return the program that the page shows. The user runs the program in `root`, the folder in which the workflow runs."""
    if inputs.header.model:
        return _model_snippet(inputs, find_target(inputs.header.model, root), root)
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


def _model_snippet(inputs: Inputs, target: Target, root: Path) -> str:
    """Return the program for a sweep in which the workflow itself trains the model."""
    facts = read_weights_facts(inputs.model_dir / "model.safetensors")
    return "\n".join(
        [
            "import sys",
            "",
            "import numpy as np",
            "import torch",
            *(["import yaml"] if inputs.data is not None and _has_figures(inputs.data) else []),
            "from safetensors.torch import load_model",
            "",
            f"sys.path.insert(0, {_quoted(path_from(root, target.import_root))})  # where the model's source lies",
            *_import_lines(target),
            "",
            f"model = {target.name}({_arguments({**inputs.winner.config, **facts.arguments})})",
            *_first_batch_lines(inputs, facts),
            f"load_model(model, {_quoted(path_from(root, inputs.model_dir) + '/model.safetensors')})",
            "model.eval()",
            *_prediction_lines(inputs, root, facts),
        ]
    )


def _import_lines(target: Target) -> list[str]:
    """Return the lines of the program that import the model's class."""
    module = target.module or target.path.stem
    if all(_is_name(part) for part in module.split(".")):
        return [f"from {module} import {target.name}"]
    # An import statement cannot contain the name of a file such as my-model.py.
    return ["import importlib", "", f"{target.name} = importlib.import_module({module!r}).{target.name}"]


def _arguments(config: dict[str, Any]) -> str:
    """Return the arguments of the model's constructor as Python source. Keys of the configuration that set the training are left out."""
    arguments = {key: value for key, value in config.items() if key not in TRAINING_KEYS}
    if all(map(_is_name, arguments)):
        return ", ".join(f"{key}={_source(value, width=sys.maxsize)}" for key, value in arguments.items())
    return f"**{_source(arguments, width=sys.maxsize)}"


def _first_batch_lines(inputs: Inputs, facts: WeightsFacts) -> list[str]:
    """Return the line that gives lazy layers their sizes. The list is empty if the model has no lazy layers."""
    if inputs.data is None or not facts.has_lazy_layers:
        return []
    shape = ", ".join(map(str, inputs.data.image_shape))
    dtype = "" if facts.is_float32 else ", dtype=next(model.parameters()).dtype"
    return [f"model(torch.zeros(2, {shape}{dtype}))  # a first batch gives the lazy layers their sizes; load_model replaces all values"]


def _has_figures(data: DataManifest) -> bool:
    """Return whether the program needs figures of the training part, which stand in the manifest of the data."""
    return data.inputs is not None or data.target is not None


def _prediction_lines(inputs: Inputs, root: Path, facts: WeightsFacts) -> list[str]:
    """Return the lines that predict the first rows of the validation split. The list is empty if the trainable brings its own data."""
    data = inputs.data
    if data is None or inputs.data_dir is None:
        return []
    folder = path_from(root, inputs.data_dir)
    images, shape = _quoted(f"{folder}/validation/images.npy"), ", ".join(map(str, data.image_shape))
    lines = [""]
    if _has_figures(data):
        lines += [
            f'manifest = yaml.safe_load(open({_quoted(f"{folder}/manifest.yaml")}, encoding="utf-8"))  # has the figures of the training part'
        ]
    if data.classes:
        lines += [f"classes = {_source(list(data.classes))}"]
    if data.inputs is None:
        lines += [
            f'images = np.load({images}, mmap_mode="r")[:8]  # uint8, shape (n, {shape})',
            "inputs = torch.from_numpy(images.copy()).float() / 127.5 - 1  # from 0…255 to -1…1, as in the training",
        ]
    else:
        axes = ", 1" * (len(data.image_shape) - 1)
        lines += [
            f'rows = np.load({images}, mmap_mode="r")[:8]  # floats, shape (n, {shape})',
            f'mean, deviation = (torch.tensor(manifest["inputs"][key]).double().reshape(-1{axes}) for key in ("mean", "deviation"))',
            "inputs = ((torch.from_numpy(rows.copy()) - mean) / deviation).float()  # standardised, as in the training",
        ]
    if not facts.is_float32:
        lines += ["inputs = inputs.to(next(model.parameters()).dtype)  # the weights are not float32"]
    lines += ["with torch.no_grad():"]
    if data.target is None:
        return [*lines, "    for label in model(inputs).argmax(dim=1):", "        print(classes[label])"]
    return [
        *lines,
        "    outputs = model(inputs).flatten()",
        'print(*(outputs * manifest["target"]["deviation"][0] + manifest["target"]["mean"][0]).tolist(), sep="\\n")  # in the unit of the target',
    ]


def _is_name(text: str) -> bool:
    """Return whether Python accepts `text` as a name."""
    return text.isidentifier() and not keyword.iskeyword(text)


class _SourcePrinter(PrettyPrinter):
    """Prints values as Python source. Infinity and NaN become calls of `float`, because Python has no literals for them."""

    def format(self, object: Any, context: dict[int, int], maxlevels: int, level: int) -> tuple[str, bool, bool]:
        if isinstance(object, float) and not math.isfinite(object):
            return f'float("{object}")', True, False
        return super().format(object, context, maxlevels, level)


def _source(value: Any, width: int = 100) -> str:
    """Return `value` as Python source."""
    return _SourcePrinter(width=width, compact=True, sort_dicts=False).pformat(value)


def _quoted(value: str) -> str:
    """Return `value` as a Python string literal with double quotes. `json.dumps` is suitable because a JSON string is also a Python string."""
    return json.dumps(value, ensure_ascii=False)


def path_from(root: Path, path: Path) -> str:
    """Return `path` relative to `root`, or the absolute path if `path` lies outside `root`."""
    # Path.resolve() is not used, because Path.resolve() would follow symbolic links.
    text = os.path.relpath(os.path.abspath(path), root)
    return os.path.abspath(path) if text.startswith("..") else Path(text).as_posix()
