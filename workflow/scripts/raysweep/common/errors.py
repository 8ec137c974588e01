"""This module defines how the programs of this package report errors.

A mistake of the user or a fault of the system is reported in one line. Only a bug of this package is reported with a traceback.
"""

from __future__ import annotations

import errno
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

logger = logging.getLogger("raysweep")

# This variable is set where Snakemake runs with --quiet or --verbose. The jobs of Snakemake inherit the variable.
VERBOSITY_ENV = "RAYSWEEP_SAYS"
LEVELS = {"little": logging.WARNING, "all": logging.DEBUG}
# A program that fails because of a bug ends with this exit code (EX_SOFTWARE).
BUG = 70
# The driver of a sweep of several jobs ends with this exit code (EX_IOERR) after a fault of the system, which another node may not have.
FAULT = 74
# The driver ends with this exit code (EX_TEMPFAIL) to ask the stage to start the job again.
START_AGAIN = 75


class RaysweepError(Exception):
    """Reports an error that the user can correct. The text is one line with the key, the bad value, the allowed values and the next step.

    The text has several lines where one config has several mistakes, with one line for each mistake.
    """

    def __init__(self, *lines: str) -> None:
        super().__init__(*(" ".join(line.split()) for line in lines))

    @property
    def lines(self) -> tuple[str, ...]:
        """Return the lines of the error's text."""
        return self.args

    def __str__(self) -> str:
        return "\n".join(self.lines)


class ConfigError(RaysweepError):
    """Reports mistakes in the config. Each line names the file, the key, the bad value and the allowed values."""


class WorldError(RaysweepError):
    """Reports a fault of the system (disk, network, node, walltime). No result is lost, and the next run continues the work."""


def set_up_logging(path_to_log: Path | None, terminal: TextIO | None = None, *, is_asked_for: bool = False) -> None:
    """Send the package's messages as plain text to the terminal, and all messages with the times to the log of the rule.

    The terminal is stderr unless `terminal` is another stream. The variable VERBOSITY_ENV sets which messages the terminal shows.
    `is_asked_for` says that the messages are output that the user asked for, such as a table. The terminal always shows such output.
    """
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    logging.raiseExceptions = False  # otherwise each line that a full disk refuses would print a traceback
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
    plain = logging.StreamHandler(terminal)
    level = LEVELS.get(os.environ.get(VERBOSITY_ENV, ""), logging.INFO)
    plain.setLevel(min(level, logging.INFO) if is_asked_for else level)
    plain.setFormatter(logging.Formatter("%(message)s"))
    logger.addHandler(plain)
    if path_to_log is not None:
        path_to_log.parent.mkdir(parents=True, exist_ok=True)
        log = logging.FileHandler(path_to_log, encoding="utf-8")
        log.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        logger.addHandler(log)


def is_full_disk(text: str) -> bool:
    """Return whether the text of an error reports a full disk or quota. Python, uv and the C library use different words for these errors."""
    return any(sign in text for sign in ("[Errno 28]", "[Errno 122]", "No space left on device", "Disk quota exceeded"))


def describe_os_error(error: OSError) -> str:
    """Return one line that describes an error of the file system, with the next step where the disk is full."""
    where = f" ({error.filename})" if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT) or is_full_disk(str(error)):  # shutil.Error has only a text
        return f"No space left on the device{where}. Nothing that was finished is lost: free some space, then run the same command again."
    return f"{error.strerror or error}{where}"


def run_entry_point(main: Callable[[], None]) -> None:
    """Run the function `main` of a script. Where `main` fails, log the reason and exit.

    For a RaysweepError or an OSError, the log gets one line and the exit code is 1. For Ctrl-C, the exit code is 130. For any other exception, which
    is a bug, the log gets a traceback and the exit code is 70 (`EX_SOFTWARE`).
    """
    try:
        main()
    except RaysweepError as error:
        logger.error("Error: %s", error)
        sys.exit(1)
    except OSError as error:
        logger.error("Error: %s", describe_os_error(error))
        logger.debug("The error was raised at:", exc_info=True)
        sys.exit(1)
    except KeyboardInterrupt:
        logger.error("Interrupted.")
        sys.exit(130)
    except Exception:
        logger.critical("Error: this is a bug of the workflow, not of yours; please report it with these lines:", exc_info=True)
        sys.exit(BUG)
