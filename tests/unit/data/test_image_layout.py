from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from raysweep.common.errors import WorldError
from raysweep.data.image_layout import read_layout


def draw(root: Path, *paths: str) -> Path:
    """Write an image, or an empty file where the name is that of no image, at each path below `root`."""
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        if path.endswith(".png"):
            Image.new("L", (2, 2)).save(root / path)
        else:
            (root / path).touch()
    return root


def in_classes(*splits: str, classes: tuple[str, ...] = ("cat", "dog")) -> list[str]:
    return [f"{split}/{name}/0.png" for split in splits for name in classes]


def names(root: Path) -> dict[str, dict[str, list[str]]]:
    """Return the paths of the images by part and class."""
    parts = read_layout(root).parts
    return {
        part: {name: [str(path.relative_to(root)) for path in paths] for name, paths in classes.items()} for part, classes in parts.items()
    }


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("train", "test"),
        ("Training", "Testing"),
        ("Train", "Test"),
        ("TRAIN", "TEST"),
        ("seg_train", "seg_test"),
        ("seg_train/seg_train", "seg_test/seg_test"),
        ("train_set", "test-set"),
        ("01 training", "02 testing"),
        ("trainset", "Testset"),
    ],
)
def test_folders_with_the_names_of_splits_and_the_same_classes_are_splits(train: str, test: str, tmp_path: Path) -> None:
    draw(tmp_path, *in_classes(train, test))
    assert names(tmp_path) == {
        "train": {"cat": [f"{train}/cat/0.png"], "dog": [f"{train}/dog/0.png"]},
        "test": {"cat": [f"{test}/cat/0.png"], "dog": [f"{test}/dog/0.png"]},
    }


@pytest.mark.parametrize("train", ["train", "Training"])
def test_a_training_split_alone_is_a_split(train: str, tmp_path: Path) -> None:
    assert list(names(draw(tmp_path, *in_classes(train), f"{train}/stray.png"))) == ["train"]
    assert read_layout(tmp_path).classes == ["cat", "dog"]


@pytest.mark.parametrize(
    ("paths", "classes"),
    [
        (["bus/0.png", "train/0.png"], ["bus", "train"]),
        (["bus/a/0.png", "bus/b/0.png", "freight_train/a/0.png", "freight_train/c/0.png"], ["bus", "freight_train"]),
        (["freight_train/0.png", "passenger_train/0.png"], ["freight_train", "passenger_train"]),
        (["crash_test/0.png", "road/0.png"], ["crash_test", "road"]),
        (["cat/images/0.png", "dog/images/0.png"], ["cat", "dog"]),
        (["cat/siamese/0.png", "cat/persian/0.png", "dog/poodle/0.png"], ["cat", "dog"]),
        (["Cat/0.png", "cat/0.png"], ["Cat", "cat"]),
    ],
)
def test_folders_that_only_resemble_splits_are_classes(paths: list[str], classes: list[str], tmp_path: Path) -> None:
    assert read_layout(draw(tmp_path, *paths)).classes == classes


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (in_classes("fold_0", "fold_1", "fold_2"), r"fold_0, fold_1, fold_2 look like folds, not like classes\. Write train/<class>/…"),
        (["Fold1/0.png", "Fold2/0.png"], "Fold1, Fold2 look like folds"),
        (["split-1/cat/0.png", "split-2/dog/0.png"], "look like folds"),
        (
            ["train/0.png", "test/0.png"],
            r"test, train look like splits, but do not hold the same folders of classes\. Write train/<class>/…",
        ),
        (["Training/0.png", "Testing/0.png", "more/0.png"], "Testing, Training look like splits"),
        (["cats_train/0.png", "cats_test/0.png", "dogs_train/0.png", "dogs_test/0.png"], "cats_test, .*dogs_train look like splits"),
        (in_classes("seg_val", "seg_test"), "seg_test, seg_val look like splits"),
        (
            in_classes("site A", "site B"),
            "site A and site B hold the same folders cat, dog, so it is not clear which folders are the classes",
        ),
        (["cat/0.png", "dog/0.png", *in_classes("augmented")], "augmented and the folder itself hold the same folders cat, dog"),
        (["Covid/images/0.png", "Covid/masks/0.png", "Normal/images/0.png", "Normal/masks/0.png"], "hold the same folders images, masks"),
        (in_classes("Test"), r"has a folder `Test`, but no `train`\. A folder of images has"),
        (in_classes("Training", "train"), "Training and train both look like the train split"),
        (
            in_classes("train", "Validation"),
            r"has Validation beside train\. The validation split is drawn from train \(validation_fraction\)",
        ),
        (in_classes("seg_train", "seg_valid"), "has seg_valid beside seg_train"),
        (
            [*in_classes("seg_train", "seg_test"), "seg_pred/0.png"],
            "has seg_pred beside .*Move the images of a class into seg_train/<class>",
        ),
        ([*in_classes("Train"), *in_classes("Test", classes=("cat", "emu"))], "Train and Test have different classes: .* dog, emu"),
        (in_classes("pictures"), r"has 1 folders of images; .* If the classes lie in pictures, give that folder as `source`"),
        (["0.png"], "has 0 folders of images"),
        (["cat/0.png", "dog/features.h5"], r"dog: holds no image, such as a \.png or \.jpg"),
    ],
)
def test_other_layouts_are_refused_in_one_line(paths: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(WorldError, match=message) as caught:
        read_layout(draw(tmp_path, *paths))
    assert "\n" not in str(caught.value)


def test_files_that_are_no_images_are_ignored_and_counted_in_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    others = ["cat/features.h5", "cat/video.mpg", "dog/notes.txt", "labels.csv", "dog/b.TXT", "dog/README"]
    draw(tmp_path, "cat/0.png", "dog/0.png", "cat/.hidden", ".git/config", *others)
    with caplog.at_level("INFO", "raysweep"):
        assert names(tmp_path) == {"train": {"cat": ["cat/0.png"], "dog": ["dog/0.png"]}}
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path}: 6 files are not images by their names and are ignored (2 .txt, 1 .csv, 1 .h5)"
    ]


