"""The user's Python files: found and read with `ast`, never imported here, since importing runs them.

A target is `path/to/file.py:name` (relative to the working directory) or `package.module:name`, where the package lies in the working
directory or beside this one.
"""

from __future__ import annotations

import ast
import base64
import functools
import hashlib
import importlib.machinery
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from raysweep.common.errors import ConfigError

SCRIPTS_DIR = Path(__file__).resolve().parents[2]


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


@dataclass(frozen=True)
class Code:
    """A target, and all that it needs of the user's files as they were when they were read.

    People go on to edit their files while a sweep runs for hours. What trains is what was there at its start, whenever and wherever a process
    begins that imports it.
    """

    target: Target
    contents: dict[Path, bytes]

    @classmethod
    def read(cls, target: Target) -> Code:
        """Raises ConfigError as `local_sources` does."""
        return cls(target, {path: path.read_bytes() for path in local_sources(target)})

    @classmethod
    def told(cls, said: dict[str, Any]) -> Code:
        """What `as_dict` said, in another process."""
        target = Target(Path(said["path"]), said["name"], said["module"])
        return cls(target, {Path(path): base64.b64decode(content) for path, content in said["contents"].items()})

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        contents = {str(path): base64.b64encode(content).decode() for path, content in self.contents.items()}
        return {"path": str(self.target.path), "name": self.target.name, "module": self.target.module, "contents": contents}

    def sha256(self) -> str:
        """One SHA-256 over the contents of the files, whatever their place."""
        digest = hashlib.sha256()
        for content in sorted(hashlib.sha256(content).digest() for content in self.contents.values()):
            digest.update(content)
        return digest.hexdigest()

    def load(self, *, anew: bool = False) -> tuple[Any, ModuleType]:
        """Import the target: the object of that name, and its module. `anew`: although this process has done so before."""
        if anew:
            files = {str(path) for path in self.contents}
            for name in [name for name, module in sys.modules.items() if getattr(module, "__file__", None) in files]:
                del sys.modules[name]
        _FINDER.keep(self)
        return load_target(self.target)


class _KeptLoader(importlib.machinery.SourceFileLoader):
    """Loads a module from a content that was read before. Without the bytecode that lies beside the file, which may be another content's by now."""

    def __init__(self, name: str, path: str, content: bytes) -> None:
        super().__init__(name, path)
        self.content = content

    def get_data(self, path: str) -> bytes:
        return self.content if path == self.path else super().get_data(path)

    def get_code(self, fullname: str) -> CodeType:
        return _compiled(self.content, self.path)


@functools.cache
def _compiled(content: bytes, path: str) -> CodeType:
    return compile(content, path, "exec", dont_inherit=True)


class _KeptFinder:
    """Finds the modules of the code that is kept before Python looks for their files, and nothing else."""

    def __init__(self) -> None:
        self.paths: dict[str, Path] = {}  # by the names of the modules
        self.contents: dict[Path, bytes] = {}

    def keep(self, code: Code) -> None:
        root = code.target.import_root
        for path in code.contents:
            parts = path.relative_to(root).with_suffix("").parts
            self.paths[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
        self.contents |= code.contents
        if self not in sys.meta_path:  # behind what is built in, as a folder on sys.path would be
            sys.meta_path.insert(sys.meta_path.index(importlib.machinery.PathFinder), self)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        return self.spec(fullname, self.paths[fullname]) if fullname in self.paths else None

    def spec(self, name: str, path: Path) -> importlib.machinery.ModuleSpec | None:
        """How to import a file under a name: by what is kept of it, or where nothing is, by what is there."""
        if path not in self.contents:
            return importlib.util.spec_from_file_location(name, path)
        folders = [str(path.parent)] if path.name == "__init__.py" else None
        loader = _KeptLoader(name, str(path), self.contents[path])
        return importlib.util.spec_from_file_location(name, path, loader=loader, submodule_search_locations=folders)


_FINDER = _KeptFinder()


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
            spec = _FINDER.spec(name, target.path)
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
