from __future__ import annotations

import hashlib
import os
import pickle
import resource
import shutil
import socket
import threading
import warnings
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import cifar_layout
from raysweep.common.errors import ConfigError, WorldError
from raysweep.common.files import sha256_of_file
from raysweep.data import cifar10, image_folder, synthetic
from raysweep.data import stage as data


class Server(ThreadingHTTPServer):
    """Serves `content` at any path; says it has `announced` bytes."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.announced, self.status, self.requests = b"", 0, 200, 0

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/{cifar10.ARCHIVE_NAME}"

    def serve(self, content: bytes) -> None:
        self.content, self.announced = content, len(content)


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.requests += 1
        self.send_response(self.server.status)
        self.send_header("Content-Length", str(self.server.announced))
        self.end_headers()
        self.wfile.write(self.server.content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    return cifar_layout.write_archive(tmp_path / "own.tar.gz", cifar_layout.files())


def sha256(path: Path) -> str:
    return f"sha256:{sha256_of_file(path)}"


def stage(tmp_path: Path, source: str | Path, **changed: Any) -> dict[str, Any]:
    options: dict[str, Any] = {
        "name": "cifar10",
        "source": str(source),
        "checksum": "none",
        "validation_fraction": 0.1,
        "seed": 0,
        "downloads_dir": tmp_path / "downloads",
        "output_dir": tmp_path / "data",
    }
    return data.stage(**options | changed)


def files_under(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


class TestRowsSetAside:
    def test_takes_the_fraction_of_each_class(self) -> None:
        labels = np.repeat(np.arange(10), 100)
        chosen = data.rows_set_aside(labels, 0.1, seed=0)
        assert np.bincount(labels[chosen]).tolist() == [10] * 10

    @pytest.mark.parametrize("fraction", [0.01, 0.1, 0.25, 0.29, 1 / 3, 0.5, 0.99])
    def test_the_total_is_right_and_no_class_is_off_by_more_than_one(self, fraction: float) -> None:
        labels = np.repeat(np.arange(7), [1, 2, 3, 50, 51, 52, 100])
        chosen = data.rows_set_aside(labels, fraction, seed=3)
        assert chosen.sum() == round(len(labels) * fraction)
        assert np.all(np.abs(np.bincount(labels[chosen], minlength=7) - np.bincount(labels) * fraction) < 1)

    def test_the_largest_remainders_are_rounded_up(self) -> None:
        labels = np.repeat(np.arange(3), [12, 18, 10])  # 1.2, 1.8 and 1.0 of 4
        assert np.bincount(labels[data.rows_set_aside(labels, 0.1, seed=0)]).tolist() == [1, 2, 1]

    def test_is_a_function_of_the_seed(self) -> None:
        labels = np.arange(1000) % 10
        first, again, other = (data.rows_set_aside(labels, 0.1, seed) for seed in (0, 0, 1))
        np.testing.assert_array_equal(first, again)
        assert (first != other).any()

    def test_chooses_the_same_rows_with_every_version_of_numpy(self) -> None:
        chosen = np.flatnonzero(data.rows_set_aside(np.arange(40) % 2, 0.25, seed=0))
        assert chosen.tolist() == [2, 3, 11, 13, 15, 18, 20, 21, 32, 36]

    def test_does_not_follow_the_order_of_the_rows(self) -> None:
        chosen = np.flatnonzero(data.rows_set_aside(np.zeros(10_000, np.int64), 0.5, seed=0))
        assert 4_800 < chosen.mean() < 5_200


def test_stages_an_archive(tmp_path: Path, archive: Path) -> None:
    manifest = stage(tmp_path, archive, checksum=sha256(archive), seed=5)
    assert data.read_manifest(tmp_path / "data") == manifest
    digests = {f"{s}/{a}.npy": sha256_of_file(tmp_path / f"data/{s}/{a}.npy") for s in data.SPLITS for a in ("images", "labels")}
    assert manifest == {
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
    stage(tmp_path, archive)
    published, published_labels = cifar10.assemble(cifar_layout.files().items(), "here")[0]["train"]
    rows = {image.tobytes(): row for row, image in enumerate(published)}
    found: dict[str, list[int]] = {}
    for split in ("train", "validation"):
        images, labels = data.load_split(tmp_path / "data", split)
        found[split] = [rows[image.tobytes()] for image in images]
        assert found[split] == sorted(found[split])
        np.testing.assert_array_equal(labels, published_labels[found[split]])
    assert sorted(found["train"] + found["validation"]) == list(range(100))
    assert np.bincount(data.load_split(tmp_path / "data", "validation")[1]).tolist() == [1] * 10


def test_the_same_data_has_the_same_identity_from_archive_and_folder(tmp_path: Path, archive: Path) -> None:
    folder = cifar_layout.write_folder(tmp_path / "folder", cifar_layout.files())
    assert stage(tmp_path, archive)["data_sha256"] == stage(tmp_path, folder, output_dir=tmp_path / "b")["data_sha256"]


def test_the_split_is_part_of_the_identity(tmp_path: Path, archive: Path) -> None:
    found = {stage(tmp_path, archive, **changed)["data_sha256"] for changed in ({}, {"seed": 1}, {"validation_fraction": 0.2})}
    assert len(found) == 3


def test_synthetic_data_is_called_so(tmp_path: Path) -> None:
    manifest = stage(tmp_path, "synthetic", checksum="upstream")
    assert manifest["synthetic"] is True
    assert manifest["checksum"] is None
    assert "not photographs" in manifest["description"]
    assert manifest["classes"] == synthetic.CLASSES
    assert manifest["splits"] == {"train": 5_400, "validation": 600, "test": 1_000}
    np.testing.assert_array_equal(data.load_split(tmp_path / "data", "test")[0], synthetic.generate()["test"][0])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"validation_fraction": 0.0}, "validation_fraction: 0.0 is not allowed.*between 0 and 1"),
        ({"validation_fraction": 1.0}, "validation_fraction: 1.0 is not allowed"),
        ({"validation_fraction": float("nan")}, "validation_fraction: nan is not allowed"),
        ({"validation_fraction": 0.001}, "0.001 of 100 images leaves validation without any"),
        ({"validation_fraction": 0.999}, "0.999 of 100 images leaves train without any"),
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
        stage(tmp_path, **{"source": archive} | changed)
    assert not (tmp_path / "data").exists()


def test_a_folder_has_no_checksum_of_its_own(tmp_path: Path) -> None:
    folder = cifar_layout.write_folder(tmp_path / "folder", cifar_layout.files())
    with pytest.raises(ConfigError, match=r"is for an archive, but .*folder' is a folder\. Allowed: upstream, none"):
        stage(tmp_path, folder, checksum="md5:" + "0" * 32)
    with pytest.raises(WorldError, match="data_batch_1: its MD5 is"):
        stage(tmp_path, folder, checksum="upstream")


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
        stage(tmp_path, path, checksum=checksum)
    with pytest.raises(WorldError, match="mkdir"):  # and with `none` it is read, but not run
        stage(tmp_path, path)
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "data").exists()


def test_what_was_staged_stays_when_a_new_source_is_refused(tmp_path: Path, archive: Path) -> None:
    manifest = stage(tmp_path, archive)
    archive.write_bytes(archive.read_bytes()[:-100])
    with pytest.raises(WorldError, match="not a whole"):
        stage(tmp_path, archive)
    assert data.read_manifest(tmp_path / "data") == manifest


def test_a_fault_of_the_disk_while_writing_leaves_nothing_half_written(tmp_path: Path, archive: Path) -> None:
    stage(tmp_path, archive)
    shutil.rmtree(tmp_path / "data/test")
    (tmp_path / "data/test").touch()  # where a folder has to be
    with pytest.raises(OSError, match="File exists"):
        stage(tmp_path, archive)
    assert files_under(tmp_path / "data") == ["test"]


class TestDownload:
    def test_downloads_once(self, tmp_path: Path, archive: Path, server: Server) -> None:
        server.serve(archive.read_bytes())
        for _ in range(2):
            manifest = stage(tmp_path, "download", checksum=sha256(archive), address=server.address)
        assert server.requests == 1
        assert manifest["source"] == "download"
        assert manifest["checksum"] == sha256(archive)
        assert files_under(tmp_path / "downloads") == [cifar10.ARCHIVE_NAME]

    def test_an_altered_download_is_fetched_again(self, tmp_path: Path, archive: Path, server: Server) -> None:
        server.serve(archive.read_bytes())
        stage(tmp_path, "download", checksum=sha256(archive), address=server.address)
        kept = tmp_path / "downloads" / cifar10.ARCHIVE_NAME
        kept.write_bytes(b"x" + kept.read_bytes()[1:])
        stage(tmp_path, "download", checksum=sha256(archive), address=server.address)
        assert server.requests == 2
        assert kept.read_bytes() == archive.read_bytes()

    def test_without_a_checksum_nothing_kept_is_trusted(self, tmp_path: Path, archive: Path, server: Server) -> None:
        server.serve(archive.read_bytes())
        for _ in range(2):
            assert stage(tmp_path, "download", checksum="none", address=server.address)["checksum"] is None
        assert server.requests == 2

    def test_a_wrong_checksum_leaves_nothing(self, tmp_path: Path, archive: Path, server: Server) -> None:
        server.serve(archive.read_bytes())
        with pytest.raises(WorldError, match=rf"^http.*: its checksum is md5:[0-9a-f]+, expected was md5:{cifar10.ARCHIVE_MD5}"):
            stage(tmp_path, "download", checksum="upstream", address=server.address)
        assert files_under(tmp_path / "downloads") == []

    def test_a_download_that_breaks_off_leaves_nothing_and_the_next_goes_on(self, tmp_path: Path, archive: Path, server: Server) -> None:
        server.serve(archive.read_bytes())
        server.announced += 1
        with pytest.raises(WorldError, match=r"cannot be downloaded \(IncompleteRead.* 1 more expected\)\)\. Run it again"):
            stage(tmp_path, "download", checksum="none", address=server.address)
        assert files_under(tmp_path / "downloads") == []
        server.announced -= 1
        stage(tmp_path, "download", checksum="none", address=server.address)

    def test_a_fault_of_the_disk_is_not_called_one_of_the_network(self, tmp_path: Path, archive: Path, server: Server) -> None:
        server.serve(archive.read_bytes())
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
        try:
            with pytest.raises(OSError, match="File too large") as caught:
                data.fetch(server.address, tmp_path / "downloads/x", None)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert caught.value.filename == str(tmp_path / "downloads/x")
        assert files_under(tmp_path / "downloads") == []

    def test_an_error_of_the_server_is_one_line(self, tmp_path: Path, server: Server) -> None:
        server.status = 503
        with pytest.raises(WorldError, match=r"cannot be downloaded \(HTTP Error 503: Service Unavailable\)"):
            stage(tmp_path, "download", address=server.address)

    def test_without_a_network_it_says_what_to_do(self, tmp_path: Path) -> None:
        with socket.socket() as unused:  # bound, but it does not listen
            unused.bind(("127.0.0.1", 0))
            with pytest.raises(
                WorldError, match=r"\(\[Errno \d+\] Connection refused\)\. Run it again where .* give its path as `source:`\.$"
            ):
                stage(tmp_path, "download", address=f"http://127.0.0.1:{unused.getsockname()[1]}/x")

    def test_a_silent_server_is_given_up(self, tmp_path: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(WorldError, match=r"cannot be downloaded \(timed out\)"):
            data.fetch(f"http://127.0.0.1:{silent.getsockname()[1]}/x", tmp_path / "x", None, timeout_s=0.2)
        assert files_under(tmp_path) == []


class TestLoadSplit:
    def test_maps_the_files_and_never_writes_to_them(self, tmp_path: Path, archive: Path) -> None:
        stage(tmp_path, archive)
        images, labels = data.load_split(tmp_path / "data", "train")
        assert isinstance(images, np.memmap)
        assert (images.dtype, images.shape, labels.dtype, labels.shape) == (np.uint8, (90, 3, 32, 32), np.int64, (90,))
        before = sha256_of_file(tmp_path / "data/train/images.npy")
        images += 1
        images.flush()
        assert sha256_of_file(tmp_path / "data/train/images.npy") == before

    def test_torch_takes_them_without_a_copy_or_a_warning(self, tmp_path: Path, archive: Path) -> None:
        torch = pytest.importorskip("torch")
        stage(tmp_path, archive)
        images, _ = data.load_split(tmp_path / "data", "test")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            tensor = torch.from_numpy(images)
        assert tensor.data_ptr() == images.ctypes.data

    def test_an_incomplete_data_set_is_refused(self, tmp_path: Path, archive: Path) -> None:
        stage(tmp_path, archive)
        (tmp_path / "data/manifest.yaml").unlink()
        with pytest.raises(WorldError, match=r"data: holds no complete data set.*Run the rule stage_data"):
            data.load_split(tmp_path / "data", "train")

    def test_an_unknown_split_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="no split is called 'val': there are train, validation, test"):
            data.load_split(tmp_path, "val")


def draw(folder: Path, classes: dict[str, int], side: tuple[int, int] = (40, 60), **options: Any) -> Path:
    """Images of one colour a class, `classes` says how many of each."""
    for number, (name, count) in enumerate(classes.items()):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", side, (10 + 60 * number, i, 200)).save(folder / name / f"{i:03d}.png", **options)
    return folder


class TestFolderOfImages:
    def test_with_a_folder_test_all_of_train_is_split_into_training_and_validation(self, tmp_path: Path) -> None:
        draw(tmp_path / "own/train", {"cat": 10, "dog": 20})
        draw(tmp_path / "own/test", {"cat": 2, "dog": 3})
        manifest = stage(tmp_path, tmp_path / "own", checksum="upstream", image_size=16)
        assert manifest["splits"] == {"train": 27, "validation": 3, "test": 5}
        assert manifest["classes"] == ["cat", "dog"]
        assert (manifest["image_shape"], manifest["synthetic"], manifest["checksum"]) == ([3, 16, 16], False, None)
        images, labels = data.load_split(tmp_path / "data", "test")
        assert labels.tolist() == [0, 0, 1, 1, 1]
        assert images[:, :, 8, 8].tolist() == [[10, 0, 200], [10, 1, 200], [70, 0, 200], [70, 1, 200], [70, 2, 200]]

    def test_without_one_a_part_of_each_class_is_set_aside_and_no_image_is_in_two_splits(self, tmp_path: Path) -> None:
        draw(tmp_path / "own", {"cat": 20, "dog": 40, "emu": 60})
        manifest = stage(tmp_path, tmp_path / "own", test_fraction=0.25)
        assert (manifest["splits"], manifest["test_fraction"]) == ({"train": 81, "validation": 9, "test": 30}, 0.25)
        found = []
        for split in data.SPLITS:
            images, labels = data.load_split(tmp_path / "data", split)
            assert images.shape[1:] == (3, 32, 32)
            found += [(int(label), int(image[1, 0, 0])) for image, label in zip(images, labels, strict=True)]
        assert sorted(found) == [(label, i) for label, count in enumerate((20, 40, 60)) for i in range(count)]
        assert np.bincount(data.load_split(tmp_path / "data", "test")[1]).tolist() == [5, 10, 15]

    def test_an_image_is_scaled_and_cropped_around_its_centre_upright_and_in_colour(self, tmp_path: Path) -> None:
        wide = np.zeros((10, 30), np.uint8)
        wide[:, 10:20] = 250
        (tmp_path / "own/a").mkdir(parents=True)
        (tmp_path / "own/b").mkdir()
        Image.fromarray(wide).save(tmp_path / "own/a/grey.png")
        Image.fromarray(wide).convert("P").save(tmp_path / "own/a/palette.gif")
        exif = Image.Exif()
        exif[0x0112] = 6  # to be turned by a quarter
        Image.fromarray(wide.T).save(tmp_path / "own/b/turned.PNG", exif=exif)
        Image.new("RGBA", (10, 10), (1, 2, 3, 128)).save(tmp_path / "own/b/clear.png")
        parts, _ = image_folder.read(tmp_path / "own", 10)
        images, labels = parts["train"]
        assert labels.tolist() == [0, 0, 1, 1]
        assert [images[row].min() for row in (0, 1, 3)] == [250, 250, 250]  # the black sides are cropped
        assert images[2, :, 0, 0].tolist() == [1, 2, 3]

    def test_images_of_16_bits_keep_their_shades_and_those_of_unknown_range_are_refused(self, tmp_path: Path) -> None:
        draw(tmp_path / "own", {"a": 1, "b": 1})
        ramp = np.linspace(0, 65535, 100).astype(np.uint16).reshape(10, 10)
        Image.fromarray(ramp).save(tmp_path / "own/a/000.png")
        images, _ = image_folder.read(tmp_path / "own", 10)[0]["train"]
        np.testing.assert_allclose(images[0, 0], ramp >> 8, atol=1)
        Image.fromarray(ramp.astype(np.float32)).save(tmp_path / "own/b/000.tiff")
        with pytest.raises(WorldError, match=r"000\.tiff: cannot be read as an image \(its pixels are of Pillow's mode F"):
            image_folder.read(tmp_path / "own", 10)

    def test_folders_beside_train_and_test_are_refused_and_hidden_ones_passed_over(self, tmp_path: Path) -> None:
        draw(tmp_path / "own/train", {"a": 4, "b": 4})
        draw(tmp_path / "own/train/a", {".ipynb_checkpoints": 2})
        (tmp_path / "own/test").mkdir()
        draw(tmp_path / "own/test", {"a": 2, "b": 2})
        assert sum(stage(tmp_path, tmp_path / "own", validation_fraction=0.25)["splits"].values()) == 12
        draw(tmp_path / "own/val", {"a": 1, "b": 1})
        with pytest.raises(WorldError, match=r"own: has val beside train and test\. The validation split is drawn from train"):
            stage(tmp_path, tmp_path / "own")

    def test_the_same_images_have_the_same_identity_wherever_they_lie(self, tmp_path: Path) -> None:
        found = [stage(tmp_path, draw(tmp_path / name, {"a": 5, "b": 5}))["data_sha256"] for name in ("x", "y")]
        assert found[0] == found[1]

    def test_what_is_no_image_by_its_name_is_passed_over_and_named(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        draw(tmp_path / "own", {"a": 5, "b": 5})
        for name in ("notes.txt", ".hidden"):
            (tmp_path / "own/a" / name).touch()
        (tmp_path / "own/.git").mkdir()
        with caplog.at_level("INFO", "raysweep"):
            assert sum(stage(tmp_path, tmp_path / "own")["splits"].values()) == 10
        assert "own: 1 files are no images by their names, and are passed over" in caplog.text

    def test_what_is_not_laid_out_so_is_one_line(self, tmp_path: Path) -> None:
        own = draw(tmp_path / "own", {"a": 5})
        with pytest.raises(
            WorldError, match=r"own: has 1 folders of images; there have to be two classes or more\. A folder of images has"
        ):
            stage(tmp_path, own)
        (own / "b").mkdir()
        with pytest.raises(WorldError, match=r"b: holds no image, such as a \.png or \.jpg\."):
            stage(tmp_path, own)
        (own / "b/torn.png").write_bytes((own / "a/000.png").read_bytes()[:60])
        with pytest.raises(WorldError, match=r"b/torn\.png: cannot be read as an image \(.+\)\. Mend it, or take it away\."):
            stage(tmp_path, own)
        assert not (tmp_path / "data").exists()
        draw(tmp_path / "other/test", {"a": 1, "b": 1})
        with pytest.raises(WorldError, match=r"other: has a folder `test`, but no `train`"):
            stage(tmp_path, tmp_path / "other")
        draw(tmp_path / "other/train", {"a": 1, "c": 1})
        with pytest.raises(WorldError, match=r"only one of them has b, c\."):
            stage(tmp_path, tmp_path / "other")

    def test_its_keys_are_refused_where_they_mean_nothing(self, tmp_path: Path, archive: Path) -> None:
        with pytest.raises(ConfigError, match=r"datasets\.cifar10\.image_size: 16 is for a folder of images, which .* is not"):
            stage(tmp_path, archive, image_size=16)
        with pytest.raises(ConfigError, match=r"datasets\.cifar10\.test_fraction: 0\.5 is for a folder of images"):
            stage(tmp_path, "synthetic", test_fraction=0.5)
        draw(tmp_path / "own/train", {"a": 5, "b": 5})
        draw(tmp_path / "own/test", {"a": 5, "b": 5})
        with pytest.raises(ConfigError, match=r"test_fraction: 0\.5 is for a folder without a folder `test`"):
            stage(tmp_path, tmp_path / "own", test_fraction=0.5)
        with pytest.raises(ConfigError, match=r"checksum: 'md5:.*' is for an archive, but .* is a folder"):
            stage(tmp_path, tmp_path / "own", checksum="md5:" + "0" * 32)
        with pytest.raises(ConfigError, match=r"datasets\.cifar10\.test_fraction: 0\.01 of 10 images leaves test without any"):
            stage(tmp_path, draw(tmp_path / "few", {"a": 5, "b": 5}), test_fraction=0.01)


@pytest.mark.parametrize(
    ("key", "other"), [("source", "pictures"), ("validation_fraction", 0.3), ("seed", 9), ("image_size", 64), ("test_fraction", 0.5)]
)
def test_a_set_that_another_project_has_staged_under_the_same_name_is_not_taken_for_ours(tmp_path: Path, key: str, other: Any) -> None:
    manifest = stage(tmp_path, "synthetic", checksum="none")
    ours = {"source": "synthetic", "validation_fraction": manifest["validation_fraction"], "seed": manifest["seed"]}
    wanted = {**ours, "image_size": None, "test_fraction": None}
    data.refuse_another(tmp_path / "out", manifest, "d", wanted)
    with pytest.raises(
        WorldError, match=rf"out was staged with {key} .*, and datasets\.d\.{key} is {other!r}: .*give the set another name"
    ):
        data.refuse_another(tmp_path / "out", manifest, "d", wanted | {key: other})
