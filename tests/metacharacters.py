"""Texts that a shell, Snakemake or a template could take for more than text, and stages that only write down what they are given."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from raysweep.config.schema import load_schema

# Each would leave a file `pwned` in the folder of whoever runs it.
TEXTS = {
    "a command": "$(touch pwned)",
    "backquotes": "`touch pwned`",
    "a quote's end": "'; touch pwned; '",
    "a double quote's end": '"; touch pwned #',
    "both": "'\"; $(touch pwned) `touch pwned` ; touch pwned; #\"'",
    "a line's end": "a\nb; touch pwned",
    "a pipe": "a | touch pwned & touch pwned > pwned",
    "a wildcard": "{input}",
    "no name": "{}",
    "Python in a template": "{params.__class__}",
    "a variable": "${IFS}touch${IFS}pwned",
    "an option": "--output=pwned",
}
# Stands in for the scripts of the rules, in a copy of the project: it writes down its arguments, and makes what the rule's outputs are.
STAGE = """
import argparse, json, pathlib, sys, yaml

with open("given.jsonl", "a") as stream:
    print(json.dumps(sys.argv[1:]), file=stream)
parser = argparse.ArgumentParser()
for name in ("output", "output-dir", "figures-dir", "journal", "config", "sweep"):
    parser.add_argument(f"--{name}")
args, _ = parser.parse_known_args()
made = [path for path in (args.output, args.journal, args.figures_dir and f"{args.figures_dir}/key0.svg") if path]
if args.output_dir:
    made += [f"{args.output_dir}/{name}" for name in ("env.yaml", "manifest.yaml")]
    made += [f"{args.output_dir}/{split}/{kind}.npy" for split in ("train", "validation", "test") for kind in ("images", "labels")]
if args.config and not args.output:
    folder = f"{yaml.safe_load(open(args.config))['results_dir']}/{args.sweep}"
    made += [f"{folder}/{name}" for name in ("trials.csv", "best.yaml", "model/weights", "config.yaml", "confirmed.yaml")]
for path in map(pathlib.Path, made):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
"""
STAGES = ("stage_data", "build_env", "check_import", "run_sweep", "confirm", "report")


def stand_in(root: Path) -> None:
    """Replace the scripts of the rules of a copy of the project."""
    for stage in STAGES:
        (root / "workflow" / "scripts" / f"{stage}.py").write_text(STAGE)


def given(root: Path) -> list[list[str]]:
    """The arguments that the stages got, one list a call."""
    return [json.loads(line) for line in (root / "given.jsonl").read_text().splitlines()]


def texts_of_the_schema() -> list[tuple[str, ...]]:
    """Every key that may hold a text; `*` stands for any name, and for any element of a list."""
    root = load_schema()

    def walk(schema: dict[str, Any], path: tuple[str, ...]) -> list[tuple[str, ...]]:
        if "$ref" in schema:
            schema = root["$defs"][schema["$ref"].removeprefix("#/$defs/")] | schema
        kinds = schema.get("type", [])
        found = [path] if "string" in kinds or any(isinstance(value, str) for value in schema.get("enum", ())) else []
        for key, below in schema.get("properties", {}).items():
            found += walk(below, (*path, key))
        for below in (schema.get("additionalProperties"), schema.get("items")):
            found += walk(below, (*path, "*")) if isinstance(below, dict) else []
        return found

    return walk(root, ())
