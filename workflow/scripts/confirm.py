"""Run the rule confirm, which trains the best configuration of a sweep again with other seeds."""

from raysweep.common.errors import run_entry_point
from raysweep.stages.confirm import run_confirm
from raysweep.stages.stage import stage_from_command_line


def main() -> None:
    stage, _ = stage_from_command_line(__doc__)
    run_confirm(stage)


if __name__ == "__main__":
    run_entry_point(main)
