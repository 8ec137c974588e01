"""The table of all keys in config/README.md, made from the schema."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import yaml

from raysweep.common.errors import RaysweepError
from raysweep.config.schema import NAMED, PATH_TO_SCHEMA, Schema, allowed, load_schema, options_by_name, required_keys, resolved

PATH_TO_README = PATH_TO_SCHEMA.with_name("README.md")
BEGIN, END = "<!-- begin of the generated table -->\n", "<!-- end of the generated table -->\n"
PLACEHOLDERS = {"datasets": "<dataset>", "sweeps": "<sweep>"}  # stand for the names that the user gives
HEADER = ("key", "allowed", "default", "meaning")

Row = tuple[str, ...]


def with_table(text: str, table: str, path: Path) -> str:
    """Return the text of a document with `table` between its two marks. Raises RaysweepError where `path`, the document, lacks a mark."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise RaysweepError(f"{path} has lost one of its marks: it needs the lines {BEGIN.strip()} and {END.strip()}")
    return f"{before}{begin}\n{table}\n{end}{after}"


def reference() -> str:
    """Return a Markdown table with a row for each key of the schema, and a row for each option of a search algorithm or scheduler."""
    lines = [HEADER, ("---",) * len(HEADER), *_rows(load_schema(), ())]
    return "".join("| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |\n" for line in lines)


def _rows(schema: Schema, path: tuple[str, ...]) -> Iterator[Row]:
    """Yield the rows of all keys of a map."""
    for key, below in schema["properties"].items():
        below, here, is_required = resolved(below), (*path, key), key in required_keys(schema)
        if "additionalProperties" in below:
            yield f"**`{'.'.join(here)}`**", "", "required" if is_required else "", below["description"]
            named = below["additionalProperties"]
            yield from _rows(named or below, (*here, PLACEHOLDERS[key]) if named else here)
        else:
            yield _row(here, below, default="required" if is_required else _default(below))
        for name, options in options_by_name(key).items() if key in NAMED else ():
            for option, option_schema in options.items():
                yield _row((*here, option), option_schema, default=_default(option_schema), name=f"{name}: ")


def _row(path: tuple[str, ...], schema: Schema, *, default: str, name: str = "") -> Row:
    """Return the row of one key. `name` stands before the description."""
    unit = f" ({schema['unit']})" if "unit" in schema and "minutes" not in allowed(schema) else ""
    allowed_text = (allowed(schema) + unit).replace("<", "&lt;")  # Markdown takes <…> for HTML
    return f"`{'.'.join(path)}`", allowed_text, default, name + schema["description"]


def _default(schema: Schema) -> str:
    """Return the default of a key as the config would hold the default, on one line."""
    if "default" not in schema:
        return ""
    text: str = yaml.safe_dump(schema["default"], default_flow_style=True, width=1000)
    return f"`{text.splitlines()[0]}`"  # a second line may hold `...`, the end of a YAML document
