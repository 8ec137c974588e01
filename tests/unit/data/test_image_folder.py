from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from raysweep.common.errors import ConfigError, WorldError
from raysweep.data import image_folder
from raysweep.data.split import SPLITS, load_split
from staging import stage_into


def draw(folder: Path, classes: dict[str, int], side: tuple[int, int] = (40, 60), **options: Any) -> Path:
    """Images of one colour a class, `classes` says how many of each."""
    for number, (name, count) in enumerate(classes.items()):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", side, (10 + 60 * number, i, 200)).save(folder / name / f"{i:03d}.png", **options)
    return folder


def draw_known(folder: Path) -> Path:
    """Images of 4 by 4 pixels in colour, in grey and of 16 bits, some of them in folders below those of the classes."""
    for label, name in enumerate(("cat", "dog")):
        (folder / name / "more").mkdir(parents=True)
        for i in range(10):
            shades = (np.arange(48).reshape(4, 4, 3) * (i + 1) + 50 * label).astype(np.uint8)
            Image.fromarray(shades).save(folder / name / f"{i}.png")
            Image.fromarray(shades[:, :, 0]).save(folder / name / f"more/grey{i}.bmp")
            Image.fromarray(shades[:, :, 0].astype(np.uint16) * 257).save(folder / name / f"deep{i}.png")
    return folder