def test_images_beside_the_classes_are_ignored_and_counted_in_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "raysweep"):
        read_layout(draw(tmp_path, *in_classes("train", "test"), "cover.png", "train/0.png"))
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path}: 2 images lie beside the folders of the classes and are ignored, because they have no class"
    ]


class TestLinks:
    def test_folders_and_files_behind_links_count(self, tmp_path: Path) -> None:
        draw(tmp_path / "store", "felis/0.png", "felis/1.png", "more/2.png")
        own = draw(tmp_path / "own", "dog/0.png")
        (own / "cat").symlink_to(tmp_path / "store/felis")
        (own / "dog/more").symlink_to(tmp_path / "store/more", target_is_directory=True)
        (own / "dog/1.png").symlink_to(tmp_path / "store/felis/1.png")
        assert names(own) == {"train": {"cat": ["cat/0.png", "cat/1.png"], "dog": ["dog/0.png", "dog/1.png", "dog/more/2.png"]}}

    def test_a_split_may_be_a_link(self, tmp_path: Path) -> None:
        draw(tmp_path / "store", *in_classes("a", "b"))
        (tmp_path / "own").mkdir()
        for split, folder in (("Training", "a"), ("Testing", "b")):
            (tmp_path / "own" / split).symlink_to(tmp_path / "store" / folder)
        assert set(names(tmp_path / "own")) == {"train", "test"}

    def test_a_folder_that_is_linked_twice_is_no_loop(self, tmp_path: Path) -> None:
        draw(tmp_path, "cat/0.png", "dog/0.png")
        (tmp_path / "cat/more").symlink_to(tmp_path / "dog")
        assert names(tmp_path)["train"]["cat"] == ["cat/0.png", "cat/more/0.png"]

    @pytest.mark.parametrize("name", ["emu", "cat/1.png", "cat/more"])
    def test_a_link_that_leads_nowhere_is_one_line(self, name: str, tmp_path: Path) -> None:
        draw(tmp_path, "cat/0.png", "dog/0.png")
        (tmp_path / name).symlink_to("/no/such/place")
        with pytest.raises(WorldError, match=f"{name}: is a link to '/no/such/place', which does not exist. Mend the link, or remove it"):
            read_layout(tmp_path)

    @pytest.mark.parametrize("target", [".", "..", "../..", "self"])
    def test_a_loop_is_one_line(self, target: str, tmp_path: Path) -> None:
        own = draw(tmp_path / "own", "cat/0.png", "dog/0.png")
        (own / "cat/self").symlink_to(target)
        with pytest.raises(
            WorldError, match=r"self(/own)?: (a link in this path leads back to .* Remove the link|is a link to 'self', .* or remove it)\.$"
        ):
            read_layout(own)
