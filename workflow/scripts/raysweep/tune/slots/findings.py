"""This module keeps what the benchmark of an engine has found (benchmark.py), with the files of the compiler, for later engines, sessions and runs.

Each file in the folder `compiled` of the resources belongs to one key. The key is a hash of everything on which the findings depend. The file starts with the
SHA-256 of an archive. The archive contains the findings as JSON, and the compiler's folder, in which PyTorch finds the compiled code of a step by the content
of the step. So compiled code of another step is never used.
"""

from __future__ import annotations

import contextlib
import errno
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

from raysweep.common.compiler import COMPILER_DEADLINE_S, default_compiler
from raysweep.common.errors import describe_os_error, logger
from raysweep.common.files import written_aside
from raysweep.common.typed_json import from_json, to_json
from raysweep.training.preparation import DataFacts
from raysweep.training.private import COMPILER_DIR_ENV
from raysweep.tune.slots.messages import EngineJob

JSON_NAME = "findings.json"  # name of the findings in the archive
DIGEST_LENGTH = 64  # number of characters of a SHA-256
# Keys of /proc/cpuinfo on x86 and ARM. Virtual machines often have one name for several kinds of CPUs.
CPU_KEYS = ("vendor_id", "cpu family", "model", "model name", "stepping", "flags", "Features", "CPU implementer", "CPU part", "CPU variant")


@dataclass(frozen=True)
class Findings:
    """Contains the result of the measurements of a benchmark. Each time is the sum over all members, in seconds for one row of the data."""

    members: int  # number of trials in the measured stack
    whole_batches: bool  # see EngineSetup
    unfolds: bool  # see EngineSetup
    alone_s: float  # time of training the members one after the other
    eager_s: float  # time of training the members together with eager steps
    # Time of training the members together with compiled or captured steps. None where such steps were not tried.
    prepared_s: float | None = None

    def speed_up(self, num_trials: int, is_prepared: bool) -> float:
        """Return the speed-up of training `num_trials` trials together, which are at most `members`.

        Filler members complete a prepared stack to `members`, so such a stack takes as long as a full stack. This estimate is too low for eager stacks, which
        have no filler members.
        """
        together_s = self.prepared_s if is_prepared and self.prepared_s else self.eager_s
        return self.alone_s * num_trials / self.members / together_s


class FindingsFile:
    """Reads and writes the findings for the trials of one job on one kind of device. The folder belongs to the user alone, because its files contain code.

    `compiled_dir` of the job is None where nothing is kept.
    """

    def __init__(self, job: EngineJob, facts: DataFacts, device: torch.device) -> None:
        self.key = key_of(job, facts, device)
        self.path = job.compiled_dir / self.key if job.compiled_dir else None
        # The agent of a node gives all its engines one folder for temporary files, which no other user can open. So all engines use the same `compiler_dir`.
        self.compiler_dir = Path(tempfile.gettempdir()) / f"compiled-{self.key}"

    def read(self) -> list[Findings]:
        """Return the valid findings of earlier engines, one for each number of members.

        Unpack the compiled files of these engines, and set an environment variable so that PyTorch uses these files.
        """
        if self.path is None:
            return []
        os.environ[COMPILER_DIR_ENV] = str(self.compiler_dir)
        if not is_private(self.path.parent):
            return []
        try:
            content = self.path.read_bytes()
            digest, archive = content[:DIGEST_LENGTH], content[DIGEST_LENGTH:]
            if hashlib.sha256(archive).hexdigest().encode() != digest:
                raise ValueError("the SHA-256 differs")
            with tempfile.TemporaryDirectory(dir=self.compiler_dir.parent) as folder, tarfile.open(fileobj=io.BytesIO(archive)) as tar:
                tar.extraction_filter = getattr(tarfile, "data_filter", None)  # Python before 3.11.4 has no filters
                tar.extractall(folder)
                text = Path(folder, JSON_NAME)
                findings = [from_json(Findings, each) for each in json.loads(text.read_text())]
                text.unlink()
                # Another engine of this node may have unpacked, or filled, the folder before.
                with contextlib.suppress(OSError):
                    Path(folder).rename(self.compiler_dir)
                    Path(folder).mkdir()  # TemporaryDirectory removes this folder
        except (OSError, ValueError, TypeError, tarfile.TarError) as error:
            logger.debug("%s is ignored: %s", self.path, error)
            return []
        return findings

    def write(self, findings: list[Findings]) -> None:
        """Write the findings and the compiler's folder. A fault of the disk is only logged, because a later run can measure and compile again."""
        if self.path is None:
            return
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not is_private(self.path.parent):
                raise PermissionError(
                    errno.EPERM,
                    "other users can open this folder, or another user owns this folder: run chmod 700, or remove the folder",
                    str(self.path.parent),
                )
            archive = self._archive(json.dumps(to_json(findings)).encode())
            with written_aside(self.path, "wb") as stream:
                stream.write(hashlib.sha256(archive).hexdigest().encode() + archive)
        except (OSError, tarfile.TarError) as error:
            reason = describe_os_error(error) if isinstance(error, OSError) else str(error)
            logger.warning("A later run measures and compiles again, because the result of this run cannot be kept: %s", reason)

    def _archive(self, text: bytes) -> bytes:
        archive = io.BytesIO()
        with tarfile.open(fileobj=archive, mode="w") as tar:
            info = tarfile.TarInfo(JSON_NAME)
            info.size = len(text)
            tar.addfile(info, io.BytesIO(text))
            if self.compiler_dir.is_dir():
                for path in sorted(self.compiler_dir.iterdir()):
                    tar.add(path, path.name, filter=lambda member: None if member.name.endswith((".lock", ".tmp")) else member)
        return archive.getvalue()


def is_private(folder: Path) -> bool:
    """Return whether `folder` is a folder, and not a link, that only this user can open. Code from another user's file would run with this user's rights."""
    try:
        status = folder.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and not status.st_mode & 0o077


def key_of(job: EngineJob, facts: DataFacts, device: torch.device) -> str:
    """Return a SHA-256 of everything on which the findings depend: the model, the training, the trials' sizes, the environment, and the device."""
    depends_on = [
        job.versions,
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
    """Return the properties of a device that influence the speed of a step and the compiled code. The compiler makes code for all instructions of a CPU."""
    if device.type != "cpu":
        properties = torch.get_device_module(device).get_device_properties(device)
        return [device.type, properties.name, str(properties.total_memory)]
    compiler, version = default_compiler(), ""
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        argv = [compiler or "", "--version"]
        run = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=COMPILER_DEADLINE_S)
        version = run.stdout.partition("\n")[0]
    return [platform.machine(), *_cpu_description(), version]


def _cpu_description() -> list[str]:
    """Return the lines of /proc/cpuinfo that name the kind and the instructions of the CPUs."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return [torch.backends.cpu.get_cpu_capability()]
    return sorted({line for line in lines if line.split("\t")[0].split(":")[0].strip() in CPU_KEYS})
