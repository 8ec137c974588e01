"""What an engine has found and compiled is kept for later engines, and everything that is not valid is ignored."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import raysweep
from raysweep.training.preparation import DataFacts
from raysweep.training.spec import TrainingSpec
from raysweep.tune.slots.benchmark import fitting
from raysweep.tune.slots.findings import Findings, FindingsFile, key_of
from raysweep.tune.slots.messages import EngineJob
from raysweep.usercode.freeze import Code
from raysweep.usercode.target import Target
from typed import engine_job

PACKAGE = Path(raysweep.__file__).parents[1]  # PYTHONPATH of a process that imports the package
FOUND = Findings(members=10, whole_batches=False, unfolds=True, alone_s=0.002, eager_s=0.001, prepared_s=0.0005)
FACTS = DataFacts((3, 32, 32), 10)
CPU = torch.device("cpu")


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EngineJob:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "first_node"))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")  # reading findings sets this variable
    for node in ("first_node", "second_node"):
        (tmp_path / node).mkdir()
    code = Code(Target(tmp_path / "net.py", "Net", None), {tmp_path / "net.py": b"class Net: ..."})
    return engine_job(tmp_path, code, max_slots=10, trials=20)


def findings_file(job: EngineJob) -> FindingsFile:
    return FindingsFile(job, FACTS, CPU)


def write_with_code(job: EngineJob) -> FindingsFile:
    """Write findings and one compiled file, as the engine on the first node does."""
    file = findings_file(job)
    assert file.read() == []
    compiled = file.compiler_dir / "ab"
    compiled.mkdir(parents=True)
    (compiled / "abc.so").write_bytes(b"code")
    (compiled / "abc.lock").touch()
    file.write([FOUND])
    return file


def test_another_node_gets_the_findings_and_the_compiled_files(job: EngineJob, monkeypatch: pytest.MonkeyPatch) -> None:
    first = write_with_code(job)
    assert first.path is not None
    assert first.path.parent.stat().st_mode & 0o777 == 0o700
    monkeypatch.setattr("tempfile.tempdir", str(job.root / "second_node"))
    second = findings_file(job)
    assert second.read() == [FOUND]
    assert second.compiler_dir.parent == job.root / "second_node"
    assert [path.name for path in second.compiler_dir.rglob("*.*")] == ["abc.so"]
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(second.compiler_dir)
    assert second.read() == [FOUND], "another engine of the node has unpacked the files before"
    assert os.listdir(job.root / "second_node") == [second.compiler_dir.name], "no temporary folder is left"


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-600])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def change_one_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[content.index(b"code")] ^= 1
    path.write_bytes(content)


def open_to_others(path: Path) -> None:
    path.parent.chmod(0o770)


def be_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def be_a_link(path: Path) -> None:
    path.parent.rename(path.parent.with_name("elsewhere"))
    path.parent.symlink_to(path.parent.with_name("elsewhere"))


@pytest.mark.parametrize("damage", [cut, empty, change_one_byte, open_to_others, be_a_folder, be_a_link])
def test_what_is_damaged_or_not_private_is_ignored(job: EngineJob, monkeypatch: pytest.MonkeyPatch, damage: Callable[[Path], None]) -> None:
    path = write_with_code(job).path
    assert path is not None
    damage(path)
    monkeypatch.setattr("tempfile.tempdir", str(job.root / "second_node"))
    file = findings_file(job)
    assert file.read() == []
    assert not file.compiler_dir.exists()


def test_findings_of_another_version_of_the_format_are_ignored(job: EngineJob, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr("raysweep.tune.slots.findings.to_json", lambda value: [{"members": 3, "speed": 2}])
        file = findings_file(job)
        file.write([FOUND])
    assert file.path is not None
    assert b'"speed": 2' in file.path.read_bytes()
    assert file.read() == []


def test_a_disk_that_takes_nothing_costs_one_warning(job: EngineJob, caplog: pytest.LogCaptureFixture) -> None:
    (job.root / "resources").mkdir()
    (job.root / "resources" / "compiled").write_text("a file in the place of the folder")
    findings_file(job).write([FOUND])
    [record] = caplog.records
    assert record.getMessage().startswith("A later run measures and compiles again, because the result of this run cannot be kept: ")


def test_a_folder_that_others_can_open_costs_one_warning_that_names_it(job: EngineJob, caplog: pytest.LogCaptureFixture) -> None:
    folder = job.root / "resources" / "compiled"
    folder.mkdir(parents=True, mode=0o755)
    findings_file(job).write([FOUND])
    [record] = caplog.records
    assert record.getMessage().endswith(f"run chmod 700, or remove the folder ({folder})")
    assert list(folder.iterdir()) == []


def test_a_plan_keeps_and_reads_nothing(job: EngineJob) -> None:
    write_with_code(job)
    file = findings_file(replace(job, compiled_dir=None))
    file.write([FOUND])
    assert file.read() == []


@pytest.mark.parametrize(
    ("slots", "fits"),
    [(10, True), (9, True), (8, True), (7, False), (11, False)],
)
def test_a_stack_of_about_the_same_size_is_used_again(slots: int, fits: bool) -> None:
    larger = replace(FOUND, members=20)
    assert fitting([larger, FOUND], slots) == (FOUND if fits else None)


def test_a_measurement_with_which_trials_are_trained_one_by_one_is_repeated() -> None:
    assert fitting([replace(FOUND, alone_s=0.0006)], 10) is None
    assert fitting([replace(FOUND, alone_s=0.0007)], 10) is not None
    assert fitting([replace(FOUND, alone_s=0.0007)], 9) is None, "filler members take time"
    assert fitting([replace(FOUND, alone_s=0.0012, prepared_s=None)], 10) is None


@pytest.mark.parametrize(
    "change",
    [
        {"code": Code(Target(Path("net.py"), "Net", None), {Path("net.py"): b"class Net: 1"})},
        {"code": Code(Target(Path("net.py"), "Other", None), {Path("net.py"): b"class Net: ..."})},
        {"spec": TrainingSpec("cross_entropy", "adam", order_seed=0)},
        {"samples": ({"lr": 0.01, "batch_size": 32},)},
        {"threads": 2},
        {"share_rows": False},
        {"versions": ("0", "another lock")},
        {"versions": ("1", "lock")},
    ],
)
def test_the_key_changes_with_what_the_findings_depend_on(job: EngineJob, change: dict[str, object]) -> None:
    assert key_of(replace(job, **change), FACTS, CPU) != key_of(job, FACTS, CPU)  # type: ignore[arg-type]


def test_the_key_is_the_same_in_each_session_of_a_sweep(job: EngineJob) -> None:
    later = replace(job, trials=3, max_epochs=8, max_slots=2, compiler_threads=2, root=job.root / "elsewhere")
    assert key_of(later, FACTS, CPU) == key_of(job, FACTS, CPU)
    assert key_of(job, replace(FACTS, row_shape=(1, 28, 28)), CPU) != key_of(job, FACTS, CPU)


# Runs the benchmark of an engine in the folder argv[1], and prints the way and the names of the compiled files.
ENGINE = """
import sys
from pathlib import Path
from raysweep.training.spec import TrainingSpec
from raysweep.tune.slots import benchmark
from raysweep.tune.slots.engine import Engine
from raysweep.tune.slots.messages import EngineJob
from raysweep.usercode.freeze import Code
from raysweep.usercode.target import find_target

