"""The environment that trials run in: built with uv from a list of requirements and its lock, checked, and described in a file beside it.

    resources/env/<key>/env.yaml        what was built; exists only when all of it works
    resources/env/<key>/venv/           the virtualenv, unless `wheels: none`
    resources/env/<key>/env.tar         the same for the nodes of a cluster, see packing.py

The virtualenv is made aside, under a name of its own for each builder, and renamed when it is whole (uv's relocatable virtualenvs may be
renamed). So builders need no lock, which file systems of clusters do not all keep: two of them at most do the same work twice, and what
a kill leaves behind is never taken for an environment.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from raysweep.common.errors import ConfigError, RaysweepError, WorldError
from raysweep.common.files import read_yaml, write_yaml
from raysweep.usercode.target import SCRIPTS_DIR, find_target

logger = logging.getLogger(__name__)

MINIMUM_PYTHON = (3, 11)
RECORD = "raysweep.yaml"  # in a virtualenv that is whole: what it is

# What an environment with torch takes on the disk, in GB: measured with torch 2.13 and Ray 2.60, and rounded up.
CPU_BUILD_GB = 1.7
CUDA_BUILD_GB = 5.2
WITHOUT_TORCH_GB = 0.3
PYPI_BUILD = "PyPI's build: 2.5 GB to download, 5 GB on disk" if sys.platform == "linux" else "PyPI's build"

# `module` is a shell function that only login shells define, hence `bash -l`. The words arrive as arguments: there is nothing to quote.
_LOAD_AND_EXEC = 'n=$1; shift; module load "${@:1:n}" && shift "$n" && exec "$@"'

_DESCRIBE_PYTHON = "import json, platform, sys; print(json.dumps({'python': sys.executable, 'version': platform.python_version()}))"
_LIST_PACKAGES = "import json; from importlib.metadata import distributions as d; print(json.dumps([[x.name, x.version] for x in d()]))"
_IMPORT_ALL = """
import importlib, os, sys, traceback
from pathlib import Path
sys.path.insert(0, sys.argv[1])
for name in sys.argv[2:]:
    print(f"raysweep imports {name}", flush=True)
    try:
        if ":" in name:
            from raysweep.usercode.freeze import load_target
            from raysweep.usercode.target import find_target
            load_target(find_target(name, Path.cwd()))
        else:
            importlib.import_module(name)
    except BaseException as error:
        traceback.print_exc()
        print("raysweep failed", " ".join(traceback.format_exception_only(error)[-1].split()), flush=True)
        sys.stderr.flush()
        os._exit(1)
"""


def process_environment() -> dict[str, str]:
    """The environment variables for processes of a trial's environment: the user's, without what would lead them into the controller's.

    Without PYTHONDONTWRITEBYTECODE as well: it would make every worker compile torch and Ray again.
    """
    inherited = ("VIRTUAL_ENV", "PYTHONPATH", "PYTHONHOME", "PYTHONDONTWRITEBYTECODE", "__PYVENV_LAUNCHER__", "UV_TORCH_BACKEND")
    return {name: value for name, value in os.environ.items() if name not in inherited}


def with_modules(modules: Sequence[str], argv: Sequence[str]) -> list[str]:
    """The command that runs `argv` after loading the site's `modules`, in that order."""
    return ["bash", "-lc", _LOAD_AND_EXEC, "bash", str(len(modules)), *modules, *argv] if modules else list(argv)


def in_container(container: str | None, argv: Sequence[str]) -> list[str]:
    """The command that runs `argv` in an Apptainer image, with what a node has of NVIDIA's driver; without an image just so.

    A path counts from the folder of Snakemake. The user's home is mounted, but nothing that he has installed there gets in. What a program needs besides
    is named in APPTAINER_BIND, see agent.py.
    """
    if container is None:
        return list(argv)
    nvidia = ["--nv"] if shutil.which("nvidia-smi") else []
    return ["apptainer", "exec", *nvidia, "--env", "PYTHONNOUSERSITE=1", "--bind", str(SCRIPTS_DIR), container, *argv]


