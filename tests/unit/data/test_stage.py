from __future__ import annotations

import hashlib
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cifar_layout
from raysweep.common.errors import ConfigError, WorldError
from raysweep.common.files import read_yaml, sha256_of_file
from raysweep.data import cifar10, synthetic
from raysweep.data.manifest import read_manifest
from raysweep.data.split import SPLITS, load_split
from staging import files_under, stage_into


def sha256(path: Path) -> str:
    return f"sha256:{sha256_of_file(path)}"


def test_stages_an_archive(tmp_path: Path, archive: Path) -> None:
    manifest = stage_into(tmp_path, archive, checksum=sha256(archive), seed=5)
    assert read_manifest(tmp_path / "data") == manifest
    digests = {f"{s}/{a}.npy": sha256_of_file(tmp_path / f"data/{s}/{a}.npy") for s in SPLITS for a in ("images", "labels")}
    assert read_yaml(tmp_path / "data/manifest.yaml") == {
        "name": "cifar10",
        "source": str(archive),
        "synthetic": False,
        "description": "Images in CIFAR-10's layout, which were not compared with the published ones.",
        "checksum": sha256(archive),
        "classes": cifar_layout.CLASSES,
        "image_shape": [3, 32, 32],
        "splits": {"train": 90, "validation": 10, "test": 20},
        "validation_fraction": 0.1,
        "seed": 5,
        "files": digests,
        "data_sha256": hashlib.sha256("".join(f"{digests[path]}  {path}\n" for path in sorted(digests)).encode()).hexdigest(),
    }
    assert files_under(tmp_path / "data") == sorted([*digests, "manifest.yaml"])


def test_train_and_validation_share_out_the_published_training_set_in_its_order(tmp_path: Path, archive: Path) -> None:
    stage_into(tmp_path, archive)
    published, published_labels = cifar10.assemble(cifar_layout.files().items(), "here")[0]["train"]
    rows = {image.tobytes(): row for row, image in enumerate(published)}
    found: dict[str, list[int]] = {}
    for split in ("train", "validation"):
        images, labels = load_split(tmp_path / "data", split)
        found[split] = [rows[image.tobytes()] for image in images]
        assert found[split] == sorted(found[split])
        np.testing.assert_array_equal(labels, published_labels[found[split]])
    assert sorted(found["train"] + found["validation"]) == list(range(100))
    assert np.bincount(load_split(tmp_path / "data", "validation")[1]).tolist() == [1] * 10


def test_the_same_data_has_the_same_identity_from_archive_and_folder(tmp_path: Path, archive: Path) -> None:
    folder = cifar_layout.write_folder(tmp_path / "folder", cifar_layout.files())
    assert stage_into(tmp_path, archive).data_sha256 == stage_into(tmp_path, folder, output_dir=tmp_path / "b").data_sha256


def test_the_identity_of_an_archive_is_the_same_in_all_versions_of_the_workflow(tmp_path: Path, archive: Path) -> None:
    assert (
        stage_into(tmp_path, archive).data_sha256 == "c23133f470d50f642263a3f82704f93e8457d4782a48db5c15bfd3293ddf1545"
    )  # as staged by 0.1.0


def test_the_split_is_part_of_the_identity(tmp_path: Path, archive: Path) -> None:
    found = {stage_into(tmp_path, archive, **changed).data_sha256 for changed in ({}, {"seed": 1}, {"validation_fraction": 0.2})}
    assert len(found) == 3


