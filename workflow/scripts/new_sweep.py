"""Create a new sweep as a copy of an example, under a name that the user chooses. The copy runs without changes."""

from __future__ import annotations

import argparse
import os
import re
import runpy
import shutil
import tempfile
from pathlib import Path

from raysweep.common.errors import ConfigError, run_entry_point
from raysweep.common.files import flush_path
from raysweep.config.schema import PATH_TO_SCHEMA, load_schema

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
# Script that creates the first data of a new sweep. The script runs once where the example contains this file.
DATA_SCRIPT = "draw_pictures.py"


def new_sweep(name: str, like: str, root: Path) -> Path:
    """Copy examples/<like>/ to <root>/sweeps/<name>/, write the name into the config of the copy, and return the folder of the copy.

    Raises ConfigError where the name is not allowed, where the folder exists already, and where there is no such example.
    """
    kinds = sorted(path.name for path in EXAMPLES.iterdir() if path.is_dir())
    schema = load_schema()["$defs"]["name"]
    if not re.fullmatch(schema["pattern"], name):
        raise ConfigError(f"NAME: {name!r} is not allowed: give {schema['allowed']}, such as NAME=mine.")
    if like not in kinds:
        raise ConfigError(f"LIKE: there is no example {like!r}. Allowed: {', '.join(kinds)}.")
    folder = root / "sweeps" / name
    if folder.exists():
        raise ConfigError(f"NAME: {folder.relative_to(root)} exists already. Give another name, or take it away.")
    folder.parent.mkdir(exist_ok=True)
    # The copy is made in a temporary folder and renamed at the end, so that the final folder never exists without all files.
    with tempfile.TemporaryDirectory(prefix=".new-", dir=folder.parent) as aside:
        new = shutil.copytree(EXAMPLES / like, Path(aside) / name, ignore=shutil.ignore_patterns("__pycache__", "pictures"))
        for path in new.iterdir():
            text = path.read_text(encoding="utf-8").replace(f"examples/{like}/", f"sweeps/{name}/")
            if path.name == "config.yaml":
                # An editor checks the file with this schema. The path is computed, because `root` may be another folder than the folder of this project.
                text = text.replace("$schema=../../config/schema.yaml", f"$schema={os.path.relpath(PATH_TO_SCHEMA, folder)}")
                # Each sweep uses a data set with the name of the sweep, because two data sets must not use the same folder. The name is in quotes,
                # because YAML reads some names as numbers.
                for pattern, line in (
                    (f"  {like}:", f'  "{name}":'),
                    ("  pictures:", f'  "{name}":'),
                    ("    dataset: pictures", f'    dataset: "{name}"'),
                ):
                    text = re.sub(rf"^{pattern}$", line, text, flags=re.MULTILINE)
            path.write_text(text, encoding="utf-8")
        if (new / DATA_SCRIPT).exists():
            runpy.run_path(str(new / DATA_SCRIPT), run_name="__main__")
        flush_path(new)
        new.rename(folder)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", required=True, help="the sweep's name")
    parser.add_argument("--like", required=True, help="the example that it begins as, which is a folder in examples/")
    args = parser.parse_args()
    folder = new_sweep(args.name, args.like, Path.cwd()).relative_to(Path.cwd())
    print(f"{folder}/ is yours to change, and runs as it is:")
    print("  source .venv/bin/activate")
    print(f"  snakemake --cores all --configfile {folder}/config.yaml")
    print(f"Report: results/{args.name}/report.html")


if __name__ == "__main__":
    run_entry_point(main)
