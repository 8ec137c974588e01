from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from raysweep.common.errors import WorldError
from raysweep.common.files import read_yaml, write_yaml
from raysweep.common.typed_json import from_json, to_json
from raysweep.data.manifest import DataManifest, DatasetSpec, read_manifest
from staging import stage_into


@pytest.mark.parametrize(
    ("key", "other"), [("source", "pictures"), ("validation_fraction", 0.3), ("seed", 9), ("image_size", 64), ("test_fraction", 0.5)]
)
def test_a_set_that_another_project_has_staged_under_the_same_name_is_not_taken_for_ours(
    tmp_path: Path, archive: Path, key: str, other: Any
) -> None:
    manifest = stage_into(tmp_path, archive)
    ours = DatasetSpec("d", str(archive), "none", manifest.validation_fraction, manifest.seed)
    manifest.check_spec(tmp_path / "out", ours)
    with pytest.raises(
        WorldError, match=rf"out was staged with {key} .*, and datasets\.d\.{key} is {other!r}: .*give the set another name"
    ):
        manifest.check_spec(tmp_path / "out", replace(ours, **{key: other}))


def test_a_manifest_is_read_as_it_was_written(tmp_path: Path, archive: Path) -> None:
    manifest = stage_into(tmp_path, archive)
    assert read_manifest(tmp_path / "data") == manifest
    drawn = replace(manifest, test_fraction=0.25)
    write_yaml(tmp_path / "manifest.yaml", to_json(drawn))
    assert read_manifest(tmp_path) == drawn


def test_the_fraction_of_a_test_set_stands_only_where_one_was_drawn(tmp_path: Path, archive: Path) -> None:
    manifest = stage_into(tmp_path, archive)
    keys = ["name", "source", "synthetic", "description", "checksum", "classes", "image_shape", "splits", "validation_fraction", "seed"]
    keys += ["files", "data_sha256"]
    assert list(read_yaml(tmp_path / "data/manifest.yaml")) == list(to_json(manifest)) == keys
    drawn = to_json(replace(manifest, test_fraction=0.25))
    assert list(drawn) == [*keys[:6], "test_fraction", *keys[6:]]
    assert from_json(DataManifest, drawn).test_fraction == 0.25