benchmark.COMPILING_S = benchmark.LOADING_S = 0
root = Path(sys.argv[1])
engine = Engine(EngineJob(root, Code.read(find_target("net.py:Net", root)), root / "data", root / "resources" / "compiled", ("0", "lock"),
    TrainingSpec("cross_entropy", "sgd", 0), "accuracy", 1, False, 1, 2, 4000, 16, True, 4, 4, 1, 1,
    ({"lr": 0.01, "batch_size": 16}, {"lr": 0.02, "batch_size": 16}, {"lr": 0.03, "batch_size": 16}), 3))
print(engine.benchmark().way)
print(sorted(path.name for path in engine.findings.compiler_dir.rglob("*.so")))
"""
NET = """
from torch import nn

class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(3072, 4), nn.ReLU(), nn.Linear(4, 10))
"""


@pytest.mark.slow  # compiles
@pytest.mark.skipif(" " in sys.prefix, reason="PyTorch cannot compile in a folder whose path has a space")
def test_the_second_engine_compiles_nothing_though_its_environment_lies_elsewhere(job: EngineJob) -> None:
    from raysweep.data.manifest import DatasetSpec
    from raysweep.data.stage import stage

    root = job.root
    stage(DatasetSpec("some", "synthetic", "none", validation_fraction=0.1, seed=0), root / "downloads", root / "data")
    (root / "net.py").write_text(NET)
    (root / "engine.py").write_text(ENGINE)
    (root / "environment").symlink_to(sys.prefix)
    ways, libraries = [], []
    for python, node in ((Path(sys.executable), "first_node"), (root / "environment" / "bin" / Path(sys.executable).name, "second_node")):
        run = subprocess.run(
            [python, root / "engine.py", root],
            env={**os.environ, "TMPDIR": str(root / node), "PYTHONPATH": str(PACKAGE)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert run.returncode == 0, run.stderr
        way, names = run.stdout.splitlines()[-2:]
        ways.append(way)
        libraries.append(names)
    assert ways[0].startswith("compiled in ")
    assert ways[1].startswith("loaded in ")
    assert ways[1].endswith("measured in an earlier run")
    assert libraries[0] == libraries[1] != "[]"
