from __future__ import annotations

from pathlib import Path

import pytest

from raysweep.common.weights_file import LAZY_LAYERS_KEY, WeightsFacts, read_weights_facts


def test_without_a_file_the_model_is_an_ordinary_one(tmp_path: Path) -> None:
    assert read_weights_facts(tmp_path / "model.safetensors") == WeightsFacts(has_lazy_layers=False, is_float32=True)


@pytest.mark.parametrize(
    ("dtypes", "metadata", "facts"),
    [
        (["float32", "int64"], None, WeightsFacts(has_lazy_layers=False, is_float32=True)),
        (["float32", "bfloat16"], None, WeightsFacts(has_lazy_layers=False, is_float32=False)),
        (["float16"], {"tied": "weight"}, WeightsFacts(has_lazy_layers=False, is_float32=False)),
        (["float64"], {LAZY_LAYERS_KEY: "a, b"}, WeightsFacts(has_lazy_layers=True, is_float32=False)),
    ],
)
def test_the_header_that_safetensors_writes_is_read(
    tmp_path: Path, dtypes: list[str], metadata: dict[str, str] | None, facts: WeightsFacts
) -> None:
    torch = pytest.importorskip("torch")
    safetensors = pytest.importorskip("safetensors.torch")
    tensors = {dtype: torch.zeros(2, dtype=getattr(torch, dtype)) for dtype in dtypes}
    safetensors.save_file(tensors, tmp_path / "model.safetensors", metadata=metadata)
    assert read_weights_facts(tmp_path / "model.safetensors") == facts
