"""This module reads the facts that the report needs from the header of a weights file (safetensors).

The module reads the header without PyTorch and safetensors, because the controller has neither of these packages.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# The metadata of a weights file has the names of the lazy layers at this key. A lazy layer needs a first batch before weights can be loaded.
LAZY_LAYERS_KEY = "lazy_layers"
# The metadata has the arguments of the model's constructor that the data determine, as JSON, at this key.
ARGUMENTS_KEY = "arguments"


@dataclass(frozen=True)
class WeightsFacts:
    """Describes the facts in a weights file that decide how a program loads and uses the model."""

    has_lazy_layers: bool = False
    is_float32: bool = True  # This field is True where every floating-point weight has 32 bits.
    arguments: dict[str, Any] = field(default_factory=dict)  # arguments of the model's constructor that the data determine


def read_weights_facts(path: Path) -> WeightsFacts:
    """Return the facts in a weights file, or the default facts where the file does not exist.

    The file begins with 8 bytes, which contain the length of the header in bytes (little-endian). The header follows as JSON.
    https://github.com/huggingface/safetensors#format describes the format.
    """
    if not path.is_file():
        return WeightsFacts()
    with path.open("rb") as stream:
        header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
    metadata = header.pop("__metadata__", {})
    other_floats = {tensor["dtype"] for tensor in header.values()} & {"F16", "BF16", "F64"}
    return WeightsFacts(LAZY_LAYERS_KEY in metadata, not other_floats, json.loads(metadata.get(ARGUMENTS_KEY, "{}")))
