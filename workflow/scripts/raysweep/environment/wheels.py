"""Installs packages into a virtualenv from the network, from a folder of wheels, or from the wheelhouse of the site. Only this module runs uv."""

from __future__ import annotations

import json
import logging
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from packaging.utils import canonicalize_name

from raysweep.common.errors import ConfigError, WorldError, is_full_disk
from raysweep.common.gpus import visible_gpus
from raysweep.environment.commands import INSTALL_DEADLINE_S, last_line, process_environment, run_captured, with_modules
from raysweep.environment.requirements import EnvironmentSpec, lists, lock_of, parse_requirements

logger = logging.getLogger(__name__)

# The sizes on the disk, in GB, of an environment with torch's CPU build, with torch's CUDA build, and without torch. The sizes were measured with
# torch 2.13 and Ray 2.60 and rounded up.
CPU_BUILD_GB = 1.7
CUDA_BUILD_GB = 5.2
WITHOUT_TORCH_GB = 0.3
PYPI_BUILD = "PyPI's build: 2.5 GB to download, 5 GB on disk" if sys.platform == "linux" else "PyPI's build"


def make_venv(folder: Path, base_python: str, modules: Sequence[str]) -> None:
    """Make an empty virtualenv in `folder`. This virtualenv still works after its folder is renamed."""
    arguments = ["--quiet", "--relocatable", "--no-project", "--python", base_python, str(folder)]
    _check(_run_uv(["venv", *arguments], modules), "The virtualenv cannot be made")


def install(python: Path, env_dir: Path, spec: EnvironmentSpec, base_python: str) -> None:
    """Install the requirements into the virtualenv of `python`. The final path of this virtualenv is in `env_dir`.

    Raises ConfigError, with one line that names the key of the config, or WorldError, with one line that names the fault of the machine.
    """
    if spec.wheels == "download":
        _install_by_download(python, env_dir, spec)
    elif spec.wheels == "site":
        _install_from_site(python, env_dir, spec, base_python)
    else:
        _install_from_folder(python, env_dir, spec)


# ---------------------------------------------------------------------------------------------------------------- sources of wheels


def _install_by_download(python: Path, env_dir: Path, spec: EnvironmentSpec) -> None:
    """Install the requirements in the versions of the lock.

    uv uses the lock only as constraints and does not install every package of the lock. The reason is that the lock lists the CUDA packages of PyPI's
    build of torch, and torch's CPU build does not depend on these packages.
    """
    arguments = ["--python", str(python), "--requirements", str(spec.requirements), "--constraints", str(lock_of(spec.requirements))]
    failure, size_gb, backend = "The environment cannot be resolved", WITHOUT_TORCH_GB, None
    if lists(spec.requirements, "torch"):
        backend = _choose_torch_backend(spec, arguments)
        size_gb = CPU_BUILD_GB if backend == "cpu" or sys.platform == "darwin" else CUDA_BUILD_GB
    if backend is not None and backend != "pypi":
        arguments += ["--torch-backend", backend]
        failure = f"env.torch_backend: {backend!r} cannot be had; use auto, which falls back on PyPI's build, or pypi. uv says"
    plan = _check(_install(spec, "--dry-run", "--verbose", *arguments), failure, is_about_torch_index="--torch-backend" in arguments)
    uncached = re.findall(r"uncached distribution: (\S+?)==", plan.stderr)
    # All packages except torch and its CUDA packages are small.
    to_cache_gb = size_gb if re.search(r"torch|nvidia|cuda|triton", " ".join(uncached)) else WITHOUT_TORCH_GB if uncached else 0.0
    _check_space(env_dir, size_gb, to_cache_gb)
    if uncached:
        logger.info("Packages to download to uv's cache: %d (up to %.1f GB on disk)", len(uncached), to_cache_gb)
    logger.info("Installing the packages with uv")
    _check(_install(spec, *arguments), "The environment cannot be installed")


def _choose_torch_backend(spec: EnvironmentSpec, arguments: Sequence[str]) -> str:
    """Return the value for uv's option --torch-backend, or `pypi` for PyPI's build of torch.

    ASSUME PyPI has the CPU build of torch for macOS, and a CUDA build of torch for Linux, which also runs on machines without a GPU.
    """
    if sys.platform == "darwin":
        return "pypi"
    if spec.torch_backend != "auto":
        return spec.torch_backend
    if spec.gpu:
        count, reason = visible_gpus()
        if count == 0:
            logger.info("A sweep asks for GPUs, but this machine has none to choose a build by (%s): installing %s", reason, PYPI_BUILD)
            return "pypi"
    backend = "auto" if spec.gpu else "cpu"
    # A dry run resolves the requirements, for which uv needs torch's package index. The dry run has one retry and a short time limit, because this
    # machine often cannot reach that index.
    probe = _install(spec, "--dry-run", "--torch-backend", backend, *arguments, UV_HTTP_RETRIES="1", UV_HTTP_CONNECT_TIMEOUT="5")
    if probe.returncode == 0:
        return backend
    logger.debug("torch's own index fails: %s", _uv_reason(probe.stderr))
    logger.info("torch's own index is out of reach: installing %s", PYPI_BUILD)
    return "pypi"


