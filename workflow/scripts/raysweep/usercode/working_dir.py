"""This module gives each trial of a user's function a working directory of its own, so that a file with a relative path belongs to one trial.

The node environment's Python runs this module, in the processes of the trials.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Collection, Iterator
from pathlib import Path

# Environment variable with the folder of the working directories. The folder lies in the private folder of the agent, on the node's own disk.
TRIALS_DIR_ENV = "RAYSWEEP_NODE_TRIALS"
# Time limit in seconds for the end of a stopped trial, in which `finally` blocks of the user run. Tune waits as long before Tune reuses a process.
END_S = 2.0


class WorkingDirs:
    """Makes and removes the working directories of the trials of this process, which run one after the other."""

    def __init__(self) -> None:
        self.ended: list[Path] = []  # directories to remove, which are all but those of failed trials
        self.is_idle = threading.Event()  # whether no trial runs
        self.is_idle.set()

    @contextlib.contextmanager
    def own(self, trial_id: str, root: Path, left_out: Collection[Path]) -> Iterator[Path]:
        """Run the block in a new working directory with links to the entries of `root`, and yield the directory.

        Hidden entries and the folders `left_out` get no link. If the block raises an exception, the trial has failed, and the directory stays until the
        agent removes the agent's private folder.
        """
        self.remove_ended()
        trials_dir = os.environ[TRIALS_DIR_ENV]
        forget_modules_below(trials_dir)
        folder = Path(tempfile.mkdtemp(prefix=f"{trial_id}-", dir=trials_dir))
        self.ended.append(folder)
        self.is_idle.clear()
        try:
            link_entries(root, folder, left_out)
            os.chdir(folder)
            yield folder
        except Exception:  # Ray stops a trial with SystemExit, which is no failure
            self.ended = [ended for ended in self.ended if ended != folder]
            raise
        finally:
            self.is_idle.set()

    def remove_ended(self) -> None:
        """Remove the working directories of the trials that have ended or that Tune has stopped. The directories of failed trials stay."""
        while self.ended:
            self.is_idle.wait(END_S)
            os.chdir(os.environ[TRIALS_DIR_ENV])  # a process must not stay in a directory that is removed
            shutil.rmtree(self.ended.pop(), ignore_errors=True)


def forget_modules_below(folder: str) -> None:
    """Let this process import modules again that an earlier trial imported through a relative path on sys.path, because their files are removed."""
    importlib.invalidate_caches()  # Python caches the content of a relative path, and the working directory changes
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None)).startswith(f"{folder}{os.sep}"):
            del sys.modules[name]


def link_entries(root: Path, folder: Path, left_out: Collection[Path]) -> None:
    """Make a link in `folder` to each entry of `root`, except hidden entries and the folders `left_out`."""
    left_out = {Path(os.path.normpath(path)) for path in left_out} | {path.resolve() for path in left_out}
    for entry in root.iterdir():
        if not entry.name.startswith("."):
            _link(entry, folder / entry.name, left_out)


def _link(source: Path, target: Path, left_out: Collection[Path]) -> None:
    """Make the link `target` to `source`, unless `source` is in `left_out`. A folder that contains a folder of `left_out` becomes a folder of links."""
    if source in left_out or (source.is_symlink() and source.resolve() in left_out):
        return
    if any(source in path.parents for path in left_out):
        target.mkdir()
        for entry in source.iterdir():
            _link(entry, target / entry.name, left_out)
    else:
        target.symlink_to(source)
