"""Run the rule run_sweep, which runs the remaining trials of a sweep and writes the outputs of the sweep."""

import sys

from raysweep.common.errors import run_entry_point
from raysweep.stages.members import run_member
from raysweep.stages.stage import stage_from_command_line
from raysweep.stages.sweep import run_sweep


def main() -> None:
    stage, path_to_config = stage_from_command_line(__doc__)
    if stage.call.path_to_end is not None:
        sys.exit(run_member(stage, path_to_config, stage.call.path_to_end))
    run_sweep(stage, path_to_config)


if __name__ == "__main__":
    run_entry_point(main)
