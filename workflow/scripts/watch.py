"""Show the state of a sweep from the sweep's record, and update the view while the sweep runs. Without arguments, show the sweep whose record changed last."""

from __future__ import annotations

import argparse
from pathlib import Path

from raysweep.common.errors import logger, run_entry_point, set_up_logging
from raysweep.stages.watch import places, watch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--configfile", type=Path, help="the config that Snakemake ran with, which names the folder of the state")
    parser.add_argument("--sweep", help="name of the sweep")
    parser.add_argument("--state-dir", type=Path, help="folder in which to look for records (default: the config's, else state)")
    parser.add_argument("--once", action="store_true", help="print the view once and end")
    arguments = parser.parse_args()
    set_up_logging(None, is_asked_for=True)
    try:
        watch(*places(arguments.configfile, arguments.sweep, arguments.state_dir), once=arguments.once)
    except KeyboardInterrupt:
        logger.debug("ended by Ctrl-C")


if __name__ == "__main__":
    run_entry_point(main)