def test_synthetic_data_is_called_so(tmp_path: Path) -> None:
    manifest = stage_into(tmp_path, "synthetic", checksum="upstream")
    assert manifest.synthetic is True
    assert manifest.checksum is None
    assert "not photographs" in manifest.description
    assert list(manifest.classes) == synthetic.CLASSES
    assert manifest.splits == {"train": 5_400, "validation": 600, "test": 1_000}
    np.testing.assert_array_equal(load_split(tmp_path / "data", "test")[0], synthetic.generate()["test"][0])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"validation_fraction": 0.0}, "validation_fraction: 0.0 is not allowed.*between 0 and 1"),
        ({"validation_fraction": 1.0}, "validation_fraction: 1.0 is not allowed"),
        ({"validation_fraction": float("nan")}, "validation_fraction: nan is not allowed"),
        ({"validation_fraction": 0.001}, "0.001 of 100 rows leaves validation without any"),
        ({"validation_fraction": 0.999}, "0.999 of 100 rows leaves train without any"),
        ({"seed": -1}, "seed: -1 is not allowed"),
        ({"checksum": "crc32:00"}, "checksum: 'crc32:00' is not allowed: give upstream, none, md5"),
        ({"checksum": "md5:c58f"}, "checksum: 'md5:c58f' is not allowed.*32 hexadecimal digits"),
        ({"checksum": "sha256:" + "g" * 64}, "is not allowed"),
        ({"checksum": ""}, "checksum: '' is not allowed"),
        ({"source": "synthetic", "checksum": "md5:" + "0" * 32}, "is for a file, but `source: synthetic` has none"),
        ({"source": "/no/such/file.tar.gz"}, "source: '/no/such/file.tar.gz' does not exist. Allowed: download, synthetic, the path"),
    ],
)
def test_a_mistake_in_the_config_is_one_line_that_names_the_key(
    changed: dict[str, Any], message: str, tmp_path: Path, archive: Path
) -> None:
    with pytest.raises(ConfigError, match=f"^datasets\\.cifar10\\..*{message}"):
        stage_into(tmp_path, **{"source": archive} | changed)
    assert not (tmp_path / "data").exists()


def test_a_folder_has_no_checksum_of_its_own(tmp_path: Path) -> None:
    folder = cifar_layout.write_folder(tmp_path / "folder", cifar_layout.files())
    with pytest.raises(ConfigError, match=r"is for a file, but .*folder' is none\. Allowed: upstream, none"):
        stage_into(tmp_path, folder, checksum="md5:" + "0" * 32)
    with pytest.raises(WorldError, match="data_batch_1: its MD5 is"):
        stage_into(tmp_path, folder, checksum="upstream")


class MakesFolder:
    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("checksum", ["upstream", "md5:" + "0" * 32, "sha256:" + "0" * 64])
def test_an_archive_with_another_checksum_is_not_unpickled(checksum: str, tmp_path: Path) -> None:
    evil = cifar_layout.files(data_batch_1=pickle.dumps(MakesFolder(tmp_path / "ran")))
    path = cifar_layout.write_archive(tmp_path / "x.tar.gz", evil)
    with pytest.raises(
        WorldError, match=r"x\.tar\.gz: its checksum is (md5|sha256):[0-9a-f]+, expected was (md5|sha256):.*It was not unpacked"
    ):
        stage_into(tmp_path, path, checksum=checksum)
    with pytest.raises(WorldError, match="mkdir"):  # and with `none` it is read, but not run
        stage_into(tmp_path, path)
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "data").exists()


def test_what_was_staged_stays_when_a_new_source_is_refused(tmp_path: Path, archive: Path) -> None:
    manifest = stage_into(tmp_path, archive)
    archive.write_bytes(archive.read_bytes()[:-100])
    with pytest.raises(WorldError, match="not a whole"):
        stage_into(tmp_path, archive)
    assert read_manifest(tmp_path / "data") == manifest


def test_a_fault_of_the_disk_while_writing_leaves_nothing_half_written(tmp_path: Path, archive: Path) -> None:
    stage_into(tmp_path, archive)
    shutil.rmtree(tmp_path / "data/test")
    (tmp_path / "data/test").touch()  # where a folder has to be
    with pytest.raises(OSError, match="File exists"):
        stage_into(tmp_path, archive)
    assert files_under(tmp_path / "data") == ["test"]
