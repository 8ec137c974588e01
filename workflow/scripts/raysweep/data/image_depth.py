"""Converts pixels of more than 8 bits (16-bit PNG and TIFF, 32-bit integers, floats) to 8 bits, with one scale for the whole data set.

The format of a file does not say which range its values have. For instance, cameras and X-ray devices write values of 10, 12 or 14 bits as 16 bits. The
high byte alone of such a value gives a nearly black image. So the scale is computed from the range of the values in all images of the data set. One
scale for all images keeps the images comparable.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from raysweep.common.errors import WorldError, logger

SHADES = 256  # number of values of an 8-bit pixel
# The scale normally removes the lowest bits. If the data set would then use fewer shades than this number, the range of its values is mapped to 0…255.
MIN_SHADES = 64
# An image whose highest value is below this number of the 256 shades is nearly black. Pillow reads only the high bytes of colours of 16 bits.
MIN_HIGH_BYTES = 16


@dataclass(frozen=True)
class Range:
    """Describes the range of an image's pixels. `kind` is "8 bits", "16-bit colours", "integers" or "floats".

    `low` and `high` are the smallest and the largest pixel value. `low` is 0 for 16-bit colours, and both are 0 for 8 bits, because no scale needs them.
    """

    kind: str
    low: float = 0
    high: float = 0


@dataclass(frozen=True)
class Scale:
    """Converts pixels of more than 8 bits to 8 bits.

    The scale removes the lowest `shift` bits. Where `shift` is None, the scale maps the range low…high to 0…255.
    """

    low: float
    high: float
    shift: int | None

    def apply(self, pixels: np.ndarray) -> np.ndarray:
        """Return the pixels as uint8. The shape does not change."""
        if self.shift is not None:
            return (pixels >> self.shift).astype(np.uint8)
        span = self.high - self.low or 1.0
        return np.round((pixels.astype(np.float64) - self.low) * ((SHADES - 1) / span)).astype(np.uint8)

    def __str__(self) -> str:
        if self.shift is None:
            return f"{self.low:g} to {self.high:g} became 0 to 255"
        return f"divided by {2**self.shift}" if self.shift else "kept as they are"


def is_deep(image: Image.Image) -> bool:
    """Return whether the pixels of an image are floats, or integers of more than 8 bits."""
    return image.mode in ("I", "F") or image.mode.startswith("I;16")


def range_of(image: Image.Image) -> Range:
    """Return the range of an image's pixels. An image of 8 bits is not decoded. Raises ValueError where a float is NaN or infinite."""
    if is_deep(image):
        pixels = np.asarray(image)
        if not np.isfinite(pixels).all():
            raise ValueError("some of its pixels are NaN or infinite")
        return Range("floats" if image.mode == "F" else "integers", pixels.min().item(), pixels.max().item())
    if ";16" in str([tile.args for tile in getattr(image, "tile", [])]):
        return Range("16-bit colours", 0, int(np.asarray(image.convert("RGB")).max()))
    return Range("8 bits")


def choose_scale(folder: Path, ranges: Mapping[Path, Range]) -> Scale | None:
    """Return the scale for the images of more than 8 bits among `ranges`, and log the scale.

    Returns None where no image has more than 8 bits. Raises WorldError where no single scale is suitable for all these images.
    """
    _refuse_dark_colours(folder, [image.high for image in ranges.values() if image.kind == "16-bit colours"])
    integers, floats = ({path: image for path, image in ranges.items() if image.kind == kind} for kind in ("integers", "floats"))
    if integers and floats:
        raise WorldError(
            f"{folder}: the pixels of {len(integers)} images are whole numbers of more than 8 bits, those of {len(floats)} are floats, and these "
            "have no range in common. Save all images in one format."
        )
    deep, kind = (floats, "floats") if floats else (integers, "whole numbers of more than 8 bits")
    if not deep:
        return None
    scale = _scale_of(min(image.low for image in deep.values()), max(image.high for image in deep.values()), is_float=bool(floats))
    _refuse_outlier(deep, scale)
    rest = f"; the other {len(ranges) - len(deep)} images keep their 8 bits" if len(ranges) > len(deep) else ""
    logger.info("%s: the pixels of %d images are %s, %g to %g: %s%s", folder, len(deep), kind, scale.low, scale.high, scale, rest)
    return scale


def _scale_of(low: float, high: float, is_float: bool) -> Scale:
    """Return the scale for pixel values from `low` to `high`.

    For integers of 0 or more the scale removes the lowest bits, so that `high` keeps 8 bits. For instance, where `high` is 65535, all values keep their
    high byte. Where this leaves fewer than MIN_SHADES shades, and for all other values, the scale maps low…high to 0…255.
    """
    if not is_float and low >= 0:
        shift = max(int(high).bit_length() - 8, 0)
        if (int(high) >> shift) - (int(low) >> shift) >= MIN_SHADES:
            return Scale(low, high, shift)
    return Scale(low, high, None)


def _refuse_dark_colours(folder: Path, highest_bytes: list[float]) -> None:
    """Raise WorldError where all images with 16-bit colours would be nearly black. Pillow reads only the high bytes of such colours.

    `highest_bytes` contains the largest high byte of each of these images.
    """
    if highest_bytes and max(highest_bytes) < MIN_HIGH_BYTES:
        raise WorldError(
            f"{folder}: its {len(highest_bytes)} images with colours of 16 bits use less than a sixteenth of the range 0 to 65535, and would be "
            "nearly black. Save them with 8 bits, or scale their values to that range."
        )


def _refuse_outlier(deep: Mapping[Path, Range], scale: Scale) -> None:
    """Raise WorldError where the high values of one image lead to a scale that makes half of the images nearly black."""
    highest = sorted(image.high for image in deep.values())
    median = highest[(len(highest) - 1) // 2]
    if (median - scale.low) * SHADES < (scale.high - scale.low) * MIN_HIGH_BYTES:
        brightest = max(deep, key=lambda path: deep[path].high)
        raise WorldError(
            f"{brightest}: has values up to {scale.high:g}, but those of half of the {len(deep)} images with more than 8 bits end at {median:g}, "
            "so these would be nearly black. Take that image away, or save the images with 8 bits."
        )
