"""This module makes the table of all config keys in config/README.md from the schema."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import yaml

from raysweep.common.errors import RaysweepError
from raysweep.config.schema import PATH_TO_SCHEMA, Schema, allowed, is_named, load_schema, options_by_name, required_keys, resolved

PATH_TO_README = PATH_TO_SCHEMA.with_name("README.md")
BEGIN, END = "<!-- begin of the generated table -->\n", "<!-- end of the generated table -->\n"
PLACEHOLDERS = {"datasets": "<dataset>", "sweeps": "<sweep>"}  # These texts stand for names that the user chooses.
HEADER = ("key", "allowed", "default", "meaning")

Row = tuple[str, ...]


def with_table(text: str, table: str, path: Path) -> str:
    """Return the text of a document with `table` between the lines BEGIN and END.

    `path` is the path of the document for the error. Raises RaysweepError where the document lacks one of the two lines.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise RaysweepError(f"{path} has lost one of its marks: it needs the lines {BEGIN.strip()} and {END.strip()}")
    return f"{before}{begin}\n{table}\n{end}{after}"


def reference() -> str:
    """Return a Markdown table with one row for each key of the schema and for each option of a value that has a name and options."""
    lines = [HEADER, ("---",) * len(HEADER), *_rows(load_schema(), ())]
    return "".join("| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |\n" for line in lines)


def _rows(schema: Schema, path: tuple[str, ...]) -> Iterator[Row]:
    """Yield the table rows of all keys in the map that `schema` describes. `path` leads to the map."""
    for key, below in schema["properties"].items():
        below, here = resolved(below), (*path, key)
        required = _required(key, schema)
        if "additionalProperties" in below:
            yield f"**`{'.'.join(here)}`**", "", required, below["description"]
            named = below["additionalProperties"]
            yield from _rows(named or below, (*here, PLACEHOLDERS[key]) if named else here)
        else:
            yield _row(here, below, default=required or _default(below))
        for name, options in options_by_name(key).items() if is_named(here) else ():
            for option, option_schema in options.items():
                yield _row((*here, option), option_schema, default=_default(option_schema), name=f"{name}: ")


def _required(key: str, schema: Schema) -> str:
    """Return whether a key of a map is required, as a text for the column `default`, or "" where the key is not required."""
    if other := schema.get("required_unless", {}).get(key):
        return f"required, unless there are `{other}`"
    return "required" if key in required_keys(schema) else ""


def _row(path: tuple[str, ...], schema: Schema, *, default: str, name: str = "") -> Row:
    """Return the table row of one key. `name` is text in front of the description, such as the name of the scheduler that has the option."""
    unit = f" ({schema['unit']})" if "unit" in schema and "minutes" not in allowed(schema) else ""
    allowed_text = (allowed(schema) + unit).replace("<", "&lt;")  # Markdown would read <…> as HTML.
    return f"`{'.'.join(path)}`", allowed_text, default, name + schema["description"]


def _default(schema: Schema) -> str:
    """Return the default of a key as one line of YAML, or "" where the key has no default."""
    if "default" not in schema:
        return ""
    text: str = yaml.safe_dump(schema["default"], default_flow_style=True, width=1000)
    return f"`{text.splitlines()[0]}`"  # The second line may be `...`, the end mark of YAML.
