"""A copy of the project as a clean checkout has it, and Snakemake run in it."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

CHECKOUT = Path(__file__).parents[1]
# Snakemake's imports take longer than a dry run, so a server that has done them forks a process for each call.
_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload(["pytest", "snakemake.cli", "snakemake.report.html_reporter", "snakemake.storage", "jsonschema", "numpy"])


@dataclass(frozen=True)
class Finished:
    """What a call of Snakemake left."""

    returncode: int
    stdout: str
    stderr: str


@dataclass(frozen=True)
class Project:
    """A clean checkout in `root`."""

    root: Path

    def write(self, path: str, text: str) -> Path:
        """Write a file below the root."""
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
        return file

    def read_config(self, path: str = "config/config.yaml") -> dict[str, Any]:
        return yaml.safe_load((self.root / path).read_text(encoding="utf-8"))

    def write_config(self, config: dict[str, Any], path: str = "config/config.yaml") -> None:
        self.write(path, yaml.safe_dump(config, sort_keys=False))

    def files(self) -> set[str]:
        """All files below the root but Snakemake's own, relative to it."""
        found = (path.relative_to(self.root) for path in self.root.rglob("*") if path.is_file())
        return {str(path) for path in found if path.parts[0] != ".snakemake" and "__pycache__" not in path.parts}

    def snakemake(self, *arguments: str) -> Finished:
        """What `snakemake *arguments` does when it is called in the root."""
        out, err = self.root.with_name("stdout"), self.root.with_name("stderr")
        process = _processes.Process(target=_snakemake, args=(self.root, arguments, out, err))
        process.start()
        process.join(timeout=120)
        if process.exitcode is None:
            process.kill()
            raise TimeoutError(f"snakemake {' '.join(arguments)} did not end within 120 s")
        return Finished(process.exitcode, out.read_text(encoding="utf-8"), err.read_text(encoding="utf-8"))


def copy_to(root: Path) -> Project:
    for name in ("config", "workflow", "examples"):
        shutil.copytree(CHECKOUT / name, root / name, ignore=shutil.ignore_patterns("__pycache__", "pictures"))
    shutil.copy(CHECKOUT / "Snakefile", root)
    return Project(root)


def _snakemake(root: Path, arguments: tuple[str, ...], out: Path, err: Path) -> None:
    from snakemake.cli import main

    for number, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    # The checkout's own package must not hide the copy's.
    sys.path[:] = [folder for folder in sys.path if Path(folder or ".").resolve() != CHECKOUT / "workflow/scripts"]
    os.chdir(root)
    main(list(arguments))
