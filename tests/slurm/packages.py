"""Slurm's programs for the tests: Debian's packages, unpacked and not installed. And why there are none, where there are none."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from functools import cache
from pathlib import Path

PACKAGES_DIR = Path(__file__).resolve().parents[2] / "resources" / "slurm-packages"
PACKAGES = (
    *("munge", "slurm-client", "slurm-wlm-basic-plugins", "slurmctld", "slurmd"),
    *("slurmdbd", "slurm-wlm-mysql-plugin", "mariadb-server-core", "iproute2"),
)
IS_ROOT = os.getuid() == 0
# An ordinary user stays himself, in a user namespace of his, in which he may do what follows.
UNSHARE = ["unshare", *([] if IS_ROOT else ["--user", "--map-current-user", "--keep-caps"]), "--net", "--uts", "--mount", "--ipc"]


class Unavailable(Exception):
    """This machine has no Slurm for us, for a reason that is no fault of ours."""


@cache
def reason_to_skip() -> str | None:
    """Why no cluster can run on this machine, in one line, or None."""
    for tool in ("apt-get", "dpkg", "unshare", "nsenter", "setpriv"):
        if not shutil.which(tool):
            return f"no Slurm here: this machine has no {tool}"
    try:
        environment = daemon_environment(unpacked())
    except Unavailable as error:
        return f"no Slurm here: {error}"
    script = "mount -t tmpfs none /mnt && ip link add bridge0 type bridge && ip link add v0 type veth peer name v1"
    argv = [*UNSHARE, "--pid", "--fork", "--mount-proc", "sh", "-c", script]
    tried = subprocess.run(argv, env=environment, capture_output=True, text=True, check=False)
    return f"no Slurm here: this user may not make namespaces ({_last_line(tried.stderr)})" if tried.returncode else None


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["it says nothing"])[-1]


def unpacked() -> Path:
    """The folder of the packages and of all they need that this machine lacks; downloaded once. Raises Unavailable."""
    if not _complete():
        PACKAGES_DIR.parent.mkdir(exist_ok=True)
        with PACKAGES_DIR.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # another worker may be at it
            if not _complete():
                _unpack()
    return PACKAGES_DIR


def _complete() -> bool:
    made_from = PACKAGES_DIR / "packages.txt"
    return made_from.exists() and made_from.read_text().split() == list(PACKAGES)


def _unpack() -> None:
    partial = PACKAGES_DIR.with_suffix(".partial")
    for folder in (PACKAGES_DIR, partial):
        shutil.rmtree(folder, ignore_errors=True)
    for folder in ("debs", "apt/lists/partial", "apt/archives/partial"):
        (partial / folder).mkdir(parents=True)
    _download(partial)
    for deb in (partial / "debs").glob("*.deb"):
        subprocess.run(["dpkg", "-x", deb, partial], check=True)
    for daemon in ("slurmctld", "slurmd", "slurmstepd"):
        # The name counts: under another one (Debian has slurmd-wlm) a daemon drops every Gres= without a word.
        (partial / "usr/sbin" / daemon).symlink_to(f"{daemon}-wlm")
    for plugin in partial.glob("usr/lib/*/slurm-wlm/mpi_pmix*.so"):
        plugin.unlink()  # Slurm loads all that it finds, and complains where PMIx is missing
    for folder in ("debs", "apt"):
        shutil.rmtree(partial / folder)
    (partial / "packages.txt").write_text("\n".join(PACKAGES))
    partial.rename(PACKAGES_DIR)


def _download(folder: Path) -> None:
    """Fetch into `folder`/debs: by the machine's own package lists, or, where it has none or stale ones, by fresh lists in `folder`."""
    own_lists = ["-o", f"Dir::State={folder}/apt", "-o", f"Dir::Cache={folder}/apt", "-o", "APT::Sandbox::User="]

    def apt(*arguments: str) -> str:
        argv = ["apt-get", "-q", "-o", "Acquire::Retries=1", "-o", "Acquire::http::Timeout=20", *arguments]
        done = subprocess.run(argv, cwd=folder / "debs", capture_output=True, text=True, check=False, env=os.environ | {"LC_ALL": "C"})
        if done.returncode:
            raise Unavailable(f"its packages cannot be fetched (apt-get: {_last_line(done.stderr)})")
        return done.stdout

    def fetch(*options: str) -> None:
        simulated = apt(*options, "install", "--simulate", "--no-install-recommends", *PACKAGES)
        lacking = [line.split()[1] for line in simulated.splitlines() if line.startswith("Inst ")]
        apt(*options, "download", *sorted({*lacking, *PACKAGES}))

    try:
        fetch()
    except Unavailable:
        apt(*own_lists, "update")
        fetch(*own_lists)


def libraries(packages: Path) -> list[Path]:
    """Where the unpacked programs find their libraries."""
    return [folder for pattern in ("lib/*-linux-gnu*", "usr/lib/*-linux-gnu*", "usr/lib/*/slurm-wlm") for folder in packages.glob(pattern)]


def daemon_environment(packages: Path) -> dict[str, str]:
    """The environment of the daemons. Clients and jobs never see it."""
    folders = [*(f"{packages}/{folder}" for folder in ("usr/sbin", "usr/bin", "sbin", "bin")), "/usr/sbin", "/usr/bin", "/sbin", "/bin"]
    found = ":".join(map(str, libraries(packages)))
    return {"PATH": ":".join(folders), "LD_LIBRARY_PATH": found, "SLURMSTEPD": f"{packages}/usr/sbin/slurmstepd"}
