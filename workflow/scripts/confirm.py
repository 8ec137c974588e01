"""Entry point of the rule confirm."""

from raysweep.common.errors import run_entry_point
from raysweep.stages.sweep import run_confirm, stage_from_command_line


def main() -> None:
    run_confirm(stage_from_command_line(__doc__))


if __name__ == "__main__":
    run_entry_point(main)