def seen_in_container(env: dict[str, str], folders: Iterable[Path | str | None]) -> dict[str, str]:
    """The same variables, with folders that are to be seen in an image beside those that the user has named."""
    named = [env["APPTAINER_BIND"]] if env.get("APPTAINER_BIND") else []
    return env | {"APPTAINER_BIND": ",".join(dict.fromkeys([*named, *(str(folder) for folder in folders if folder)]))}


def lock_of(requirements: Path) -> Path:
    """The lock that lies beside a requirements file: node.in → node.txt."""
    return requirements.with_suffix(".txt")


def env_key(
    python: str, modules: Sequence[str], requirements: Path, wheels: str, torch_backend: str, gpu: bool, container: str | None = None
) -> str:
    """The name of an environment's folder: 12 hexadecimal digits over what the config says of it and its requirements and lock hold.

    The same on every machine: no process is asked, so that login and compute nodes agree. Raises ConfigError for a missing file.
    """
    digest = hashlib.sha256(json.dumps([python, list(modules), wheels, torch_backend, gpu]).encode())
    if container is not None:
        path = Path(container)
        if not path.exists():
            raise ConfigError(f"env.container: {container!r} is not allowed: there is no such image. Make one from workflow/envs/image.def")
        # By its size and time: to read all of it takes longer than all else before a job.
        digest.update(f"{container} {path.stat().st_size} {path.stat().st_mtime_ns}".encode())
    for path in (*_requirements_files(requirements), lock_of(requirements)):
        if not path.is_file():
            what, remedy = ("lock of env.requirements", f"make it with `uv pip compile --universal {requirements} -o {path}`")
            if path.suffix == ".in":
                what, remedy = ("requirements file (env.requirements)", "name one that exists; its lock lies beside it, as .txt")
            raise ConfigError(f"{path} is missing, the {what}: {remedy}")
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:12]


@dataclass(frozen=True)
class Environment:
    """An environment that is ready, as its env.yaml describes it."""

    key: str
    python: Path  # absolute
    python_version: str  # as in 3.11.7
    torch_backend: str | None  # cpu | cu130 … | pypi; None without torch
    wheels: str
    modules: tuple[str, ...]
    container: str | None  # the image in which it runs
    packages: dict[str, str]  # all that is installed: normalised name → version
    environment_sha256: str  # over X.Y of Python, the backend and the packages: what a result can depend on

    @classmethod
    def load(cls, env_dir: Path) -> Environment:
        """The environment in `env_dir`. Raises RaysweepError where none was finished."""
        path = env_dir / "env.yaml"
        if not path.is_file():
            raise RaysweepError(f"{path} is missing: the environment was not built. Run the rule build_env first.")
        return cls._from(read_yaml(path), env_dir)

    @classmethod
    def _from(cls, record: dict[str, Any], env_dir: Path) -> Environment:
        names = cls.__dataclass_fields__
        record = {name: value for name, value in record.items() if name in names} | {"modules": tuple(record["modules"])}
        record.setdefault("container", None)
        # The virtualenv may be moved along with the project, so where it lies is not taken from the record.
        python = Path(record["python"]) if record["wheels"] == "none" else env_dir.absolute() / "venv" / "bin" / "python"
        return cls(**(record | {"python": python}))

    def record(self) -> dict[str, Any]:
        """What env.yaml says of it."""
        return asdict(self) | {"python": str(self.python), "modules": list(self.modules)}

    def command(self, argv: Sequence[str]) -> list[str]:
        """The command that runs `python *argv` in this environment. Run it with `process_environment()`."""
        return with_modules(self.modules, in_container(self.container, [str(self.python), *argv]))

    def check_python(self) -> None:
        """Raise WorldError, with one line, where its Python does not run on this machine as it did where the environment was built."""
        node, remedy = socket.gethostname(), "env.python and env.modules have to lead to the same Python on all nodes"
        if self.container is not None and not os.path.exists(self.container):
            raise WorldError(f"{node} does not see the image {self.container}: it has to lie where all nodes do.")
        if self.container is None and not os.path.exists(self.python):  # a virtualenv's is a link
            raise WorldError(f"{node} has no {os.path.realpath(self.python)}, the Python under the environment: {remedy}.")
        try:
            found = _run(self.command(["-c", _DESCRIBE_PYTHON]))
        except OSError as error:
            raise WorldError(f"{node}: the environment's Python does not run ({error.strerror}): {remedy}.") from None
        if found.returncode != 0:
            raise WorldError(f"{node}: the environment's Python does not run: {_last_line(found.stderr)}. Next: {remedy}.")
        version = _last_json(found.stdout)["version"]
        if _xy(version) != _xy(self.python_version):
            raise WorldError(f"{node}: the environment is for Python {self.python_version}, and its Python here is {version}: {remedy}.")


