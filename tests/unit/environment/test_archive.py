"""The environment as one file: what a node gets of it, and what it says where that cannot be. Real virtualenvs, archives and file systems."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import yaml

from raysweep.common.errors import WorldError
from raysweep.environment import archive as packing
from raysweep.environment.archive import pack, unpack
from raysweep.environment.aside import host_of_pids
from raysweep.environment.build import build_environment
from raysweep.environment.manifest import Environment
from raysweep.environment.requirements import EnvironmentSpec
from raysweep.usercode.target import SCRIPTS_DIR
from wheels import make_wheel

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="environments are packed for the nodes of a cluster, which run Linux")

NODE = socket.gethostname()


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an environment with one package, of which one file is no Python; not packed yet."""
    folder = tmp_path_factory.mktemp("built")
    make_wheel(folder / "wheels", "apple", "1.2", code="COLOUR = 'red'\n")
    make_wheel(folder / "wheels", "template", "1.0", code="import {{ name }}\n")
    (folder / "node.in").write_text("apple\ntemplate\n")
    (folder / "node.txt").write_text("apple==1.2\ntemplate==1.0\n")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("UV_CACHE_DIR", str(folder / "cache"))
        build_environment(
            EnvironmentSpec(sys.executable, (), folder / "node.in", str(folder / "wheels"), "auto", gpu=False), folder / "env"
        )
    return folder / "env"


@pytest.fixture
def env_dir(built: Path, tmp_path: Path) -> Path:
    return shutil.copytree(built, tmp_path / "an env", symlinks=True)


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """A node's own disk: a folder in which nothing lies."""
    folder = tmp_path / "a node's disk"
    folder.mkdir()
    return folder


def colour_of(environment: Environment) -> str:
    """What a module of the environment says, and that it lies where its Python does."""
    program = "import apple, json; print(json.dumps([apple.COLOUR, apple.__file__]))"
    colour, file = json.loads(subprocess.run(environment.command(["-c", program]), capture_output=True, text=True, check=True).stdout)
    assert Path(file).is_relative_to(environment.python.parents[1])
    return colour


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# ------------------------------------------------------------------------------------------------------------ packing


def test_a_node_needs_no_more_than_the_archive_and_what_describes_it(env_dir: Path, disk: Path) -> None:
    pack(env_dir)
    shutil.rmtree(env_dir / "venv")
    assert names(env_dir) == ["env.tar", "env.yaml"]
    here = unpack(env_dir, disk)
    assert here.python == disk / "venv" / "bin" / "python"
    assert here.packages == Environment.load(env_dir).packages == {"apple": "1.2", "template": "1.0"}
    assert colour_of(here) == "red"


