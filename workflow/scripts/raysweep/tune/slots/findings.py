"""This module keeps what the benchmark of an engine has found (benchmark.py), with the files of the compiler, for later engines, sessions and runs.

Each file in the folder `compiled` of the resources belongs to one key. The key contains everything on which the findings depend. The file starts with the
SHA-256 of an archive. The archive contains the findings as JSON, and the compiler's folder, in which PyTorch finds the compiled code of a step by the content
of the step. So compiled code of another step is never used.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import platform
import stat
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

from raysweep import __version__
from raysweep.common.compiler import default_compiler
from raysweep.common.errors import describe_os_error, logger
from raysweep.common.files import written_aside
from raysweep.common.typed_json import from_json, to_json
from raysweep.training.preparation import DataFacts
from raysweep.training.private import COMPILER_DIR_ENV
from raysweep.tune.slots.messages import EngineJob

JSON_NAME = "findings.json"  # name of the findings in the archive
DIGEST_LENGTH = 64  # number of characters of a SHA-256


@dataclass(frozen=True)
class Findings:
    """Contains the result of the measurements of a benchmark. The times are in seconds for one row of the data, for all members together."""

    members: int  # number of trials in the measured stack
    whole_batches: bool  # see EngineSetup
    unfolds: bool  # see EngineSetup
    alone_s: float  # time of training the members one after the other
    eager_s: float  # time of training the members together with eager steps
    # Time of training the members together with compiled or captured steps. None where such steps were not tried.
    prepared_s: float | None = None


class FindingsFile:
    """Reads and writes the findings for the trials of one job on one kind of device. The folder belongs to the user alone, because its files contain code."""

    def __init__(self, job: EngineJob, facts: DataFacts, device: torch.device) -> None:
        key = key_of(job, facts, device)
        self.path = job.compiled_dir / key
        # All engines of a node use this folder, because the engines of a node share the folder for temporary files.
        self.compiler_dir = Path(tempfile.gettempdir()) / f"compiled-{key}"

    def read(self) -> Findings | None:
        """Return the findings, or None where no earlier engine has written findings that are valid. Unpack the compiler's folder, and let PyTorch use it."""
        os.environ[COMPILER_DIR_ENV] = str(self.compiler_dir)
        if not self._is_private():
            return None
        try:
            content = self.path.read_bytes()
            digest, archive = content[:DIGEST_LENGTH], content[DIGEST_LENGTH:]
            if hashlib.sha256(archive).hexdigest().encode() != digest:
                raise ValueError("the SHA-256 differs")
            with tempfile.TemporaryDirectory(dir=self.compiler_dir.parent) as folder, tarfile.open(fileobj=io.BytesIO(archive)) as tar:
                tar.extractall(folder, filter="data")
                text = Path(folder, JSON_NAME)
                findings: Findings = from_json(Findings, json.loads(text.read_text()))
                text.unlink()
                # Another engine of this node may have unpacked, or filled, the folder before.
                with contextlib.suppress(OSError):
                    Path(folder).rename(self.compiler_dir)
                    Path(folder).mkdir()  # TemporaryDirectory removes this folder
        except (OSError, ValueError, TypeError, tarfile.TarError) as error:
            logger.debug("%s is ignored: %s", self.path, error)
            return None
        return findings

    def write(self, findings: Findings) -> None:
        """Write the findings and the compiler's folder. A fault of the disk is only logged, because a later run can measure and compile again."""
        archive = io.BytesIO()
        text = json.dumps(to_json(findings)).encode()
        with tarfile.open(fileobj=archive, mode="w") as tar:
            info = tarfile.TarInfo(JSON_NAME)
            info.size = len(text)
            tar.addfile(info, io.BytesIO(text))
            if self.compiler_dir.is_dir():
                for path in sorted(self.compiler_dir.iterdir()):
                    tar.add(path, path.name, filter=lambda member: None if member.name.endswith(".lock") else member)
        content = archive.getvalue()
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            if self._is_private():
                with written_aside(self.path, "wb") as stream:
                    stream.write(hashlib.sha256(content).hexdigest().encode() + content)
        except OSError as error:
            logger.warning(
                "A later run measures and compiles again, because the result of this run cannot be kept: %s", describe_os_error(error)
            )

    def _is_private(self) -> bool:
        """Return whether only this user can write to the folder. Another user's file would run as this user."""
        try:
            status = self.path.parent.lstat()
        except OSError:
            return False
        return stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and not status.st_mode & 0o077


def key_of(job: EngineJob, facts: DataFacts, device: torch.device) -> str:
    """Return a SHA-256 of everything on which the findings depend: the model, the training, the trials' sizes, PyTorch, the device and the compiler."""
    depends_on = [
        __version__,
        job.code.sha256(),
        [(each.name, each.module) for each in job.code.targets],
        to_json(job.spec),
        [facts.row_shape, facts.num_classes, facts.inputs is None, facts.target is None],
        [job.threads, job.memory_mb, job.micro_batch_size, job.share_rows],
        [job.num_forms, job.num_batch_sizes, job.num_kinds, job.samples],
        [torch.__version__, sys.version, *_device_name(device)],
    ]
    return hashlib.sha256(json.dumps(depends_on, sort_keys=True).encode()).hexdigest()


def _device_name(device: torch.device) -> list[str]:
    """Return the properties of a device that influence the speed of a step and the compiled code."""
    if device.type != "cpu":
        properties = torch.get_device_module(device).get_device_properties(device)
        return [device.type, properties.name, str(properties.total_memory)]
    models = {line for line in _text_of(Path("/proc/cpuinfo")).splitlines() if line.startswith("model name")}
    compiler = default_compiler()
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False).stdout if compiler else ""
    return [platform.machine(), *sorted(models), torch.backends.cpu.get_cpu_capability(), version.partition("\n")[0]]


def _text_of(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