@dataclass(frozen=True)
class Recipe:
    """What the config asks for, section `env`."""

    python: str
    modules: tuple[str, ...]
    requirements: Path
    wheels: str
    torch_backend: str
    gpu: bool  # whether torch_backend: auto has to serve GPUs, of this machine or of others
    container: str | None = None

    @property
    def key(self) -> str:
        return env_key(self.python, self.modules, self.requirements, self.wheels, self.torch_backend, self.gpu, self.container)


def build_environment(recipe: Recipe, output_dir: Path) -> Environment:
    """Make sure that the environment in `output_dir` is there, whole and importable; does nothing where it is.

    Raises RaysweepError, with one line, for all that can be wrong with the config or the world.
    """
    key = recipe.key
    if recipe.wheels != "download" and recipe.torch_backend != "auto":
        raise ConfigError(
            f"env.torch_backend: {recipe.torch_backend!r} is not allowed with wheels: {recipe.wheels}, where the wheels decide. "
            "Leave it at auto, or set wheels: download"
        )
    base = _find_python(recipe)
    output_dir.mkdir(parents=True, exist_ok=True)
    path_to_record = output_dir / "env.yaml"
    before = read_yaml(path_to_record) if path_to_record.is_file() else {}

    environment: Environment | None
    if recipe.wheels == "none":
        environment = _described(recipe, key, Path(base.path), base)
        _require(environment.packages, recipe)
        if environment.record() != before:
            _check_imports(
                environment, _libraries(recipe.requirements), "mend it, or let the workflow make an environment (wheels: download)"
            )
    else:
        environment = _finished(output_dir, recipe, key, base)
        if environment is None:
            path_to_record.unlink(missing_ok=True)
            before = {}
            environment = _build_venv(output_dir, recipe, key, base)
    if environment.record() != before:
        write_yaml(path_to_record, environment.record())
    logger.debug("environment %s: Python %s, torch: %s", key, environment.python_version, environment.torch_backend)
    return environment


def check_import(env_dir: Path, names: Sequence[str], requirements: Path) -> None:
    """Import modules and targets (`path/to/file.py:name` or `package.module:name`) in the environment of the trials.

    Raises RaysweepError, with one line, for the first that fails.
    """
    for name in names:
        if ":" in name:
            find_target(name, Path.cwd())
    _check_imports(Environment.load(env_dir), names, f"mend the file, or add what it needs to {requirements} and lock that again")


# ---------------------------------------------------------------------------------------------------------------- the virtualenv


@dataclass(frozen=True)
class Interpreter:
    """A Python that was found by running it."""

    path: str  # absolute
    version: str


