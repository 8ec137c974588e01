"""Writes the figures of the report as SVG files and the data of the figures as CSV files, for use in a paper."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path
from typing import Any

import vl_convert

from raysweep.report.charts.parts import CONFIG, Columns, Spec

STYLE = Path(__file__).parent / "templates" / "report.css"
WIDTH = 640  # width in pixels of a figure in an SVG file; the HTML page uses other widths
# Figures that contain their own data in the specification. These data also become CSV files.
WITH_DATA = ("importance", "contour", "rungs", "best_by_cost", "running", "gpu_use", "jobs", "confirmation", "confusion", "predicted")

Row = dict[str, Any]


def write_figures(folder: Path, specs: dict[str, Spec], data: dict[str, Columns], key_names: list[str]) -> None:
    """Write all figures and the data of the figures to `folder`. All old files in `folder` are removed first.

    `key_names` contains the names of the keys that vary. The figure `key0` shows the first of these keys, the figure `key1` shows the second key, and so on.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    colours = _colours()
    datasets = {name: _rows(columns) for name, columns in data.items()}
    config = _coloured(CONFIG, colours) | {"background": "white"}
    for figure, spec in specs.items():
        used = {name: datasets[name] for name in datasets if name == spec["data"].get("name")}
        whole = spec | {"datasets": used, "width": WIDTH, "autosize": {"type": "fit-x", "contains": "padding"}}
        svg = vl_convert.vegalite_to_svg(_coloured(whole, colours), config=config)
        (folder / f"{_file_name(figure, key_names)}.svg").write_text(svg, encoding="utf-8")
    for name, columns in data.items():
        _write_csv(folder / f"{name}.csv", _rows(_readable(columns, key_names)))
    for figure in WITH_DATA:
        if figure in specs:
            _write_csv(folder / f"{figure}.csv", _values_of(specs[figure]))


def _file_name(figure: str, key_names: list[str]) -> str:
    """Return the name of a figure's file without the suffix.

    The name of the key follows after `key0`, `key1` and so on. Characters that do not suit a file name become `_`, and the key's name is cut to 60 characters.
    """
    match = re.fullmatch(r"key(\d+)", figure)
    return f"{figure}_{re.sub(r'[^A-Za-z0-9.-]+', '_', key_names[int(match[1])])[:60]}" if match else figure


def _colours() -> dict[str, str]:
    """Return the colours of the page's light theme by name."""
    root = STYLE.read_text(encoding="utf-8").partition("}")[0]
    return dict(re.findall(r"--([a-z0-9]+): (#[0-9a-f]+)", root))


def _coloured(spec: Spec, colours: dict[str, str]) -> Spec:
    """Return a copy of `spec` in which each name of a colour is replaced by the colour, because an SVG file has no style sheet."""
    text = re.sub(r"var\(--([a-z0-9]+)\)", lambda match: colours.get(match[1], match[0]), json.dumps(spec))
    coloured: Spec = json.loads(text)
    return coloured


def _rows(columns: Columns) -> list[Row]:
    """Return the rows of a table that is given as columns."""
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _readable(columns: Columns, key_names: list[str]) -> Columns:
    """Return the columns for a CSV file. Columns get the real names of the keys, and columns that only set the position of a point are left out."""
    names = {f"config{i}": f"config/{name}" for i, name in enumerate(key_names)}
    return {names.get(name, name): values for name, values in columns.items() if not name.startswith("axis")}


def _values_of(spec: Spec) -> list[Row]:
    """Return the rows of data that the first layer of a figure contains, or the rows of the whole figure if the first layer contains no data."""
    rows: list[Row] = (spec["layer"][0].get("data") or spec["data"])["values"]
    return rows


def _write_csv(path: Path, rows: list[Row]) -> None:
    """Write `rows` to a CSV file with one header line."""
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]) if rows else [], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
