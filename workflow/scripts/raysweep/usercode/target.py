"""This module finds the user's Python files and reads the files with `ast`. The module does not import a user file, because an import runs the file.

A target is `path/to/file.py:name` or `package.module:name`. The path is relative to the working directory. The package lies in the working
directory or beside the package raysweep.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from raysweep.common.errors import ConfigError

SCRIPTS_DIR = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Target:
    """Describes a name (a class or a function) in a Python file of the user."""

    path: Path
    name: str
    module: str | None  # The field has the dotted name of the module, or None for `file.py:name`.

    @property
    def import_root(self) -> Path:
        """Return the folder that must be on sys.path, so that the imports in the file work."""
        return self.path.parent if self.module is None else self.path.parents[self.module.count(".") + (self.path.name == "__init__.py")]


def _module_file(name: str, root: Path) -> Path | None:
    """Return the file of the module with the dotted name `name` below `root`, or None where no such file exists."""
    stem = root.joinpath(*name.split("."))
    return next((path for path in (stem.with_suffix(".py"), stem / "__init__.py") if path.is_file()), None)


def module_name(path: Path, root: Path) -> str:
    """Return the dotted name by which a file below `root` is imported, where `root` is on sys.path."""
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def find_target(text: str, root: Path) -> Target:
    """Return the target that `text` describes. Relative paths and modules start at `root`.

    Raises ConfigError where the file does not exist, is not valid Python or does not define the name. The error begins with `text`.
    """
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
        module_file = _module_file(location, root) or _module_file(location, SCRIPTS_DIR)
        if module_file is None:
            raise ConfigError(f"{text!r} is not allowed: there is no module {location} in this folder or in workflow/scripts")
        target = Target(module_file.resolve(), name, location)
    names = set(defined_names(_parse(target.path, text).body))
    # A file with `from module import *` may define any name. The rule build_env later imports the file and finds a missing name.
    if name not in names and "*" not in names:
        public = ", ".join(sorted(n for n in names if not n.startswith("_"))) or "nothing"
        raise ConfigError(f"{text!r} is not allowed: {target.path.name} does not define {name} (it defines {public})")
    return target


def is_class(target: Target) -> bool:
    """Return whether a class statement at the top level of the file defines the name of the target."""
    return any(isinstance(node, ast.ClassDef) and node.name == target.name for node in _parse(target.path).body)


def _parse(path: Path, config_value: str | None = None) -> ast.Module:
    """Return the syntax tree of a file.

    Raises ConfigError where the file is not valid Python. The error begins with `config_value`, the value of the config that names the file, or with
    the path where `config_value` is None.
    """
    try:
        return ast.parse(path.read_bytes())
    except (SyntaxError, ValueError) as error:
        reason = f"{error.msg} (line {error.lineno})" if isinstance(error, SyntaxError) and error.lineno else str(error)
        prefix = "" if config_value is None else f"{config_value!r} is not allowed: "
        raise ConfigError(f"{prefix}{path} is not Python that can be read: {reason}") from None


def defined_names_of(path: Path) -> set[str]:
    """Return the names that the top level of a Python file defines."""
    return set(defined_names(_parse(path).body))


def defined_names(body: list[ast.stmt]) -> Iterator[str]:
    """Yield the names that the statements at the top level of a module define, also the statements inside `if`, `try` and `with`."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Import | ast.ImportFrom):
            for alias in node.names:
                yield alias.asname or alias.name.split(".")[0]
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            for part in node.targets if isinstance(node, ast.Assign) else [node.target]:
                yield from (n.id for n in ast.walk(part) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store))
        elif isinstance(node, ast.If):
            yield from defined_names([*node.body, *node.orelse])
        elif isinstance(node, ast.Try):
            handled = [statement for handler in node.handlers for statement in handler.body]
            yield from defined_names([*node.body, *handled, *node.orelse, *node.finalbody])
        elif isinstance(node, ast.With):
            yield from defined_names(node.body)


def _imported_modules(tree: ast.Module, package: tuple[str, ...]) -> Iterator[str]:
    """Yield the dotted names of all modules that the import statements of a file may import.

    `package` contains the parts of the dotted name of the file's package. Relative imports start at this package.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            stem = ".".join(part for part in (base, node.module or "") if part)
            yield from ([stem] if stem else [])
            yield from (f"{stem}.{alias.name}" if stem else alias.name for alias in node.names)


def local_sources(target: Target) -> list[Path]:
    """Return the file of the target and all files below the import root that the file imports, directly or through other files.

    The list is sorted and has no duplicates. From the package raysweep, the list contains only files of `raysweep.models`, because the other modules
    run trials and do not change the results. Raises ConfigError where a file is not valid Python.

    ASSUME that all imports are import statements. A module that is imported by a computed name is not found, and a change of such a module does not
    start a new sweep.
    """
    root = target.import_root
    package_dir, models_dir = SCRIPTS_DIR / "raysweep", SCRIPTS_DIR / "raysweep" / "models"
    config_value = f"{target.module or target.path.name}:{target.name}"

    def files_of(module: str) -> list[Path]:
        """Return the files that an import of `module` runs. An import of `a.b.c` also runs a/__init__.py and a/b/__init__.py."""
        parts = module.split(".")
        return [path for n in range(1, len(parts) + 1) if (path := _module_file(".".join(parts[:n]), root))]

    sources: set[Path] = set()
    unread = [target.path, *(files_of(target.module) if target.module else ())]
    while unread:
        path = unread.pop()
        if path in sources or (path.is_relative_to(package_dir) and not path.is_relative_to(models_dir)):
            continue
        sources.add(path)
        for module in _imported_modules(_parse(path, config_value), path.parent.relative_to(root).parts):
            unread += files_of(module)
    return sorted(sources)


def files_with_one_name(one: Target, other: Target) -> tuple[Path, Path] | None:
    """Return a file of each target, where both files have the same module name, so that one process cannot import both. Return None if no such files exist."""
    files = {module_name(path, one.import_root): path for path in local_sources(one)}
    pairs = ((files.get(module_name(path, other.import_root), path), path) for path in local_sources(other))
    return next((pair for pair in pairs if pair[0] != pair[1]), None)