def _build_venv(env_dir: Path, recipe: Recipe, key: str, base: Interpreter) -> Environment:
    """Build the virtualenv aside, check it, and put it at its place."""
    started = time.monotonic()
    with made_aside(env_dir / "venv") as aside:
        arguments = ["--quiet", "--relocatable", "--no-project", "--python", base.path, str(aside)]
        _must(_uv(["venv", *arguments], recipe.modules), "The virtualenv cannot be made")
        python = aside / "bin" / "python"
        if recipe.wheels == "download":
            _install_by_download(python, env_dir, recipe)
        elif recipe.wheels == "site":
            _install_from_site(python, env_dir, recipe, base)
        else:
            _install_from_folder(python, env_dir, recipe)
        built = _described(recipe, key, python, base)
        _check_imports(
            built,
            _libraries(recipe.requirements),
            "if it stays so, the wheels do not fit this machine: try another env.python or env.torch_backend",
        )
        # Moves with the virtualenv, so that no record ever describes another one; and is no other's, by the place aside and the time.
        write_yaml(aside / RECORD, built.record() | {"built_ns": time.time_ns()})
        environment = _published(aside, built, env_dir, recipe, base)
    logger.info("Environment: Python %s, %d packages, built in %.0f s", base.version, len(built.packages), time.monotonic() - started)
    return environment


def _published(aside: Path, built: Environment, env_dir: Path, recipe: Recipe, base: Interpreter) -> Environment:
    """Rename a virtualenv to its place, unless another builder has put an equal one there; the environment that is there then."""
    while (other := _finished(env_dir, recipe, built.key, base)) is None:
        try:
            aside.rename(env_dir / "venv")
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            with suppress(FileNotFoundError):  # another builder has taken the outdated one away
                shutil.rmtree((env_dir / "venv").rename(aside.with_name(f"{aside.name}.old")))
        else:
            return Environment._from(built.record(), env_dir)
    return other


@contextmanager
def made_aside(path: Path) -> Iterator[Path]:
    """A place beside `path` that is this process's own, and is empty again afterwards. What killed ones left there is removed first."""
    _remove_left_behind(path)
    aside = path.with_name(f"{path.name}.{socket.gethostname()}.{os.getpid()}")
    _remove(aside)
    try:
        yield aside
    finally:
        _remove(aside)


def _finished(env_dir: Path, recipe: Recipe, key: str, base: Interpreter) -> Environment | None:
    """The whole virtualenv of an environment, or None where there is none, or where it is not what would be built now."""
    path = env_dir / "venv" / RECORD
    if not path.is_file():
        return None
    record = read_yaml(path)
    environment = Environment._from(record, env_dir)
    if environment.key != key or environment.python_version != base.version:
        return None
    try:
        environment.check_python()
    except WorldError:  # the Python under it was removed, or is another one now
        return None
    return environment


def _remove_left_behind(made: Path) -> None:
    """Remove what those left who made `made` and were killed: those of this machine that are gone, and any that is older than a day."""
    for path in made.parent.glob(f"{made.name}.*.*"):
        host, _, pid = path.name.removesuffix(".old").removeprefix(f"{made.name}.").rpartition(".")
        try:
            dead = time.time() - path.stat().st_mtime > 86_400
        except FileNotFoundError:  # its owner has just removed it
            continue
        if host == socket.gethostname() and pid.isdecimal():
            try:
                os.kill(int(pid), 0)
            except ProcessLookupError:
                dead = True
            except PermissionError:
                pass  # alive, and somebody else's
        if dead:
            logger.debug("removing %s, which a killed process left", path)
            _remove(path)


def _remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_file():
        path.unlink(missing_ok=True)
    else:
        shutil.rmtree(path, ignore_errors=True)


# ---------------------------------------------------------------------------------------------------------------- where packages come from


