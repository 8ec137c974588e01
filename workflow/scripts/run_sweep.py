"""Run the rule run_sweep, which runs the remaining trials of a sweep and writes the outputs of the sweep."""

from raysweep.common.errors import run_entry_point
from raysweep.stages.stage import stage_from_command_line
from raysweep.stages.sweep import run_sweep


def main() -> None:
    run_sweep(*stage_from_command_line(__doc__))


if __name__ == "__main__":
    run_entry_point(main)
