"""Writes beside the weights of the best trial all that is needed to load the model without the workflow."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from raysweep.common.files import written_aside
from raysweep.common.typed_json import to_json
from raysweep.config.model import SweepConfig
from raysweep.config.space import TRAINING_KEYS
from raysweep.data.manifest import DataManifest
from raysweep.record.results import BestResult
from raysweep.usercode.freeze import Code
from raysweep.usercode.target import SCRIPTS_DIR

# This program is copied, and the package does not import the program.
LOADER = SCRIPTS_DIR / "raysweep" / "training" / "load.py"


def write_loader(model_dir: Path, sweep: SweepConfig, code: Code, data: DataManifest, best: BestResult) -> None:
    """Write the program `load.py`, the folder `code` with the files of the model's class, and `model.json` into `model_dir`.

    `model.json` describes how the class is built and how the rows of the data become its inputs, and says how the model was trained.
    """
    root = code.target.import_root
    for path, content in code.contents.items():
        if path.is_relative_to(root):
            with written_aside(model_dir / "code" / path.relative_to(root), "wb") as stream:
                stream.write(content)
    facts: dict[str, Any] = {
        "module": code.target.module or code.target.path.stem,
        "class": code.target.name,
        "arguments": {key: value for key, value in best.config.items() if key not in TRAINING_KEYS},
        "row_shape": data.image_shape,
        "inputs": to_json(data.inputs),
        "target": to_json(data.target),
        "classes": data.classes,
        "columns": to_json(data.columns),
        "config": best.config,
        "epochs": best.model_epoch,
        "optimizer": sweep.optimizer,
        "loss": sweep.loss,
        "training": to_json(sweep.training),
    }
    with written_aside(model_dir / "model.json") as stream:
        json.dump(facts, stream, indent=2, ensure_ascii=False)
    shutil.copyfile(LOADER, model_dir / LOADER.name)