class TestFolderOfImages:
    def test_with_a_folder_test_all_of_train_is_split_into_training_and_validation(self, tmp_path: Path) -> None:
        draw(tmp_path / "own/train", {"cat": 10, "dog": 20})
        draw(tmp_path / "own/test", {"cat": 2, "dog": 3})
        manifest = stage_into(tmp_path, tmp_path / "own", checksum="upstream", image_size=16)
        assert manifest.splits == {"train": 27, "validation": 3, "test": 5}
        assert manifest.classes == ("cat", "dog")
        assert (manifest.image_shape, manifest.synthetic, manifest.checksum) == ((3, 16, 16), False, None)
        images, labels = load_split(tmp_path / "data", "test")
        assert labels.tolist() == [0, 0, 1, 1, 1]
        assert images[:, :, 8, 8].tolist() == [[10, 0, 200], [10, 1, 200], [70, 0, 200], [70, 1, 200], [70, 2, 200]]

    def test_without_one_a_part_of_each_class_is_set_aside_and_no_image_is_in_two_splits(self, tmp_path: Path) -> None:
        draw(tmp_path / "own", {"cat": 20, "dog": 40, "emu": 60})
        manifest = stage_into(tmp_path, tmp_path / "own", test_fraction=0.25)
        assert (manifest.splits, manifest.test_fraction) == ({"train": 81, "validation": 9, "test": 30}, 0.25)
        found = []
        for split in SPLITS:
            images, labels = load_split(tmp_path / "data", split)
            assert images.shape[1:] == (3, 32, 32)
            found += [(int(label), int(image[1, 0, 0])) for image, label in zip(images, labels, strict=True)]
        assert sorted(found) == [(label, i) for label, count in enumerate((20, 40, 60)) for i in range(count)]
        assert np.bincount(load_split(tmp_path / "data", "test")[1]).tolist() == [5, 10, 15]

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

    def test_images_of_16_bits_keep_their_shades_and_are_refused_beside_floats(self, tmp_path: Path) -> None:
        draw(tmp_path / "own", {"a": 1, "b": 1})
        ramp = np.linspace(0, 65535, 100).astype(np.uint16).reshape(10, 10)
        Image.fromarray(ramp).save(tmp_path / "own/a/000.png")
        images, _ = image_folder.read(tmp_path / "own", 10)[0]["train"]
        np.testing.assert_allclose(images[0, 0], ramp >> 8, atol=1)
        Image.fromarray(ramp.astype(np.float32)).save(tmp_path / "own/b/000.tiff")
        with pytest.raises(WorldError, match=r"own: the pixels of 1 images are whole numbers .*, those of 1 are floats"):
            image_folder.read(tmp_path / "own", 10)

    def test_folders_beside_train_and_test_are_refused_and_hidden_ones_passed_over(self, tmp_path: Path) -> None:
        draw(tmp_path / "own/train", {"a": 4, "b": 4})
        draw(tmp_path / "own/train/a", {".ipynb_checkpoints": 2})
        (tmp_path / "own/test").mkdir()
        draw(tmp_path / "own/test", {"a": 2, "b": 2})
        assert sum(stage_into(tmp_path, tmp_path / "own", validation_fraction=0.25).splits.values()) == 12
        draw(tmp_path / "own/val", {"a": 1, "b": 1})
        with pytest.raises(WorldError, match=r"own: has val beside train\. The validation split is drawn from train"):
            stage_into(tmp_path, tmp_path / "own")

    def test_the_identity_of_images_is_the_same_in_all_versions_of_the_workflow(self, tmp_path: Path) -> None:
        for folder in ("own", "two/train", "two/test"):
            draw_known(tmp_path / folder)
        manifest = stage_into(tmp_path, tmp_path / "own", image_size=4)
        assert manifest.data_sha256 == "67537f5acb49193b696591ab4f7b27bb7b4467b5f762e5e083a30004b4c2af3a"  # as staged by 0.1.0
        manifest = stage_into(tmp_path, tmp_path / "two", image_size=4, validation_fraction=0.25)
        assert manifest.data_sha256 == "9743423c4a5dd88faf2894745e92f6c3cb4e332fad9000f5235e215009e4b2a3"

    def test_the_same_images_have_the_same_identity_wherever_they_lie(self, tmp_path: Path) -> None:
        found = [stage_into(tmp_path, draw(tmp_path / name, {"a": 5, "b": 5})).data_sha256 for name in ("x", "y")]
        assert found[0] == found[1]

    def test_what_is_no_image_by_its_name_is_passed_over_and_named(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        draw(tmp_path / "own", {"a": 5, "b": 5})
        for name in ("notes.txt", ".hidden"):
            (tmp_path / "own/a" / name).touch()
        (tmp_path / "own/.git").mkdir()
        with caplog.at_level("INFO", "raysweep"):
            assert sum(stage_into(tmp_path, tmp_path / "own").splits.values()) == 10
        assert "own: 1 files are not images by their names and are ignored (1 .txt)" in caplog.text

    def test_what_is_not_laid_out_so_is_one_line(self, tmp_path: Path) -> None:
        own = draw(tmp_path / "own", {"a": 5})
        with pytest.raises(
            WorldError, match=r"own: has 1 folders of images; there have to be two classes or more\. A folder of images has"
        ):
            stage_into(tmp_path, own)
        (own / "b").mkdir()
        with pytest.raises(WorldError, match=r"b: holds no image, such as a \.png or \.jpg\."):
            stage_into(tmp_path, own)
        (own / "b/torn.png").write_bytes((own / "a/000.png").read_bytes()[:60])
        with pytest.raises(WorldError, match=r"b/torn\.png: cannot be read as an image \(.+\)\. Mend it, or take it away\."):
            stage_into(tmp_path, own)
        assert not (tmp_path / "data").exists()
        draw(tmp_path / "other/test", {"a": 1, "b": 1})
        with pytest.raises(WorldError, match=r"other: has a folder `test`, but no `train`"):
            stage_into(tmp_path, tmp_path / "other")
        draw(tmp_path / "other/train", {"a": 1, "c": 1})
        with pytest.raises(WorldError, match=r"only one of them has b, c\."):
            stage_into(tmp_path, tmp_path / "other")

    def test_each_class_is_in_each_split_or_the_set_is_refused(self, tmp_path: Path) -> None:
        stage_into(tmp_path, draw(tmp_path / "own", {"cat": 40, "dog": 3, "emu": 4}), validation_fraction=0.1)
        counts = [np.bincount(load_split(tmp_path / "data", split)[1]).tolist() for split in SPLITS]
        assert np.min(counts) >= 1
        assert np.sum(counts, axis=0).tolist() == [40, 3, 4]
        with pytest.raises(ConfigError, match=r"^datasets\.cifar10\.source: each class needs at least 3 rows, .*: 'dog' \(2\)\."):
            stage_into(tmp_path, draw(tmp_path / "few", {"cat": 40, "dog": 2}))
        draw(tmp_path / "two/train", {"cat": 40, "dog": 2})
        draw(tmp_path / "two/test", {"cat": 1, "dog": 1})
        assert stage_into(tmp_path, tmp_path / "two").splits["test"] == 2
        (tmp_path / "two/train/dog/000.png").unlink()
        with pytest.raises(ConfigError, match=r"each class needs at least 2 rows, one for each of train, validation\..*: 'dog' \(1\)"):
            stage_into(tmp_path, tmp_path / "two")

    def test_its_keys_are_refused_where_they_mean_nothing(self, tmp_path: Path, archive: Path) -> None:
        with pytest.raises(ConfigError, match=r"datasets\.cifar10\.image_size: 16 is for a folder of images, which .* is not"):
            stage_into(tmp_path, archive, image_size=16)
        with pytest.raises(ConfigError, match=r"datasets\.cifar10\.test_fraction: 0\.5 is for a folder of images"):
            stage_into(tmp_path, "synthetic", test_fraction=0.5)
        draw(tmp_path / "own/train", {"a": 5, "b": 5})
        draw(tmp_path / "own/test", {"a": 5, "b": 5})
        with pytest.raises(ConfigError, match=r"test_fraction: 0\.5 is for a source without a test part"):
            stage_into(tmp_path, tmp_path / "own", test_fraction=0.5)
        with pytest.raises(ConfigError, match=r"checksum: 'md5:.*' is for a file, but .* is none"):
            stage_into(tmp_path, tmp_path / "own", checksum="md5:" + "0" * 32)
        with pytest.raises(ConfigError, match=r"datasets\.cifar10\.test_fraction: 0\.01 of 10 rows leaves test without any"):
            stage_into(tmp_path, draw(tmp_path / "few", {"a": 5, "b": 5}), test_fraction=0.01)
