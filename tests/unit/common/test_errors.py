from __future__ import annotations

import errno
import io
import subprocess
import sys
from pathlib import Path

import pytest

from raysweep.common import errors
from raysweep.common.errors import (
    BUG,
    VERBOSITY_ENV,
    ConfigError,
    RaysweepError,
    WorldError,
    describe_os_error,
    logger,
    run_entry_point,
    set_up_logging,
)

SCRIPTS = Path(errors.__file__).parents[2]


@pytest.mark.parametrize("kind", [RaysweepError, ConfigError, WorldError])
def test_the_text_of_an_error_is_one_line(kind: type[RaysweepError]) -> None:
    assert str(kind(" two\n  lines\tand\r\nmore ")) == "two lines and more"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_comes_with_the_next_step(number: int) -> None:
    text = describe_os_error(OSError(number, "full", "/data/x"))
    assert text.startswith("No space left on the device (/data/x).")
    assert text.endswith("free some space, then run the same command again.")


def test_other_faults_name_the_file_where_there_is_one() -> None:
    assert describe_os_error(OSError(errno.EACCES, "Permission denied", "/x")) == "Permission denied (/x)"
    assert describe_os_error(OSError("only words")) == "only words"


def run(tmp_path: Path, statement: str) -> subprocess.CompletedProcess[str]:
    """An entry point whose `main` is that statement, after a line for the user and one for the log."""
    code = (
        "from pathlib import Path\n"
        "from raysweep.common.errors import *\n"
        "from raysweep.common.errors import logger\n"
        "def main():\n"
        f"    set_up_logging(Path({str(tmp_path / 'logs/rule.log')!r}))\n"
        "    logger.info('for the user'); logger.debug('for the log')\n"
        f"    {statement}\n"
        "run_entry_point(main)\n"
    )
    return subprocess.run([sys.executable, "-c", code], cwd=SCRIPTS, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    ("statement", "returncode", "last_line"),
    [
        ("pass", 0, "for the user"),
        ("raise ConfigError('config.yaml: seed: bad')", 1, "Error: config.yaml: seed: bad"),
        ("open('/nothing/here')", 1, "Error: No such file or directory (/nothing/here)"),
        ("raise KeyboardInterrupt", 130, "Interrupted."),
    ],
)
def test_what_the_user_sees(tmp_path: Path, statement: str, returncode: int, last_line: str) -> None:
    done = run(tmp_path, statement)
    assert done.returncode == returncode
    assert done.stdout == ""
    assert done.stderr.splitlines() == list(dict.fromkeys(["for the user", last_line]))
    log = (tmp_path / "logs/rule.log").read_text()
    assert "INFO for the user" in log
    assert "DEBUG for the log" in log
    assert last_line in log


def test_a_bug_of_ours_keeps_its_traceback(tmp_path: Path) -> None:
    done = run(tmp_path, "1 / 0")
    assert done.returncode == BUG
    assert "this is a bug of the workflow" in done.stderr
    assert done.stderr.splitlines()[-1] == "ZeroDivisionError: division by zero"
    assert "ZeroDivisionError" in (tmp_path / "logs/rule.log").read_text()


def test_the_place_of_a_fault_of_the_system_stands_in_the_log(tmp_path: Path) -> None:
    run(tmp_path, "open('/nothing/here')")
    assert "Traceback" in (tmp_path / "logs/rule.log").read_text()


def test_logging_that_is_set_up_again_says_everything_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        set_up_logging(tmp_path / "x.log")
    logger.info("once")
    assert capsys.readouterr().err == "once\n"
    assert (tmp_path / "x.log").read_text().count("once") == 1


def test_the_users_lines_may_go_elsewhere(capsys: pytest.CaptureFixture[str]) -> None:
    terminal = io.StringIO()
    set_up_logging(None, terminal)
    logger.info("for the user")
    logger.debug("details")
    assert terminal.getvalue() == "for the user\n"
    assert capsys.readouterr().err == ""


def test_an_exit_of_the_scripts_own_passes() -> None:
    with pytest.raises(SystemExit) as caught:
        run_entry_point(lambda: sys.exit(7))
    assert caught.value.code == 7


@pytest.mark.parametrize(
    ("says", "is_asked_for", "seen"),
    [("", False, "info warning"), ("little", False, "warning"), ("little", True, "info warning"), ("all", False, "debug info warning")],
)
def test_the_user_sees_as_much_as_he_wants_and_the_log_has_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, says: str, is_asked_for: bool, seen: str
) -> None:
    monkeypatch.setenv(VERBOSITY_ENV, says)
    terminal = io.StringIO()
    set_up_logging(tmp_path / "log", terminal, is_asked_for=is_asked_for)
    for level in ("debug", "info", "warning"):
        getattr(logger, level)(level)
    assert terminal.getvalue().split() == seen.split()
    assert [line.split()[-1] for line in (tmp_path / "log").read_text().splitlines()] == ["debug", "info", "warning"]