def _install_from_folder(python: Path, env_dir: Path, spec: EnvironmentSpec) -> None:
    """Install the requirements from a folder of wheels, in the versions of the lock, without network."""
    folder = Path(spec.wheels)
    if not folder.is_dir():
        raise ConfigError(f"env.wheels: {spec.wheels!r} is not allowed: download, site, none, or a folder of wheels that exists")
    arguments = ["--python", str(python), "--offline", "--no-index", "--find-links", str(folder.absolute())]
    arguments += ["--requirements", str(spec.requirements), "--constraints", str(lock_of(spec.requirements))]
    failure = f"env.wheels: the folder {folder} lacks what {spec.requirements} and its lock ask for; put the wheel there. uv says"
    plan = _check(_install(spec, "--dry-run", *arguments), failure)
    chosen = {(canonicalize_name(name), version) for name, version in re.findall(r"^ \+ (\S+?)==(\S+)", plan.stderr, re.MULTILINE)}
    wheels = [path for path in folder.glob("*.whl") if (canonicalize_name(path.name.split("-")[0]), path.name.split("-")[1]) in chosen]
    size_gb = _unpacked_gb(wheels)
    _check_space(env_dir, size_gb, size_gb)
    _check(_install(spec, *arguments), failure)


def _install_from_site(python: Path, env_dir: Path, spec: EnvironmentSpec, base_python: str) -> None:
    """Install the wheels that pip chooses from the site's wheelhouse for the requirements.

    pip chooses the wheels, because only pip reads the site's configuration, and because pip sees the packages of the loaded modules. uv then installs
    exactly the wheels that pip chose. The lock is not used.
    """
    resolved, items = _ask_pip(python, spec, base_python, spec.requirements)
    if resolved.returncode != 0:
        if "no such option" in resolved.stderr or "No module named pip" in resolved.stderr:
            raise ConfigError(f"env.wheels: site needs pip 22.3 or newer for {base_python}: load a newer Python module, or set env.python")
        reason = next(iter(re.findall(r"^ERROR: (.*?)\.?$", resolved.stderr, re.MULTILINE)[-1:]), last_line(resolved.stderr))
        raise ConfigError(
            f"env.wheels: the site's wheelhouse lacks what {spec.requirements} asks for: "
            f"{', '.join(_old_versions_of_site(python, spec, base_python)) or reason}. "
            "Load the modules that bring it (env.modules), ask for less, or use wheels: download where the network is"
        )
    chosen = [(item["metadata"]["name"], item["download_info"]["url"]) for item in items]
    if not chosen:  # The loaded modules already bring all packages.
        return
    size_gb = _unpacked_gb(Path(url2pathname(urlsplit(url).path)) for _, url in chosen if url.startswith("file:"))
    _check_space(env_dir, size_gb, size_gb)
    listed = python.parent.parent / "site-wheels.txt"
    listed.write_text("".join(f"{name} @ {url}\n" for name, url in chosen), encoding="utf-8")
    arguments = ["--python", str(python), "--no-deps", "--no-index", "--requirements", str(listed)]
    _check(_install(spec, *arguments), "The site's wheels do not install")


def _ask_pip(
    python: Path, spec: EnvironmentSpec, base_python: str, requirements: Path
) -> tuple[subprocess.CompletedProcess[str], list[dict[str, Any]]]:
    """Return the run of pip that chooses the site's wheels for `requirements`, and pip's description of the wheels to install."""
    report = python.parent.parent / "pip-report.json"
    argv = [
        base_python,
        "-m",
        "pip",
        "--python",
        str(python),
        "--disable-pip-version-check",
        "install",
        "--dry-run",
        "--quiet",
        "--no-index",
    ]
    run = run_captured(with_modules(spec.modules, [*argv, "--report", str(report), "--requirement", str(requirements)]), INSTALL_DEADLINE_S)
    logger.debug("pip printed: %s", run.stderr)
    return run, json.loads(report.read_text(encoding="utf-8"))["install"] if run.returncode == 0 else []


