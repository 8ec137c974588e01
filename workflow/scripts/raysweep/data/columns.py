"""Converts the columns of a table to the inputs of a model, with the categories and the fill values of the training part.

A number stays one column. A text column becomes one column of 0 and 1 for each category of the training part, and one for all texts that the training part
does not have. A linear layer on these columns is the same as an embedding of the categories.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from raysweep.common.errors import ConfigError, logger
from raysweep.common.text import value_text
from raysweep.data.figures import figures_of
from raysweep.data.manifest import Column, Figures

MAX_CATEGORIES = 256  # largest number of categories of a text column


@dataclass(frozen=True)
class Raw:
    """Describes a column as it was read. `categories` are the texts whose numbers the column contains, and empty for a column of numbers."""

    name: str
    categories: tuple[str, ...]


def fit(raws: Sequence[Raw], train: np.ndarray, num_missing: np.ndarray, place: str) -> tuple[Column, ...]:
    """Return how the columns are converted, from the training rows `train`, float64 [n, columns]. `num_missing` is [columns], of all rows.

    One line says which columns have missing values. Raises ConfigError for a column without any value in the training rows.
    """
    columns = []
    for raw, values, missing in zip(raws, train.T, num_missing.tolist(), strict=True):
        present = values[~np.isnan(values)]
        if not len(present):
            raise ConfigError(f"{place}: column {raw.name!r} has no value in any training row. Remove the column.")
        if raw.categories:
            counts = np.bincount(present.astype(np.int64), minlength=len(raw.categories))
            categories = tuple(name for name, count in zip(raw.categories, counts, strict=True) if count)
            columns.append(Column(raw.name, raw.categories[int(np.argmax(counts))], missing, categories))
        else:
            columns.append(Column(raw.name, float(present.mean()), missing))
    if constant := [column.name for column in columns if len(column.categories) == 1]:
        more = f" and {len(constant) - 5} more" if len(constant) > 5 else ""
        logger.warning("%s: %d columns have one text in all training rows: %s%s", place, len(constant), ", ".join(constant[:5]), more)
    if filled := [f"{column.name} ({column.missing:,}, with {value_text(column.fill)})" for column in columns if column.missing]:
        more = f" and {len(filled) - 5} more" if len(filled) > 5 else ""
        logger.info("%s: missing values are filled from the training part: %s%s", place, ", ".join(filled[:5]), more)
    return tuple(columns)


def encode(raws: Sequence[Raw], columns: Sequence[Column], rows: np.ndarray) -> np.ndarray:
    """Return the inputs of a model, float64 [n, inputs], of the rows of a table as they were read, float64 [n, columns]."""
    parts = []
    for raw, column, values in zip(raws, columns, rows.T, strict=True):
        if column.categories:
            place_of = {name: number for number, name in enumerate(column.categories)}
            # The last place is for texts that the training part does not have.
            places = np.array([place_of.get(name, len(place_of)) for name in raw.categories])
            fill = raw.categories.index(str(column.fill))
            parts.append(np.eye(len(place_of) + 1)[places[np.where(np.isnan(values), fill, values).astype(np.int64)]])
        else:
            parts.append(np.where(np.isnan(values), column.fill, values)[:, None])
    return np.concatenate(parts, axis=1)


def figures_of_table(columns: Sequence[Column], inputs: np.ndarray, place: str) -> Figures:
    """Return the figures of the inputs. Only numbers are standardised, so the columns of a category have the mean 0 and the deviation 1."""
    widths = [len(column.categories) + 1 if column.categories else 1 for column in columns]
    is_number = np.repeat([not column.categories for column in columns], widths)
    mean, deviation = np.zeros(sum(widths)), np.ones(sum(widths))
    if is_number.any():
        figures = figures_of(inputs[:, is_number], place, [column.name for column in columns if not column.categories])
        mean[is_number], deviation[is_number] = figures.mean, figures.deviation
    return Figures(tuple(mean.tolist()), tuple(deviation.tolist()))
