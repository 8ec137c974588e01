"""The user's Python files: found and read with `ast`, never imported here, since importing runs them.

A target is `path/to/file.py:name` (relative to the working directory) or `package.module:name`, where the package lies in the working
directory or beside this one.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from .errors import ConfigError

SCRIPTS_DIR = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Target:
    """A name in a Python file."""

    path: Path
    name: str
    module: str | None  # dotted name, or None for a target given by its file

    @property
    def import_root(self) -> Path:
        """The folder that has to be on sys.path for the file's own imports to work."""
        return self.path.parent if self.module is None else self.path.parents[self.module.count(".") + (self.path.name == "__init__.py")]


def _module_file(name: str, root: Path) -> Path | None:
    """The file of a dotted module below `root`, if there is one."""
    stem = root.joinpath(*name.split("."))
    return next((path for path in (stem.with_suffix(".py"), stem / "__init__.py") if path.is_file()), None)


def find_target(text: str, root: Path) -> Target:
    """The file and name that `text` stands for. Raises ConfigError, with a text that begins with the value, if it is not there."""
    location, separator, name = text.rpartition(":")
    if not separator or not location or not name.isidentifier():
        raise ConfigError(f"{text!r} is not allowed: write path/to/file.py:name or package.module:name")
    if location.endswith(".py"):
        path = (root / location).resolve()
        if not path.is_file():
            raise ConfigError(
                f"{text!r} is not allowed: there is no file {location} (paths are relative to the folder where Snakemake runs)"
            )
        target = Target(path, name, None)
    else:
        if not all(part.isidentifier() for part in location.split(".")):
            raise ConfigError(f"{text!r} is not allowed: write path/to/file.py:name or package.module:name")
        found = _module_file(location, root) or _module_file(location, SCRIPTS_DIR)
        if found is None:
            raise ConfigError(f"{text!r} is not allowed: there is no module {location} in this folder or in workflow/scripts")
        target = Target(found.resolve(), name, location)
    names = set(defined_names(_parsed(target.path, text).body))
    if name not in names and "*" not in names:  # `from module import *` may define anything; build_env imports it
        public = ", ".join(sorted(n for n in names if not n.startswith("_"))) or "nothing"
        raise ConfigError(f"{text!r} is not allowed: {target.path.name} does not define {name} (it defines {public})")
    return target


def target_of(sweep: dict[str, Any], root: Path) -> Target:
    """The user's class or function that a sweep of a validated config trains."""
    return find_target(sweep.get("model") or sweep["trainable"], root)


def _parsed(path: Path, wanted: str | None = None) -> ast.Module:
    """The syntax tree of a file. Raises ConfigError, with a text that begins with what it is `wanted` for, if it has none."""
    try:
        return ast.parse(path.read_bytes())
    except (SyntaxError, ValueError) as error:
        reason = f"{error.msg} (line {error.lineno})" if isinstance(error, SyntaxError) and error.lineno else str(error)
        prefix = "" if wanted is None else f"{wanted!r} is not allowed: "
        raise ConfigError(f"{prefix}{path} is not Python that can be read: {reason}") from None


def defined_names_of(path: Path) -> set[str]:
    """The names that a Python file defines at its top level."""
    return set(defined_names(_parsed(path).body))


def defined_names(body: list[ast.stmt]) -> Iterator[str]:
    """The names that statements at a module's top level bind, those under `if` and `try` too."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Import | ast.ImportFrom):
            for alias in node.names:
                yield alias.asname or alias.name.split(".")[0]
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            for part in node.targets if isinstance(node, ast.Assign) else [node.target]:
                yield from (n.id for n in ast.walk(part) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store))
        elif isinstance(node, ast.If | ast.Try | ast.With):
            for block in ("body", "orelse", "finalbody"):
                yield from defined_names(getattr(node, block, []))
            for handler in getattr(node, "handlers", []):
                yield from defined_names(handler.body)


def local_sources(target: Target) -> list[Path]:
    """The target's file and, through its imports, every file below its import root that it needs; sorted, without duplicates.

    Of this package only `raysweep.models` counts: the rest drives trials and is not what they compute. Raises ConfigError if one of the files
    is not Python that can be read.

    ASSUME imports are plain statements; a module imported by a computed name is not seen, and its change does not start a new sweep.
    """
    root = target.import_root
    package_dir, models_dir = SCRIPTS_DIR / "raysweep", SCRIPTS_DIR / "raysweep" / "models"
    wanted = f"{target.module or target.path.name}:{target.name}"

    def files_of(module: str) -> list[Path]:
        """The files that an import of the module runs: that of `a.b.c` runs a/__init__.py and a/b/__init__.py too."""
        parts = module.split(".")
        return [path for n in range(1, len(parts) + 1) if (path := _module_file(".".join(parts[:n]), root))]

    found: set[Path] = set()
    waiting = [target.path, *(files_of(target.module) if target.module else ())]
    while waiting:
        path = waiting.pop()
        if path in found or (path.is_relative_to(package_dir) and not path.is_relative_to(models_dir)):
            continue
        found.add(path)
        package = path.parent.relative_to(root).parts
        for node in ast.walk(_parsed(path, wanted)):
            modules: list[str] = []
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
                stem = ".".join(part for part in (base, node.module or "") if part)
                modules = [stem, *(f"{stem}.{alias.name}" if stem else alias.name for alias in node.names)]
            for module in filter(None, modules):
                waiting += files_of(module)
    return sorted(found)


def sources_sha256(paths: list[Path]) -> str:
    """One SHA-256 over the contents of source files, whatever their place."""
    digest = hashlib.sha256()
    for content in sorted(hashlib.sha256(path.read_bytes()).digest() for path in paths):
        digest.update(content)
    return digest.hexdigest()


def load_target(target: Target) -> tuple[Any, ModuleType]:
    """Import the target's file, here and now: the object of that name, and its module. For the processes that train."""
    root = str(target.import_root)
    if root not in sys.path:
        sys.path.insert(0, root)
    if target.module is not None:
        module = importlib.import_module(target.module)
    else:
        name = f"raysweep_user_{hashlib.sha256(str(target.path).encode()).hexdigest()[:12]}"
        if name not in sys.modules:
            spec = importlib.util.spec_from_file_location(name, target.path)
            assert spec is not None  # it ends in .py
            assert spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            sys.modules[name] = module
            try:
                spec.loader.exec_module(module)
            except BaseException:
                del sys.modules[name]
                raise
        module = sys.modules[name]
    return getattr(module, target.name), module
