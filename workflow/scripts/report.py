"""Write the report of a sweep as one HTML page, with the figures and a journal for Optuna as separate files."""

from __future__ import annotations

import argparse
from pathlib import Path

from raysweep.common.errors import run_entry_point, set_up_logging
from raysweep.record.study import StudyJournal
from raysweep.report.inputs import InputPaths, read_inputs
from raysweep.report.report import write_report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sweep", required=True, help="name of the sweep")
    parser.add_argument("--record", required=True, type=Path, help="the sweep's record.jsonl")
    parser.add_argument("--best", required=True, type=Path, help="best.yaml; the folder model/ lies beside it")
    parser.add_argument("--confirmed", required=True, type=Path, help="confirmed.yaml")
    parser.add_argument("--config", required=True, type=Path, help="the config that the sweep ran with")
    parser.add_argument("--data-manifest", type=Path, help="manifest.yaml of the data; left out where the trainable brings its own data")
    parser.add_argument("--env-manifest", required=True, type=Path, help="env.yaml of the node environment")
    parser.add_argument("--plan", type=Path, help="the plan that `snakemake plan` made of the sweep; the file need not exist")
    parser.add_argument("--output", required=True, type=Path, help="the page to write")
    parser.add_argument("--figures-dir", required=True, type=Path, help="folder to which the figures are written as files")
    parser.add_argument("--journal", required=True, type=Path, help="the journal of Optuna's to write")
    parser.add_argument("--log", type=Path, help="log of the rule")
    arguments = parser.parse_args()
    set_up_logging(arguments.log)
    paths = InputPaths(
        path_to_record=arguments.record,
        path_to_best=arguments.best,
        path_to_confirmed=arguments.confirmed,
        path_to_config=arguments.config,
        path_to_env_manifest=arguments.env_manifest,
        path_to_data_manifest=arguments.data_manifest,
        path_to_plan=arguments.plan,
    )
    inputs = read_inputs(arguments.sweep, paths)
    write_report(inputs, arguments.output, arguments.figures_dir, Path.cwd())
    StudyJournal(arguments.journal, inputs.sweep)


if __name__ == "__main__":
    run_entry_point(main)
