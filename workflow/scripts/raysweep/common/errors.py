"""How this package fails: with one line for a mistake or a fault of the world, with a traceback only for a bug of its own."""

from __future__ import annotations

import errno
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

logger = logging.getLogger("raysweep")

VERBOSITY_ENV = "RAYSWEEP_SAYS"  # set where Snakemake was called with --quiet or --verbose; its jobs inherit it
LEVELS = {"little": logging.WARNING, "all": logging.DEBUG}
BUG = 70
START_AGAIN = 75  # EX_TEMPFAIL: the driver asks for its job to be started again


class RaysweepError(Exception):
    """An error that the user can mend. Its text is one line that names the key, the bad value, what is allowed and the next step.

    Several mistakes of one config have a line each.
    """

    def __init__(self, *lines: str) -> None:
        super().__init__(*(" ".join(line.split()) for line in lines))

    @property
    def lines(self) -> tuple[str, ...]:
        """Return the lines of the text."""
        return self.args

    def __str__(self) -> str:
        return "\n".join(self.lines)


class ConfigError(RaysweepError):
    """Mistakes in the config: each line names file, key, value and what is allowed."""


class WorldError(RaysweepError):
    """A fault of the world (disk, network, node, walltime): nothing is lost, and the next run goes on."""


def set_up_logging(path_to_log: Path | None, terminal: TextIO | None = None, *, is_asked_for: bool = False) -> None:
    """Send the package's messages to the terminal, as plain text, and all messages with their times to the log of the rule.

    The terminal is stderr unless `terminal` names another stream. VERBOSITY_ENV in the environment sets how much the user sees; output that the
    user asked for, such as a table, is shown in any case (`is_asked_for`).
    """
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
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
    """Return whether an error's text names a full disk or quota, in the words of Python, of uv or of the C library."""
    return any(sign in text for sign in ("[Errno 28]", "[Errno 122]", "No space left on device", "Disk quota exceeded"))


def describe_os_error(error: OSError) -> str:
    """Return one line for a fault of the file system, with the next step where that is known."""
    where = f" ({error.filename})" if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT) or is_full_disk(str(error)):  # shutil.Error has no errno of its own
        return f"No space left on the device{where}. Nothing that was finished is lost: free some space, then run the same command again."
    return f"{error.strerror or error}{where}"


def run_entry_point(main: Callable[[], None]) -> None:
    """Run the `main` of a script and, where it fails, log the reason before the process exits.

    A RaysweepError or a fault of the system is one line and exit code 1, Ctrl-C is exit code 130, and a bug is a traceback and exit code 70
    (`EX_SOFTWARE`).
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
