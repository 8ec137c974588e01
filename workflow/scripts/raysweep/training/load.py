"""Loads the model in this folder without the workflow. This program needs PyTorch, NumPy and safetensors.

    import runpy
    model = runpy.run_path("results/mine/model/load.py")["model"]

The map that `run_path` returns also contains `prepare`, `predict` and, for a table, `encode`. `facts` is the content of model.json, such as the names of
the classes and the configuration with which the model was trained.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_model

FOLDER = Path(__file__).resolve().parent
WEIGHTS = FOLDER / "model.safetensors"
facts: dict[str, Any] = json.loads((FOLDER / "model.json").read_text(encoding="utf-8"))


def _model_class() -> Any:
    """Import the model's class from the folder `code`. Modules with the same names, as of another model, are imported anew."""
    code = FOLDER / "code"
    for path in code.rglob("*.py"):
        sys.modules.pop(".".join(path.relative_to(code).with_suffix("").parts).removesuffix(".__init__"), None)
    sys.path.insert(0, str(code))
    return getattr(importlib.import_module(facts["module"]), facts["class"])


def _figures(key: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the mean and the standard deviation of the inputs or of the target in the training part, float64."""
    shape = (-1, *[1] * (len(facts["row_shape"]) - 1)) if key == "inputs" else (-1,)
    mean, deviation = (torch.tensor(facts[key][name], dtype=torch.float64).reshape(shape) for name in ("mean", "deviation"))
    return mean, deviation


def prepare(rows: Any) -> torch.Tensor:
    """Return the inputs of the model for rows [n, …] of the data as they are staged: uint8 images become −1 … 1, and floats are standardised.

    The inputs have the type of the model's weights, and are on the device of the weights.
    """
    weights = next(model.parameters())
    rows = torch.as_tensor(np.array(rows))
    if facts["inputs"] is None:
        return (rows.float() / 127.5 - 1).to(weights.device, weights.dtype)
    mean, deviation = _figures("inputs")
    return ((rows - mean) / deviation).to(weights.device, weights.dtype)


def predict(rows: Any) -> list[Any]:
    """Return the name of the class of each row, or for a regression the number in the unit of the target. `rows` are as for `prepare`."""
    with torch.inference_mode():
        outputs = model(prepare(rows))
    if facts["target"] is None:
        if outputs.numel() == len(rows):  # the logit of the second of two classes
            return [facts["classes"][int(number > 0)] for number in outputs.flatten().tolist()]
        return [facts["classes"][number] for number in outputs.argmax(1).tolist()]
    mean, deviation = _figures("target")
    numbers: list[Any] = (outputs.flatten().double().cpu() * deviation + mean).tolist()
    return numbers


def encode(table: Mapping[str, Any]) -> np.ndarray:
    """Return the rows, float64 [n, inputs], of a table, which is a DataFrame or a map from the name of each column to its values."""
    parts = []
    for column in facts["columns"]:
        # A comparison of pandas.NA is neither true nor false, so the text of the comparison is examined.
        values = [column["fill"] if value is None or str(value == value) != "True" else value for value in table[column["name"]]]
        if names := column.get("categories"):
            # The last place is for texts that the training part does not have.
            places = [names.index(str(value)) if str(value) in names else len(names) for value in values]
            parts.append(np.eye(len(names) + 1)[places])
        else:
            parts.append(np.array(values, dtype=np.float64)[:, None])
    return np.concatenate(parts, axis=1)


with safe_open(WEIGHTS, "pt") as _weights:
    _metadata: dict[str, str] = _weights.metadata() or {}
model: torch.nn.Module = _model_class()(**facts["arguments"], **json.loads(_metadata.get("arguments", "{}")))
if "lazy_layers" in _metadata:
    # A first batch gives the lazy layers their sizes. load_model replaces all values.
    model(prepare(np.zeros((2, *facts["row_shape"]), np.uint8 if facts["inputs"] is None else np.float32)))
load_model(model, str(WEIGHTS))
model.eval()
