"""Write the table of config/README.md from the schema, or with --check only say whether it is up to date."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from raysweep.common.errors import RaysweepError, logger, run_entry_point, set_up_logging
from raysweep.common.files import written_aside
from raysweep.config.schema import PATH_TO_SCHEMA, allowed, load_schema, required_keys

PATH_TO_README = PATH_TO_SCHEMA.with_name("README.md")
BEGIN, END = "<!-- begin of the generated table -->\n", "<!-- end of the generated table -->\n"
NAMES = {"datasets": "<dataset>", "sweeps": "<sweep>"}  # stand for the names that the user gives
HEADER = ("key", "allowed", "default", "meaning")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--readme", type=Path, default=PATH_TO_README)
    parser.add_argument("--check", action="store_true", help="change nothing; exit code 1 where the table is out of date")
    arguments = parser.parse_args()
    set_up_logging(None)
    old = arguments.readme.read_text(encoding="utf-8")
    new = with_table(old, table(load_schema()), arguments.readme)
    if old == new:
        return
    if arguments.check:
        raise RaysweepError(f"{arguments.readme}: the table does not fit config/schema.yaml: run workflow/scripts/config_reference.py")
    with written_aside(arguments.readme) as stream:
        stream.write(new)
    logger.info("%s: table written", arguments.readme)


def with_table(text: str, table: str, path: Path) -> str:
    """The text of a document with `table` between its two marks. Raises RaysweepError where a mark is missing."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise RaysweepError(f"{path} has lost one of its marks: it needs the lines {BEGIN.strip()} and {END.strip()}")
    return f"{before}{begin}\n{table}\n{end}{after}"


def table(schema: dict[str, Any]) -> str:
    """A Markdown table with a row for each key of the schema, and one for each option of a search algorithm or scheduler."""
    lines = [HEADER, ("---",) * len(HEADER), *rows(schema, schema["$defs"], ())]
    return "".join("| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |\n" for line in lines)


def rows(schema: dict[str, Any], definitions: dict[str, Any], path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    for key, below in schema["properties"].items():
        here = (*path, key)
        if "$ref" in below:
            below = definitions[below["$ref"].removeprefix("#/$defs/")] | below
        is_group = "additionalProperties" in below
        yield row(here, below, required=key in required_keys(schema), is_group=is_group)
        if is_group:
            named = below["additionalProperties"]
            yield from rows(named or below, definitions, (*here, NAMES[key]) if named else here)
        for name, options in definitions.get(key, {}).items() if key in ("search_algorithm", "scheduler") else ():
            for option, its_schema in options.items():
                yield row((*here, option), its_schema, of=name)


def row(path: tuple[str, ...], schema: dict[str, Any], required: bool = False, is_group: bool = False, of: str = "") -> tuple[str, ...]:
    if is_group:
        return f"**`{'.'.join(path)}`**", "", "required" if required else "", schema["description"]
    unit = f" ({schema['unit']})" if "unit" in schema and "minutes" not in allowed(schema) else ""
    default = "required" if required else f"`{in_yaml(schema['default'])}`" if "default" in schema else ""
    allowed_text = (allowed(schema) + unit).replace("<", "&lt;")  # Markdown would take it for HTML
    return f"`{'.'.join(path)}`", allowed_text, default, (f"{of}: " if of else "") + schema["description"]


def in_yaml(value: Any) -> str:
    """A value as it would stand in the config, on one line."""
    return yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("\n").removesuffix("\n...")


if __name__ == "__main__":
    run_entry_point(main)