def _install_by_download(python: Path, env_dir: Path, recipe: Recipe) -> None:
    """Install the requirements in the versions of the lock.

    The lock only constrains: torch's CPU build does not depend on the CUDA packages that the lock has for PyPI's build.
    """
    arguments = ["--python", str(python), "--requirements", str(recipe.requirements), "--constraints", str(lock_of(recipe.requirements))]
    failure = "The environment cannot be resolved"
    size_gb = WITHOUT_TORCH_GB
    if "torch" in _libraries(recipe.requirements):
        # ASSUME what PyPI has of torch: for macOS the CPU build, for Linux a CUDA build, which runs without a GPU as well
        backend = "pypi" if sys.platform == "darwin" else recipe.torch_backend
        if backend == "auto" and recipe.gpu and not _has_gpu():
            logger.info("A sweep asks for GPUs and this machine has none to go by, hence %s", PYPI_BUILD)
            backend = "pypi"
        elif backend == "auto":
            backend = "auto" if recipe.gpu else "cpu"
            # A dry run resolves, which takes the index. One short try, since it may well be out of reach.
            probe = _install(recipe, "--dry-run", "--torch-backend", backend, *arguments, UV_HTTP_RETRIES="1", UV_HTTP_CONNECT_TIMEOUT="5")
            if probe.returncode != 0:
                logger.debug("torch's own index fails: %s", _reason(probe.stderr))
                logger.info("torch's own index is out of reach, hence %s", PYPI_BUILD)
                backend = "pypi"
        if backend != "pypi":
            arguments += ["--torch-backend", backend]
            failure = f"env.torch_backend: {backend!r} cannot be had; use auto, which falls back on PyPI's build, or pypi. uv says"
        size_gb = CPU_BUILD_GB if backend == "cpu" or sys.platform == "darwin" else CUDA_BUILD_GB
    plan = _must(_install(recipe, "--dry-run", "--verbose", *arguments), failure)
    uncached = re.findall(r"uncached distribution: (\S+?)==", plan.stderr)
    # Whatever is not torch or its CUDA packages is small.
    to_cache_gb = size_gb if re.search(r"torch|nvidia|cuda|triton", " ".join(uncached)) else WITHOUT_TORCH_GB if uncached else 0.0
    _check_space(env_dir, size_gb, to_cache_gb)
    if uncached:
        logger.info("Packages to download to uv's cache: %d (up to %.1f GB on disk)", len(uncached), to_cache_gb)
    _must(_install(recipe, *arguments), "The environment cannot be installed")


def _install_from_folder(python: Path, env_dir: Path, recipe: Recipe) -> None:
    """Install from a folder of wheels, in the versions of the lock, without network."""
    folder = Path(recipe.wheels)
    if not folder.is_dir():
        raise ConfigError(f"env.wheels: {recipe.wheels!r} is not allowed: download, site, none, or a folder of wheels that exists")
    arguments = ["--python", str(python), "--offline", "--no-index", "--find-links", str(folder.absolute())]
    arguments += ["--requirements", str(recipe.requirements), "--constraints", str(lock_of(recipe.requirements))]
    failure = f"env.wheels: the folder {folder} lacks what {recipe.requirements} and its lock ask for; put the wheel there. uv says"
    plan = _must(_install(recipe, "--dry-run", *arguments), failure)
    chosen = {(canonicalize_name(name), version) for name, version in re.findall(r"^ \+ (\S+?)==(\S+)", plan.stderr, re.MULTILINE)}
    wheels = [path for path in folder.glob("*.whl") if (canonicalize_name(path.name.split("-")[0]), path.name.split("-")[1]) in chosen]
    size_gb = _unpacked_gb(wheels)
    _check_space(env_dir, size_gb, size_gb)
    _must(_install(recipe, *arguments), failure)