def test_a_node_compiles_nothing(env_dir: Path, disk: Path) -> None:
    pack(env_dir)
    [compiled] = (unpack(env_dir, disk).python.parents[1] / "lib").rglob("apple.*.pyc")
    before = compiled.stat().st_mtime_ns
    program = ["-v", "-c", "import apple"]
    said = subprocess.run(
        [str(disk / "venv" / "bin" / "python"), *program],
        capture_output=True,
        text=True,
        check=True,
        env={k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"},
    ).stderr
    assert f"{compiled} matches" in said
    assert compiled.stat().st_mtime_ns == before


def test_nothing_is_done_where_the_archive_is_current(env_dir: Path) -> None:
    pack(env_dir)
    before = (env_dir / "env.tar").stat()
    pack(env_dir)
    after = (env_dir / "env.tar").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


def test_an_environment_that_was_built_again_is_packed_again(env_dir: Path, disk: Path) -> None:
    pack(env_dir)
    [module] = (env_dir / "venv" / "lib").rglob("apple.py")
    module.write_text("COLOUR = 'green'\n")
    record = env_dir / "venv" / "raysweep.yaml"
    record.write_text(yaml.safe_dump(yaml.safe_load(record.read_text()) | {"built_ns": 1}))
    pack(env_dir)
    assert colour_of(unpack(env_dir, disk)) == "green"


@pytest.mark.parametrize("found", [b"", b"no archive at all" * 99])
def test_what_is_no_archive_is_packed_again(env_dir: Path, disk: Path, found: bytes) -> None:
    (env_dir / "env.tar").write_bytes(found)
    pack(env_dir)
    assert colour_of(unpack(env_dir, disk)) == "red"


def test_what_a_killed_packer_left_is_removed(env_dir: Path) -> None:
    dead = subprocess.Popen(["true"])
    dead.wait()
    (env_dir / f"env.tar.{host_of_pids()}.{dead.pid}").write_bytes(b"half of it")
    pack(env_dir)
    assert names(env_dir) == ["env.tar", "env.yaml", "venv"]


def test_the_environment_of_another_python_is_neither_packed_nor_unpacked(built: Path, tmp_path: Path, disk: Path) -> None:
    as_it_is = yaml.safe_load((built / "env.yaml").read_text()) | {"wheels": "none", "python": sys.executable}
    (tmp_path / "env.yaml").write_text(yaml.safe_dump(as_it_is))
    pack(tmp_path)
    assert unpack(tmp_path, disk).python == Path(sys.executable)
    assert not (tmp_path / "env.tar").exists()
    assert names(disk) == []


# ------------------------------------------------------------------------------------------------------------ what a node lacks


def fails(env_dir: Path, folder: Path) -> str:
    with pytest.raises(WorldError) as caught:
        unpack(env_dir, folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_no_archive_is_one_line(env_dir: Path, disk: Path) -> None:
    assert fails(env_dir, disk).startswith(
        f"{NODE}: {env_dir}/env.tar is not a whole environment (No such file or directory): remove it, if"
    )


@pytest.mark.parametrize("part", [0, 0.001, 0.3, 0.7])
def test_an_archive_that_was_cut_short_is_one_line(env_dir: Path, disk: Path, part: float) -> None:
    pack(env_dir)
    os.truncate(env_dir / "env.tar", int((env_dir / "env.tar").stat().st_size * part))
    said = fails(env_dir, disk)
    assert said.startswith(f"{NODE}: {env_dir}/env.tar is not a whole environment (")
    assert said.endswith("): remove it, if it is there, and run the same command again, which packs it anew.")


def test_an_archive_that_was_cut_between_two_files_in_which_tar_sees_nothing_wrong(env_dir: Path, disk: Path) -> None:
    pack(env_dir)
    with tarfile.open(env_dir / "env.tar") as archive:
        last = archive.getmembers()[-1]
    os.truncate(env_dir / "env.tar", last.offset)
    assert "is not a whole environment (it was cut short)" in fails(env_dir, disk)


def test_too_little_room_is_found_before_anything_is_unpacked(env_dir: Path, disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pack(env_dir)
    monkeypatch.setattr(packing, "UNPACKED_TO_PACKED", 1e12)
    said = fails(env_dir, disk)
    assert said.startswith(f"{NODE}: no room at {disk}: ")
    assert "GB are free, the environment takes" in said
    assert names(disk) == []


def test_a_node_without_the_python_under_it(env_dir: Path, disk: Path) -> None:
    (env_dir / "venv" / "bin" / "python").unlink()
    (env_dir / "venv" / "bin" / "python").symlink_to("/no/such/python")
    archive_of(env_dir)
    assert fails(env_dir, disk).startswith(f"{NODE} has no /no/such/python, the Python under the environment: env.python and env.modules")


def archive_of(env_dir: Path) -> None:
    """Pack without compiling, for which it takes a Python that runs."""
    packing._write_archive(env_dir / "env.tar", env_dir / "venv")


def mounted(options: str, env_dir: Path, disk: Path, program: str) -> str:
    """Run a program with a tmpfs at `disk`, in a mount namespace of its own; what it printed."""
    mount = 'mount -t tmpfs -o "$1" tmpfs "$2" && shift 2 && exec "$@"'
    unshare = ["unshare", "--user", "--map-root-user", "--mount"]
    if shutil.which("unshare") is None or subprocess.run([*unshare, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("this machine has no user namespaces, in which to mount a small disk")
    head = f"import sys\nfrom pathlib import Path\nsys.path.insert(0, {str(SCRIPTS_DIR)!r})\nfrom raysweep.environment import archive as packing\n"
    catch = "except packing.WorldError as error:\n    print(error)\n"
    code = f"{head}disk, env_dir = map(Path, sys.argv[1:])\ntry:\n    {program}\n{catch}"
    argv = [*unshare, "sh", "-c", mount, "sh", options, str(disk), sys.executable, "-c", code, str(disk), str(env_dir)]
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout


def test_a_disk_that_fills_up_meanwhile(env_dir: Path, disk: Path) -> None:
    pack(env_dir)
    said = mounted("size=40k", env_dir, disk, "packing.UNPACKED_TO_PACKED = 0; packing.unpack(env_dir, disk)")
    assert said.startswith(f"{NODE}: no room at {disk}: the environment, which takes 0.0 GB, has filled the disk. Next: ask for nodes")


def test_a_disk_from_which_nothing_may_be_run(env_dir: Path, disk: Path) -> None:
    pack(env_dir)
    said = mounted("noexec", env_dir, disk, "packing.unpack(env_dir, disk)")
    assert said == f"{NODE}: {disk} is on a disk from which nothing may be run (noexec): set TMPDIR to another folder.\n"


def test_a_disk_that_the_archive_does_not_fit_on(env_dir: Path, disk: Path) -> None:
    copy = "import shutil; shutil.copytree(env_dir, disk / 'env', symlinks=True); "
    fill = "(disk / 'filler').write_bytes(bytes(shutil.disk_usage(disk).free - 2**15)); "
    said = mounted("size=4m", env_dir, disk, f"{copy}{fill}packing.pack(disk / 'env')")
    assert said.startswith(f"{disk}/env/env.tar, the copy of the environment for the nodes, cannot be written: the disk is full.")


# ------------------------------------------------------------------------------------------------------------ kept between jobs


def test_what_is_kept_is_used_again_and_is_private(env_dir: Path, disk: Path, tmp_path: Path) -> None:
    pack(env_dir)
    first = unpack(env_dir, tmp_path, disk / "new" / "cache")
    inode = first.python.lstat().st_ino
    second = unpack(env_dir, tmp_path, disk / "new" / "cache")
    assert first == second
    assert second.python.lstat().st_ino == inode
    assert colour_of(second) == "red"
    assert second.python.is_relative_to(disk / "new" / "cache" / f"raysweep-{os.getuid()}")
    assert (disk / "new" / "cache" / f"raysweep-{os.getuid()}").stat().st_mode & 0o777 == 0o700
    assert not (tmp_path / "venv").exists()


def test_another_build_is_kept_beside_it(env_dir: Path, disk: Path, tmp_path: Path) -> None:
    pack(env_dir)
    before = unpack(env_dir, tmp_path, disk)
    record = env_dir / "venv" / "raysweep.yaml"
    record.write_text(record.read_text() + "another: build\n")
    pack(env_dir)
    after = unpack(env_dir, tmp_path, disk)
    assert before.python.parents[2] != after.python.parents[2]
    assert len(names(disk / f"raysweep-{os.getuid()}")) == 2


def test_jobs_that_unpack_at_once_end_with_the_same(env_dir: Path, disk: Path, tmp_path: Path) -> None:
    pack(env_dir)
    code = "import sys; from pathlib import Path; from raysweep.environment.archive import unpack; print(unpack(*map(Path, sys.argv[1:])).python)"
    argv = [sys.executable, "-c", code, str(env_dir), str(tmp_path), str(disk)]
    jobs = [subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(SCRIPTS_DIR)}) for _ in range(4)]
    pythons = {job.communicate(timeout=60)[0] for job in jobs}
    assert [job.returncode for job in jobs] == [0] * 4
    [python] = pythons
    assert Path(python.strip()).exists()
    assert len(names(disk / f"raysweep-{os.getuid()}")) == 1


def test_half_an_environment_is_never_kept(env_dir: Path, disk: Path, tmp_path: Path) -> None:
    pack(env_dir)
    os.truncate(env_dir / "env.tar", 20_000)
    with pytest.raises(WorldError, match="is not a whole environment"):
        unpack(env_dir, tmp_path, disk)
    assert names(disk / f"raysweep-{os.getuid()}") == []


@pytest.mark.parametrize(
    ("prepare", "said"),
    [
        (lambda disk: disk.chmod(0o777), "others can rename what lies in"),
        (lambda disk: disk.chmod(0o770), "others can rename what lies in"),
        (lambda disk: (disk / f"raysweep-{os.getuid()}").mkdir(mode=0o755), "is not yours alone (mode 0700): remove it"),
        (lambda disk: (disk / f"raysweep-{os.getuid()}").symlink_to("/tmp"), "is not yours alone (mode 0700): remove it"),
        (lambda disk: (disk / f"raysweep-{os.getuid()}").touch(), "cannot be used (File exists)"),
    ],
    ids=["anyone's", "the group's", "open", "a link", "a file"],
)
def test_a_folder_in_which_others_could_put_theirs(env_dir: Path, disk: Path, tmp_path: Path, prepare: object, said: str) -> None:
    pack(env_dir)
    assert callable(prepare)
    prepare(disk)
    with pytest.raises(WorldError) as caught:
        unpack(env_dir, tmp_path, disk)
    assert str(caught.value).startswith(f"{NODE}: env.cache_dir: ")
    assert said in str(caught.value)


def test_a_folder_like_tmp_will_do(env_dir: Path, disk: Path, tmp_path: Path) -> None:
    pack(env_dir)
    disk.chmod(0o1777)
    assert colour_of(unpack(env_dir, tmp_path, disk)) == "red"