def _old_versions_of_site(python: Path, spec: EnvironmentSpec, base_python: str) -> list[str]:
    """Return all requirements that the site's versions do not fulfil, with these versions, because pip names only the first requirement.

    pip chooses versions for the names of the packages alone. The list is empty where the wheelhouse lacks one of the packages.
    """
    requirements, names = parse_requirements(spec.requirements), python.parent.parent / "site-names.txt"
    names.write_text("".join(f"{r.name}[{','.join(sorted(r.extras))}]\n" for r in requirements), encoding="utf-8")
    _, items = _ask_pip(python, spec, base_python, names)
    versions = {canonicalize_name(item["metadata"]["name"]): item["metadata"]["version"] for item in items}
    pairs = [(requirement, versions.get(canonicalize_name(requirement.name))) for requirement in requirements]
    return [
        f"{r} (it has {version})" for r, version in pairs if version is not None and not r.specifier.contains(version, prereleases=True)
    ]


# ---------------------------------------------------------------------------------------------------------------- space


def _unpacked_gb(wheels: Iterable[Path]) -> float:
    """Return the unpacked size of all files in `wheels`, in GB."""
    return sum(member.file_size for path in wheels for member in zipfile.ZipFile(path).infolist()) / 1e9


def _check_space(env_dir: Path, needed_gb: float, to_cache_gb: float) -> None:
    """Raise WorldError where the file system of uv's cache or of the environment lacks space.

    Where the cache and the environment lie on one file system, the environment needs no extra space, because its files are links to the files in the cache.
    """
    cache = Path(_check(_run_uv(["cache", "dir"]), "uv does not work").stdout.strip())
    while not cache.exists():
        cache = cache.parent
    places = [(cache, to_cache_gb, "uv's cache, which UV_CACHE_DIR moves")]
    if cache.stat().st_dev != env_dir.stat().st_dev:
        places.append((env_dir, needed_gb, "the environment, which resources_dir in the config moves"))
    for path, size_gb, purpose in places:
        free_gb = shutil.disk_usage(path).free / 1e9
        if free_gb < size_gb:
            raise WorldError(f"Not enough disk space at {path} for {purpose}: {free_gb:.1f} GB are free, {size_gb:.1f} GB are needed.")


# ---------------------------------------------------------------------------------------------------------------- uv


def _install(spec: EnvironmentSpec, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run `uv pip install` with `arguments` and return the result. `variables` are extra environment variables."""
    return _run_uv(["pip", "install", *arguments], spec.modules, **variables)


def _run_uv(arguments: Sequence[str], modules: Sequence[str] = (), **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the uv of the controller's environment with the user's own settings (UV_*, proxies), and return the result.

    The modules are loaded first, because uv starts the Python of the environment to learn its version, and this Python may need libraries of the modules.
    """
    import uv  # Only the controller's environment has the package uv.

    argv = [uv.find_uv_bin(), "--color", "never", "--no-progress", *arguments]
    logger.debug("uv %s", " ".join(argv[1:]))
    # Without UV_PYTHON_DOWNLOADS="never" uv would download a missing Python.
    run = run_captured(
        with_modules(modules, argv), INSTALL_DEADLINE_S, process_environment() | {"UV_PYTHON_DOWNLOADS": "never"} | variables
    )
    logger.debug("%s", "\n".join(line for line in (run.stderr or run.stdout).splitlines() if not line.startswith(("DEBUG ", "TRACE "))))
    return run


def _check(run: subprocess.CompletedProcess[str], failure: str, *, is_about_torch_index: bool = False) -> subprocess.CompletedProcess[str]:
    """Return `run`, which is a run of uv, where the run succeeded. Raises an error of one line where the run failed.

    WorldError is raised for a full disk or a network failure. ConfigError, which is `failure` with uv's reason, is raised for all other failures.
    `is_about_torch_index` says that the run used torch's package index. A network failure of such a run also begins with `failure`, because
    `failure` then names the setting that avoids that index.
    """
    if run.returncode == 0:
        return run
    reason = _uv_reason(run.stderr)
    if is_full_disk(run.stderr) or "quota exceeded" in run.stderr.lower():
        raise WorldError(f"The disk is full: {reason}. Free some space (`uv cache prune` helps), then run the same command again.")
    if not re.search(r"error sending request|Failed to (fetch|download)|operation timed out|error decoding response body", run.stderr):
        raise ConfigError(f"{failure}: {reason}")
    remedy = "Run it again where the network is: on a cluster run `--until build_env` on a login node first"
    if is_about_torch_index:
        raise WorldError(f"{failure}: {reason}. {remedy}.")
    raise WorldError(f"A download failed: {reason}. {remedy}. UV_DEFAULT_INDEX names a mirror; uv reads no pip configuration.")


def _uv_reason(stderr: str) -> str:
    """Return the error that uv printed and the causes of that error, in one line."""
    lines = [line.strip() for line in stderr.splitlines()]
    parts = [line.split(": ", 1)[1] for line in lines if line.startswith(("error: ", "cause: "))]
    return ": ".join(parts).rstrip(".") or last_line(stderr)
