"""The facts in a file of weights (safetensors) that the report needs. The controller has neither PyTorch nor safetensors."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

# A key of the file's metadata: the names of the layers that need a first batch before weights can be loaded.
LAZY_LAYERS_KEY = "lazy_layers"


@dataclass(frozen=True)
class WeightsFacts:
    """The facts in a file of weights that decide how a program loads and uses the model."""

    has_lazy_layers: bool = False
    is_float32: bool = True  # whether all weights that are floats have 32 bits


def read_weights_facts(path: Path) -> WeightsFacts:
    """Return the facts in a file of weights; those of an ordinary model where there is no such file.

    The format is 8 bytes with the length of a JSON header, little-endian, and the header: https://github.com/huggingface/safetensors#format
    """
    if not path.is_file():
        return WeightsFacts()
    with path.open("rb") as stream:
        header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
    metadata = header.pop("__metadata__", {})
    other_floats = {tensor["dtype"] for tensor in header.values()} & {"F16", "BF16", "F64"}
    return WeightsFacts(LAZY_LAYERS_KEY in metadata, not other_floats)
