from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

import pytest

from raysweep.usercode.working_dir import TRIALS_DIR_ENV, WorkingDirs


@pytest.fixture
def dirs() -> WorkingDirs:
    return WorkingDirs()


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a user's folder, in a process that is ready to run trials."""
    root = tmp_path / "a project"
    for folder in ("results", "state", "resources", "data", ".git"):
        (root / folder).mkdir(parents=True)
    (root / "data" / "rows.csv").write_text("1\n")
    (tmp_path / "trials").mkdir()
    monkeypatch.setenv(TRIALS_DIR_ENV, str(tmp_path / "trials"))
    monkeypatch.chdir(root)
    return root


def seen(root: Path, dirs: WorkingDirs, *left_out: str) -> dict[str, str]:
    """Return the files that a trial sees, as a map from the relative path to the path of the file itself."""
    with dirs.own("00000", root, [root / name for name in left_out]):
        return {str(path): os.path.realpath(path) for path in sorted(Path().rglob("*")) if not path.is_dir() or path.is_symlink()}


def test_a_trial_sees_the_users_files_but_no_hidden_ones_and_no_folder_of_the_workflow(root: Path, dirs: WorkingDirs) -> None:
    assert seen(root, dirs, "results", "state", "resources") == {"data": str(root / "data")}


def test_folders_of_the_workflow_inside_of_other_folders_are_left_out_too(root: Path, dirs: WorkingDirs) -> None:
    (root / "data" / "out").mkdir()
    (root / "runs").symlink_to(root.parent / "trials")
    assert seen(root, dirs, "data/../data/out", "state/", str(root.parent / "trials"), "resources", ".", "..", "results") == {
        "data/rows.csv": str(root / "data/rows.csv")
    }


def test_a_folder_of_the_workflow_that_is_a_link_is_left_out(root: Path, dirs: WorkingDirs) -> None:
    (root / "out").symlink_to(root / "data")
    assert set(seen(root, dirs, "out", "results", "state")) == {"resources"}


def test_a_new_file_belongs_to_one_trial_and_a_file_of_the_user_to_all(root: Path, dirs: WorkingDirs) -> None:
    values = []
    for value in ("1", "2"):
        with dirs.own("00000", root, []):
            values.append(Path("own").exists())
            Path("own").write_text(value)
            Path("data/shared").write_text(value)
            os.chdir("/")
    assert values == [False, False]
    assert not (root / "own").exists()
    assert (root / "data/shared").read_text() == "2"


def test_the_directory_of_a_trial_is_removed_when_the_trial_is_stopped_or_the_next_one_begins_and_that_of_a_failed_trial_stays(
    root: Path, dirs: WorkingDirs
) -> None:
    trials = root.parent / "trials"
    for trial_id in ("00000", "00001"):
        with dirs.own(trial_id, root, []):
            assert [path.name[:6] for path in trials.iterdir()] == [f"{trial_id}-"]

    def fails() -> None:
        with dirs.own("00002", root, []):
            Path("log").write_text("the last line")
            raise RuntimeError("out of ideas")

    with pytest.raises(RuntimeError, match="out of ideas"):
        fails()
    with pytest.raises(SystemExit), dirs.own("00003", root, []):  # as Ray stops a trial
        sys.exit()
    dirs.remove_ended()
    [failed] = trials.iterdir()
    assert failed.name.startswith("00002-")
    assert (failed / "log").read_text() == "the last line"
    assert (root / "data/rows.csv").exists()
    assert Path.cwd() == trials


def test_a_stopped_trial_may_still_write_its_last_file(root: Path, dirs: WorkingDirs) -> None:
    stopped, removes, written = threading.Event(), threading.Event(), []

    def trial() -> None:
        with dirs.own("00000", root, []):
            stopped.set()
            removes.wait()
            Path("last").touch()
            written.append(Path("last").exists())

    thread = threading.Thread(target=trial)
    thread.start()
    stopped.wait()
    removal = threading.Thread(target=dirs.remove_ended)
    removal.start()
    removes.set()
    removal.join()
    thread.join()
    assert written == [True]
    assert list((root.parent / "trials").iterdir()) == []


def test_modules_on_a_relative_path_are_found_by_each_trial_of_a_process(
    root: Path, dirs: WorkingDirs, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "src").mkdir()
    (root / "src" / "rs_first.py").write_text("import os\nHAS_FILE = os.path.exists(__file__)\nseen = []\n")
    (root / "src" / "rs_second.py").touch()
    monkeypatch.syspath_prepend("src")
    for _ in range(2):
        with dirs.own("00000", root, []):
            import rs_first

            assert rs_first.HAS_FILE
            assert rs_first.seen == []
            rs_first.seen.append(1)
    with dirs.own("00000", root, []):
        import rs_second

        assert Path(rs_second.__file__).exists()
