"""This module keeps the content that the user's files have at the start of a run, and imports the files from memory and not from the disk."""

from __future__ import annotations

import base64
import functools
import hashlib
import importlib
import importlib.machinery
import importlib.util
import itertools
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from raysweep.usercode.target import Target, local_sources, module_name

# Environment variable with the folder that `write_for_processes` has written. Each Python process with this variable imports the frozen files, such as Ray's
# tasks and actors, processes of `multiprocessing`, and programs that a trial starts.
FOLDER_ENV = "RAYSWEEP_FROZEN_CODE"
CODE_FILE = "code.json"
# Python imports the module `sitecustomize` at the start of each process. Another version of Python, which a trial may start, cannot import this package.
SITECUSTOMIZE = f"""import os, sys
if os.environ.get({FOLDER_ENV!r}) and sys.version_info >= (3, 11):
    from raysweep.usercode.freeze import import_from
    import_from(os.environ[{FOLDER_ENV!r}])
"""


@dataclass(frozen=True)
class Code:
    """Contains a target, the target of a loss function of the user's own, and the content of all user files that the targets need.

    Users edit files while a sweep runs for hours. Every process of the run imports the content that the files had at the start of the run, even where
    the process starts later or runs on another node.
    """

    target: Target
    contents: dict[Path, bytes]
    loss: Target | None = None  # None where the loss is a function of torch.nn.functional

    @classmethod
    def read(cls, target: Target, loss: Target | None = None) -> Code:
        """Return the targets with the present content of all files that they need. Raises ConfigError where a file is not valid Python."""
        paths = {path for each in (target, loss) if each for path in local_sources(each)}
        return cls(target, {path: path.read_bytes() for path in sorted(paths)}, loss)

    @property
    def targets(self) -> list[Target]:
        """Return the target of the model or function, and the target of the loss function if the user has written a loss function."""
        return [self.target, *([self.loss] if self.loss else [])]

    @classmethod
    def from_json(cls, code: dict[str, Any]) -> Code:
        """Return the Code from which `to_json` made the map `code`, possibly in another process."""
        target, *loss = (Target(Path(each["path"]), each["name"], each["module"]) for each in code["targets"])
        return cls(target, {Path(path): base64.b64decode(content) for path, content in code["contents"].items()}, *loss)

    def to_json(self) -> dict[str, Any]:
        """Return the code as a map for JSON. Base64 encodes the contents of the files, because JSON has no bytes."""
        contents = {str(path): base64.b64encode(content).decode() for path, content in self.contents.items()}
        targets = [{"path": str(each.path), "name": each.name, "module": each.module} for each in self.targets]
        return {"targets": targets, "contents": contents}

    def sha256(self) -> str:
        """Return one SHA-256 of the contents of all files. The paths of the files do not influence the SHA-256."""
        digest = hashlib.sha256()
        for content in sorted(hashlib.sha256(content).digest() for content in self.contents.values()):
            digest.update(content)
        return digest.hexdigest()

    def names(self, word: str) -> bool:
        """Return whether one of the files contains `word`."""
        return any(word.encode() in content for content in self.contents.values())

    def load(self, *, anew: bool = False) -> tuple[Any, ModuleType]:
        """Import the target, and return the object that the target names and the module of the object. `anew` imports the files of the code again."""
        if anew:
            files = {str(path) for path in self.contents}
            for name in [name for name, module in sys.modules.items() if getattr(module, "__file__", None) in files]:
                del sys.modules[name]
        _FINDER.add(self)
        return load_target(self.target)

    def load_loss(self) -> Any | None:
        """Import the loss function, and return it, or None where the loss is a function of torch.nn.functional."""
        _FINDER.add(self)
        return load_target(self.loss)[0] if self.loss else None


def write_for_processes(code: Code, folder: Path) -> None:
    """Write the code to the new folder `folder`, which must then be on PYTHONPATH, so that processes with the variable FOLDER_ENV import the code."""
    folder.mkdir()
    (folder / CODE_FILE).write_text(json.dumps(code.to_json()))
    (folder / "sitecustomize.py").write_text(SITECUSTOMIZE)


def import_from(folder: str) -> None:
    """Make this process import the files of the code that `write_for_processes` wrote to `folder`."""
    code = Code.from_json(json.loads(Path(folder, CODE_FILE).read_text()))
    _FINDER.add(code)
    if (root := str(code.target.import_root)) not in sys.path:
        sys.path.append(root)


class _FrozenLoader(importlib.machinery.SourceFileLoader):
    """Loads a module from file content in memory.

    The bytecode on the disk (`__pycache__`) is not used, because the user may have changed the file, and the bytecode may belong to the new content.
    """

    def __init__(self, name: str, path: str, content: bytes) -> None:
        super().__init__(name, path)
        self.content = content

    def get_data(self, path: str) -> bytes:
        return self.content if path == self.path else super().get_data(path)

    def get_code(self, fullname: str) -> CodeType:
        return _compile(self.content, self.path)


@functools.cache
def _compile(content: bytes, path: str) -> CodeType:
    """Return the bytecode of a file. The bytecode is cached, because a worker process imports the same file again for each trial."""
    return compile(content, path, "exec", dont_inherit=True)


class _FrozenFinder:
    """Finds the modules of frozen code before Python searches the disk. For any other module, Python searches as usual."""

    def __init__(self) -> None:
        self.path_of_module: dict[str, Path] = {}
        self.contents: dict[Path, bytes] = {}

    def add(self, code: Code) -> None:
        """Make this process import the files of `code` with the content that `code` contains."""
        for root, path in itertools.product((target.import_root for target in code.targets), code.contents):
            if path.is_relative_to(root):
                self.path_of_module[module_name(path, root)] = path
        self.contents |= code.contents
        if self not in sys.meta_path:
            # This finder stands behind the finder of built-in modules, because built-in modules also precede the folders on sys.path.
            sys.meta_path.insert(sys.meta_path.index(importlib.machinery.PathFinder), self)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        return self.spec(fullname, self.path_of_module[fullname]) if fullname in self.path_of_module else None

    def spec(self, name: str, path: Path) -> importlib.machinery.ModuleSpec | None:
        """Return the spec that imports the file `path` as module `name`, from the frozen content or, where the file is not frozen, from the disk."""
        if path not in self.contents:
            return importlib.util.spec_from_file_location(name, path)
        folders = [str(path.parent)] if path.name == "__init__.py" else None
        loader = _FrozenLoader(name, str(path), self.contents[path])
        return importlib.util.spec_from_file_location(name, path, loader=loader, submodule_search_locations=folders)


_FINDER = _FrozenFinder()


def _module_name(path: Path) -> str:
    """Return the name of a file's module, which is the name of the file unless this name belongs to another module."""
    name = path.stem
    is_taken = name in sys.modules and getattr(sys.modules[name], "__file__", None) != str(path)
    if name.isidentifier() and name != "__init__" and name not in sys.stdlib_module_names and not is_taken:
        return name
    return f"raysweep_user_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"


def load_target(target: Target) -> tuple[Any, ModuleType]:
    """Import the file of the target into this process, and return the object that the target names and the module of the object.

    The module has the name that `import` gives to the file, so that other processes can unpickle its classes.
    """
    root = str(target.import_root)
    if root not in sys.path:
        sys.path.insert(0, root)
    if target.module is not None:
        module = importlib.import_module(target.module)
    else:
        name = _module_name(target.path)
        if name not in sys.modules:
            spec = _FINDER.spec(name, target.path)
            assert spec is not None  # The spec exists because the path ends in .py.
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