def _install_from_site(python: Path, env_dir: Path, recipe: Recipe, base: Interpreter) -> None:
    """Install what the site's pip chooses from the site's wheelhouse for the names and minimum versions of the requirements.

    pip alone reads the site's configuration, so it resolves, and sees what the modules bring; uv then installs exactly those files.
    """
    report, listed = (python.parent.parent / name for name in ("pip-report.json", "site-wheels.txt"))
    argv = [base.path, "-m", "pip", "--python", str(python), "--disable-pip-version-check", "install", "--dry-run", "--quiet", "--no-index"]
    resolved = _run(with_modules(recipe.modules, [*argv, "--report", str(report), "--requirement", str(recipe.requirements)]))
    logger.debug("pip says: %s", resolved.stderr)
    if resolved.returncode != 0:
        if "no such option" in resolved.stderr or "No module named pip" in resolved.stderr:
            raise ConfigError(f"env.wheels: site needs pip 22.3 or newer for {base.path}: load a newer Python module, or set env.python")
        reason = next(iter(re.findall(r"^ERROR: (.*?)\.?$", resolved.stderr, re.MULTILINE)[-1:]), _last_line(resolved.stderr))
        raise ConfigError(
            f"env.wheels: the site's wheelhouse lacks what {recipe.requirements} asks for: {reason}. "
            "Load the modules that bring it (env.modules), ask for less, or use wheels: download where the network is"
        )
    chosen = [
        (item["metadata"]["name"], item["download_info"]["url"]) for item in json.loads(report.read_text(encoding="utf-8"))["install"]
    ]
    if not chosen:  # the modules bring everything
        return
    size_gb = _unpacked_gb(Path(url2pathname(urlsplit(url).path)) for _, url in chosen if url.startswith("file:"))
    _check_space(env_dir, size_gb, size_gb)
    listed.write_text("".join(f"{name} @ {url}\n" for name, url in chosen), encoding="utf-8")
    _must(
        _install(recipe, "--python", str(python), "--no-deps", "--no-index", "--requirements", str(listed)),
        "The site's wheels do not install",
    )


def _has_gpu() -> bool:
    """Whether this machine has an NVIDIA GPU that works."""
    if shutil.which("nvidia-smi") is None:
        return False
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60, check=False)
    except subprocess.TimeoutExpired:
        logger.warning("nvidia-smi does not answer: taking this machine for one without a GPU")
        return False
    return listed.returncode == 0 and "GPU " in listed.stdout


def _unpacked_gb(wheels: Iterable[Path]) -> float:
    return sum(member.file_size for path in wheels for member in zipfile.ZipFile(path).infolist()) / 1e9


def _check_space(env_dir: Path, needed_gb: float, to_cache_gb: float) -> None:
    """Raise WorldError where the file systems of uv's cache and of the environment cannot hold it. They share the files if they are one."""
    cache = Path(_must(_uv(["cache", "dir"]), "uv does not work").stdout.strip())
    while not cache.exists():
        cache = cache.parent
    places = [(cache, to_cache_gb, "uv's cache, which UV_CACHE_DIR moves")]
    if cache.stat().st_dev != env_dir.stat().st_dev:
        places.append((env_dir, needed_gb, "the environment, which resources_dir in the config moves"))
    for path, size_gb, purpose in places:
        free_gb = shutil.disk_usage(path).free / 1e9
        if free_gb < size_gb:
            raise WorldError(f"Not enough disk space at {path} for {purpose}: {free_gb:.1f} GB are free, {size_gb:.1f} GB are needed.")


# ---------------------------------------------------------------------------------------------------------------- what is in it


def _find_python(recipe: Recipe) -> Interpreter:
    """What `env.python` means once the modules are loaded."""
    try:
        found = _run(with_modules(recipe.modules, in_container(recipe.container, [recipe.python, "-c", _DESCRIBE_PYTHON])))
    except OSError as error:
        if recipe.container is not None:
            raise ConfigError(
                f"env.container: apptainer cannot be run ({error.strerror}): load its module (env.modules), or leave env.container out"
            ) from None
        raise ConfigError(f"env.python: {recipe.python!r} cannot be run ({error.strerror}): name a Python {_minimum()} or newer") from None
    if found.returncode != 0:
        key, value = ("env.modules", list(recipe.modules)) if recipe.modules else ("env.python", recipe.python)
        if recipe.container is not None:
            key, value = "env.container", recipe.container
        raise ConfigError(f"{key}: {value!r} does not lead to a Python that runs: {_last_line(found.stderr)}")
    described = _last_json(found.stdout)
    if tuple(map(int, described["version"].split(".")[:2])) < MINIMUM_PYTHON:
        raise ConfigError(f"env.python: {recipe.python!r} is Python {described['version']}: name a Python {_minimum()} or newer")
    return Interpreter(described["python"], described["version"])


