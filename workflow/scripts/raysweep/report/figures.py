"""The report's figures as files, for a paper: each as SVG, and what they show as CSV."""

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
WIDTH = 640  # pixels; on the page, the page decides
WITH_DATA = ("importance", "contour", "rungs", "best_by_cost", "running", "confirmation")  # figures with data of their own

Row = dict[str, Any]


def write_figures(folder: Path, specs: dict[str, Spec], data: dict[str, Columns], key_names: list[str]) -> None:
    """Write all figures and their data to a folder, which is emptied first. `key_names` are the names of the keys that vary, in order."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    colours = _colours()
    datasets = {name: _rows(columns) for name, columns in data.items()}
    config = _coloured(CONFIG, colours) | {"background": "white"}
    for figure, spec in specs.items():
        used = {name: rows for name, rows in datasets.items() if f'"name": "{name}"' in json.dumps(spec)}
        whole = spec | {"datasets": used, "width": WIDTH, "autosize": {"type": "fit-x", "contains": "padding"}}
        svg = vl_convert.vegalite_to_svg(_coloured(whole, colours), config=config)
        (folder / f"{_file_name(figure, key_names)}.svg").write_text(svg, encoding="utf-8")
    for name, columns in data.items():
        _write_csv(folder / f"{name}.csv", _rows(_readable(columns, key_names)))
    for figure in WITH_DATA:
        if figure in specs:
            _write_csv(folder / f"{figure}.csv", _values_of(specs[figure]))


def _file_name(figure: str, key_names: list[str]) -> str:
    """Return the name of a figure's file; `key0` is followed by the name of its key, as far as a file's name can hold that name."""
    match = re.fullmatch(r"key(\d+)", figure)
    return f"{figure}_{re.sub(r'[^A-Za-z0-9.-]+', '_', key_names[int(match[1])])[:60]}" if match else figure


def _colours() -> dict[str, str]:
    """Return the page's colours on a light screen, by name."""
    root = STYLE.read_text(encoding="utf-8").partition("}")[0]
    return dict(re.findall(r"--([a-z0-9]+): (#[0-9a-f]+)", root))


def _coloured(spec: Spec, colours: dict[str, str]) -> Spec:
    """Return a specification with colours in place of their names, because a file has no style sheet."""
    text = re.sub(r"var\(--([a-z0-9]+)\)", lambda match: colours.get(match[1], match[0]), json.dumps(spec))
    coloured: Spec = json.loads(text)
    return coloured


def _rows(columns: Columns) -> list[Row]:
    """Return the rows of columns."""
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _readable(columns: Columns, key_names: list[str]) -> Columns:
    """Return the columns with the names of the keys, and without the columns that only place a point."""
    names = {f"config{i}": f"config/{name}" for i, name in enumerate(key_names)}
    return {names.get(name, name): values for name, values in columns.items() if not name.startswith("axis")}


def _values_of(spec: Spec) -> list[Row]:
    """Return the rows that a figure, or its first layer, holds."""
    rows: list[Row] = (spec["layer"][0].get("data") or spec["data"])["values"]
    return rows


def _write_csv(path: Path, rows: list[Row]) -> None:
    """Write rows with one header line."""
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]) if rows else [], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
