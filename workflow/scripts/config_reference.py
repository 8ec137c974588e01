"""Write the table in config/README.md from the schema. With --check, only report whether the table is up to date."""

from __future__ import annotations

import argparse
from pathlib import Path

from raysweep.common.errors import RaysweepError, logger, run_entry_point, set_up_logging
from raysweep.common.files import written_aside
from raysweep.config.reference import PATH_TO_README, reference, with_table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--readme", type=Path, default=PATH_TO_README)
    parser.add_argument("--check", action="store_true", help="change nothing; exit code 1 where the table is out of date")
    arguments = parser.parse_args()
    set_up_logging(None)
    old = arguments.readme.read_text(encoding="utf-8")
    new = with_table(old, reference(), arguments.readme)
    if old == new:
        return
    if arguments.check:
        raise RaysweepError(f"{arguments.readme}: the table does not fit config/schema.yaml: run workflow/scripts/config_reference.py")
    with written_aside(arguments.readme) as stream:
        stream.write(new)
    logger.info("%s: table written", arguments.readme)


if __name__ == "__main__":
    run_entry_point(main)
