"""The report's figures as files, for a paper: each as SVG, and what they show as CSV."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path
from typing import Any

import vl_convert

from raysweep.report.charts import CONFIG, Spec

STYLE = Path(__file__).parent / "templates" / "report.css"
WIDTH = 640  # pixels, where the page's own width would count
WITH_DATA = ("importance", "contour", "rungs", "best_by_cost", "running", "confirmation")  # figures whose data no other one shares


def write_figures(folder: Path, specs: dict[str, Spec], data: dict[str, dict[str, list[Any]]], names: list[str]) -> None:
    """Write all figures, and their data, to a folder that is emptied before. `names`: of the keys that vary, in their order."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    colours = _colours()
    datasets = {name: _rows(columns) for name, columns in data.items()}
    for figure, spec in specs.items():
        used = {name: rows for name, rows in datasets.items() if f'"name": "{name}"' in json.dumps(spec)}
        whole = spec | {"datasets": used, "width": WIDTH, "autosize": {"type": "fit-x", "contains": "padding"}}
        svg = vl_convert.vegalite_to_svg(_coloured(whole, colours), config=_coloured(CONFIG, colours) | {"background": "white"})
        (folder / f"{_file_name(figure, names)}.svg").write_text(svg, encoding="utf-8")
    for name, columns in data.items():
        _write_csv(folder / f"{name}.csv", _rows(_readable(columns, names)))
    for figure in WITH_DATA:
        if figure in specs:
            _write_csv(folder / f"{figure}.csv", _values_of(specs[figure]))


def _file_name(figure: str, names: list[str]) -> str:
    """`key0` is called by its key as well, as far as that can stand in a file's name."""
    number = re.fullmatch(r"key(\d+)", figure)
    return f"{figure}_{re.sub(r'[^A-Za-z0-9.-]+', '_', names[int(number[1])])[:60]}" if number else figure


def _colours() -> dict[str, str]:
    """The page's colours on a light screen, by name."""
    root = STYLE.read_text(encoding="utf-8").partition("}")[0]
    return dict(re.findall(r"--([a-z0-9]+): (#[0-9a-f]+)", root))


def _coloured(value: Any, colours: dict[str, str]) -> Any:
    """A specification with colours in place of their names: a file has no style sheet."""
    text = re.sub(r"var\(--([a-z0-9]+)\)", lambda match: colours.get(match[1], match[0]), json.dumps(value))
    return json.loads(text)


def _rows(columns: dict[str, list[Any]]) -> list[dict[str, Any]]:
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _readable(columns: dict[str, list[Any]], names: list[str]) -> dict[str, list[Any]]:
    """Columns of keys under the keys' own names; without those that only place a point."""
    keys = {f"config{i}": f"config/{name}" for i, name in enumerate(names)}
    return {keys.get(name, name): values for name, values in columns.items() if not name.startswith("axis")}


def _values_of(spec: Spec) -> list[dict[str, Any]]:
    """The rows that stand in a figure itself, or in its first layer."""
    return (spec["layer"][0].get("data") or spec["data"])["values"]


def _write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]) if rows else [], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