def _minimum() -> str:
    return ".".join(map(str, MINIMUM_PYTHON))


def _xy(version: str) -> str:
    """3.11.7 → 3.11: what compiled packages are made for."""
    return ".".join(version.split(".")[:2])


def _installed(command: list[str]) -> dict[str, str]:
    """All distributions that an interpreter sees, those of loaded modules too."""
    listed = _run([*command, "-c", _LIST_PACKAGES])
    if listed.returncode != 0:
        raise RaysweepError(f"{command[-1]} does not run: {_last_line(listed.stderr)}")
    packages: dict[str, str] = {}
    for name, version in _last_json(listed.stdout):
        if name:  # a broken installation leaves nameless ones
            packages.setdefault(canonicalize_name(name), version)  # the first on sys.path is the one that is imported
    return dict(sorted(packages.items()))


def _described(recipe: Recipe, key: str, python: Path, base: Interpreter) -> Environment:
    """What an interpreter's environment holds."""
    packages = _installed(with_modules(recipe.modules, in_container(recipe.container, [str(python)])))
    backend = (packages["torch"].partition("+")[2] or "pypi") if "torch" in packages else None
    sha256 = hashlib.sha256(json.dumps([_xy(base.version), backend, packages], sort_keys=True).encode()).hexdigest()
    return Environment(key, python.absolute(), base.version, backend, recipe.wheels, recipe.modules, recipe.container, packages, sha256)


def _requirements_files(path: Path) -> list[Path]:
    """A requirements file and those that it includes."""
    found = [path]
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            if match := re.match(r"\s*(?:-r|--requirement)[ =]\s*(\S+)", line):
                found += _requirements_files(path.parent / match[1])
    return found


def _requirements(path: Path) -> list[Requirement]:
    """The requirements of a file and those that it includes, as far as their markers hold here."""
    found = []
    for file in _requirements_files(path):
        for line in file.read_text(encoding="utf-8").splitlines():
            text = re.sub(r"(^|\s)#.*", "", line).strip()
            if not text or text.startswith("-"):
                continue
            try:
                requirement = Requirement(text)
            except InvalidRequirement as error:
                raise ConfigError(f"{file}: {text!r} is not a requirement: {error}") from None
            if requirement.marker is None or requirement.marker.evaluate():
                found.append(requirement)
    return found


def extras_of(requirements: Path, name: str) -> set[str]:
    """The extras that a requirements file asks for with a package: ray[default,tune] → default, tune."""
    return {extra for r in _requirements(requirements) if canonicalize_name(r.name) == name for extra in r.extras}


def lists(requirements: Path, name: str) -> bool:
    """Whether a requirements file asks for a package."""
    return any(canonicalize_name(r.name) == name for r in _requirements(requirements))


def _libraries(path: Path) -> list[str]:
    """The modules to import for a check: those whose wheels can be installed and yet not work, and those by which Ray knows its extras."""
    names = {str(canonicalize_name(r.name)) for r in _requirements(path)}
    of_extras = {"tune": "ray.tune", "default": "ray.dashboard.optional_deps"}
    found = [name for name in ("torch", "torchvision", "ray") if name in names]
    return found + [module for extra, module in of_extras.items() if extra in extras_of(path, "ray")]


def _require(packages: dict[str, str], recipe: Recipe) -> None:
    """Raise ConfigError where an environment that is taken as it is lacks a requirement."""
    lacking = [
        f"{r} (it has {packages[name]})" if name in packages else str(r)
        for r in _requirements(recipe.requirements)
        if (name := canonicalize_name(r.name)) not in packages or not r.specifier.contains(packages[name], prereleases=True)
    ]
    if lacking:
        what, remedy = (
            f"env.wheels: none takes the environment of {recipe.python!r}",
            "let the workflow make an environment (wheels: download)",
        )
        if recipe.container is not None:
            what, remedy = f"env.container takes the image {recipe.container!r}", "make one from workflow/envs/image.def"
        raise ConfigError(f"{what} as it is, and that lacks {', '.join(lacking)} of {recipe.requirements}. Install them there, or {remedy}")


