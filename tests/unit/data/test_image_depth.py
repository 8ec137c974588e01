from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from raysweep.common.errors import WorldError
from raysweep.data import image_folder


def read(root: Path) -> np.ndarray:
    """Return the images of a set of 4 by 4 pixels, uint8 [n, 3, 4, 4]."""
    return image_folder.read(root, 4)[0]["train"][0]


def save(root: Path, *images: np.ndarray, ending: str = "png") -> Path:
    """Write images of 4 by 4 pixels in turn into two classes: a has the even ones."""
    for number, pixels in enumerate(images):
        path = root / "ab"[number % 2] / f"{number}.{ending}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    return root


def flat(*values: float, dtype: type = np.uint16) -> list[np.ndarray]:
    return [np.full((4, 4), value, dtype) for value in values]


def write_deep_png(path: Path, pixels: np.ndarray) -> None:
    """Write colours of 16 bits, which Pillow can read but not write."""
    height, width, _ = pixels.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    path.parent.mkdir(parents=True, exist_ok=True)
    content = b"\x89PNG\r\n\x1a\n"
    for kind, data in ((b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")):
        content += struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    path.write_bytes(content)


@pytest.mark.parametrize("ending", ["png", "tiff"])
@pytest.mark.parametrize(
    ("values", "shades"),
    [
        ((0, 1000, 4095), [0, 62, 255]),  # 12 bits in 16
        ((0, 200, 1023), [0, 50, 255]),  # 10 bits
        ((0, 30000, 65535), [0, 117, 255]),  # the high byte
        ((40, 100, 210), [40, 100, 210]),  # 8 bits in 16
        ((30000, 40000, 60000), [117, 156, 234]),  # the high byte, where that leaves enough shades
        ((30000, 30040, 30100), [0, 102, 255]),  # a narrow window, whose bits above 8 are all the same
        ((0, 10, 20), [0, 128, 255]),
        ((7, 7, 7), [0, 0, 0]),  # no differences to show
    ],
)
def test_whole_numbers_are_scaled_by_the_range_of_the_set(values: tuple[int, ...], shades: list[int], ending: str, tmp_path: Path) -> None:
    images = read(save(tmp_path, *flat(*values, values[1]), ending=ending))
    order = [0, 2, 1]  # class a has the first and the third
    assert images[:3, :, 1, 1].tolist() == [[shades[i]] * 3 for i in order]


def test_a_line_says_how_the_values_were_scaled(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save(tmp_path, *flat(0, 4095, 1000, 2000))
    save(tmp_path / "a", np.full((4, 4), 9, np.uint8))
    with caplog.at_level("INFO", "raysweep"):
        images = read(tmp_path)
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path}: the pixels of 4 images are whole numbers of more than 8 bits, 0 to 4095: divided by 16; the other 1 images keep their 8 bits"
    ]
    assert sorted(images[:, 0, 0, 0].tolist()) == [0, 9, 62, 125, 255]


def test_sets_of_8_bits_are_scaled_by_nothing_and_no_line_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "raysweep"):
        assert read(save(tmp_path, *flat(3, 5, 9, 7, dtype=np.uint8)))[:, 0, 0, 0].tolist() == [3, 9, 5, 7]
    assert not caplog.records


def test_both_parts_have_one_scale(tmp_path: Path) -> None:
    save(tmp_path / "train", *flat(0, 500, 1000, 1000))
    save(tmp_path / "test", *flat(1000, 4000))
    parts, _ = image_folder.read(tmp_path, 4)
    assert parts["train"][0][:, 0, 0, 0].tolist() == [0, 62, 31, 62]
    assert parts["test"][0][:, 0, 0, 0].tolist() == [62, 250]


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-1.0, 1.0), (-1000.0, 3000.0), (0.0, 1e-20)])
def test_floats_are_scaled_by_their_own_range(low: float, high: float, tmp_path: Path) -> None:
    images = read(save(tmp_path, *flat(low, high, (low + high) / 2, high, dtype=np.float32), ending="tiff"))
    assert images[:, 0, 0, 0].tolist() == [0, 128, 255, 255]


def test_numbers_below_zero_are_scaled_by_their_own_range(tmp_path: Path) -> None:
    images = read(save(tmp_path, *flat(-1000, 3000, 1000, 3000, dtype=np.int32), ending="tiff"))
    assert images[:, 0, 0, 0].tolist() == [0, 128, 255, 255]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_floats_that_are_no_numbers_are_refused(value: float, tmp_path: Path) -> None:
    save(tmp_path, *flat(0, value, 1, 1, dtype=np.float32), ending="tiff")
    with pytest.raises(WorldError, match=r"b/1\.tiff: cannot be read as an image \(some of its pixels are NaN or infinite\)"):
        read(tmp_path)


def test_floats_beside_whole_numbers_are_refused(tmp_path: Path) -> None:
    save(tmp_path, *flat(0, 300))
    save(tmp_path, *flat(0, 1, dtype=np.float32), ending="tiff")
    with pytest.raises(
        WorldError, match=r"the pixels of 2 images are whole numbers .*, those of 2 are floats.* Save all images in one format"
    ):
        read(tmp_path)


def test_one_image_that_would_make_the_others_black_is_named(tmp_path: Path) -> None:
    save(tmp_path, *flat(100, 4000, 3000, 65535, 200))
    with pytest.raises(WorldError, match=r"b/3\.png: has values up to 65535, but those of half of the 5 images .* end at 3000"):
        read(tmp_path)


def test_colours_of_16_bits_keep_their_high_byte_and_are_refused_where_that_is_black(tmp_path: Path) -> None:
    for number, value in enumerate((0, 65535)):
        write_deep_png(tmp_path / "ab"[number] / "0.png", np.full((4, 4, 3), (value, 30000, 256), np.uint16))
    assert read(tmp_path)[:, :, 0, 0].tolist() == [[0, 117, 1], [255, 117, 1]]
    for name in "ab":
        write_deep_png(tmp_path / "dark" / name / "0.png", np.full((4, 4, 3), 4095, np.uint16))
    with pytest.raises(WorldError, match=r"dark: its 2 images with colours of 16 bits use less than a sixteenth of the range 0 to 65535"):
        read(tmp_path / "dark")