def _check_imports(environment: Environment, names: Sequence[str], next_step: str) -> None:
    """Import modules and targets in the environment. Raises RaysweepError with the first that fails, and why."""
    if not names:
        return
    logger.debug("importing %s", ", ".join(names))
    run = _run(environment.command(["-c", _IMPORT_ALL, str(SCRIPTS_DIR), *names]))
    logger.debug("the imports said: %s %s", run.stdout.strip(), run.stderr.strip())
    if run.returncode == 0:
        return
    lines = run.stdout.splitlines()
    name = next((line.removeprefix("raysweep imports ") for line in reversed(lines) if line.startswith("raysweep imports ")), "Python")
    died = f"killed by signal {-run.returncode}" if run.returncode < 0 else f"exit code {run.returncode}, {_last_line(run.stderr)}"
    reason = next((line.removeprefix("raysweep failed ") for line in lines if line.startswith("raysweep failed ")), died)
    raise RaysweepError(f"{name} cannot be imported in the environment of the trials: {reason.rstrip('.')}. Next: {next_step}.")


# ---------------------------------------------------------------------------------------------------------------- processes


def _install(recipe: Recipe, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run `uv pip install`."""
    return _uv(["pip", "install", *arguments], recipe.modules, **variables)


def _uv(arguments: Sequence[str], modules: Sequence[str] = (), **variables: str) -> subprocess.CompletedProcess[str]:
    """Run uv: that of the controller's environment, with the user's own settings (UV_*, proxies).

    After the modules, where it asks a Python what it is: that may need libraries that they bring.
    """
    import uv  # only the controller's environment has it

    argv = [uv.find_uv_bin(), "--color", "never", "--no-progress", *arguments]
    logger.debug("uv %s", " ".join(argv[1:]))
    run = _run(with_modules(modules, argv), UV_PYTHON_DOWNLOADS="never", **variables)  # no Python is an error: uv would download one
    logger.debug("%s", "\n".join(line for line in (run.stderr or run.stdout).splitlines() if not line.startswith(("DEBUG ", "TRACE "))))
    return run


def _must(run: subprocess.CompletedProcess[str], failure: str) -> subprocess.CompletedProcess[str]:
    """Raise a one-line error for a call of uv that failed: of the network, the disk, or with `failure` and uv's reason."""
    if run.returncode == 0:
        return run
    reason = _reason(run.stderr)
    if "No space left on device" in run.stderr or "quota exceeded" in run.stderr.lower():
        raise WorldError(f"The disk is full: {reason}. Free some space (`uv cache prune` helps), then run the same command again.")
    network = re.search(r"error sending request|Failed to (fetch|download)|operation timed out|error decoding response body", run.stderr)
    if not network:
        raise ConfigError(f"{failure}: {reason}")
    remedy = "Run it again where the network is: on a cluster run `--until build_env` on a login node first"
    if "env.torch_backend" in failure:
        raise WorldError(f"{failure}: {reason}. {remedy}.")
    raise WorldError(f"A download failed: {reason}. {remedy}. UV_DEFAULT_INDEX names a mirror; uv reads no pip configuration.")


def _reason(stderr: str) -> str:
    """uv's error with its causes, in one line."""
    lines = [line.strip() for line in stderr.splitlines()]
    parts = [line.split(": ", 1)[1] for line in lines if line.startswith(("error: ", "cause: "))]
    return ": ".join(parts).rstrip(".") or _last_line(stderr)


def _run(argv: list[str], **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(argv, capture_output=True, text=True, errors="replace", env=process_environment() | variables, check=False)


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1].strip() if lines else "it said nothing"


def _last_json(text: str) -> Any:
    """The JSON on the last line: a login shell may print a greeting before it."""
    return json.loads(_last_line(text))
