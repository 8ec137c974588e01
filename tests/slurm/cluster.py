"""A real Slurm for the tests: munged, slurmctld and some slurmd on this one machine, installed nowhere and gone without a trace.

Each node is a little machine in namespaces of its own: hostname, address, processes, /dev/shm, /tmp and scratch disk. They hang on a bridge
that leads nowhere. Commands of a user run on the "login" machine, which shares processes and files with this one, or on a node.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from slurm.conf import SUBNET, Options, address, write_conf
from slurm.packages import IS_ROOT, UNSHARE, daemon_environment, libraries, unpacked
from sweeping import REPOSITORY, wait_until

CLIENTS = ("sacct", "sacctmgr", "salloc", "sbatch", "scancel", "scontrol", "sinfo", "squeue", "srun", "sshare")
WITHOUT_RIGHTS = ["setpriv", "--inh-caps=-all", "--ambient-caps=-all"]  # no more than the user has himself
GUEST, GUEST_UID = "guest", 60001  # a second user, known on the cluster alone
ACCOUNT = "def-tests"  # of both users, on a cluster with accounting

# $1: the cluster's folder, then folders that only root may enter and that Python lies in: on the cluster they stand open, or its second user
# could run nothing. Ethernet addresses are fixed, so that a node that was off is found again.
LOGIN_SCRIPT = f"""
hostname login
for name in hosts passwd group resolv.conf ld.so.cache; do [ ! -e "/etc/$name" ] || mount --bind "$1/etc/$name" "/etc/$name"; done
ip link set lo up
ip link add bridge0 address 02:00:00:00:00:01 type bridge
ip address add {SUBNET}.1/24 dev bridge0
ip link set bridge0 up
ip route add default dev bridge0
shift
for folder; do
    mount --rbind "$folder" /mnt
    mount -t tmpfs -o mode=755 none "$folder"
    find /mnt -mindepth 1 -maxdepth 1 | while read -r entry; do
        new="$folder/${{entry##*/}}"
        if [ -L "$entry" ]; then cp -P "$entry" "$new"; continue; fi
        if [ -d "$entry" ]; then mkdir "$new"; else touch "$new"; fi
        mount --rbind "$entry" "$new"
    done
    umount --lazy /mnt
done
"""
# A node's first process. $1: its folder, $2: its name, $3: its number, $4: MB of /dev/shm, $5: folders that all nodes share.
# It reaps orphans, and ends with slurmd.
NODE_SCRIPT = f"""
hostname "$2"
on_login() {{ nsenter --net=/proc/self/fd/3 "$@"; }}
on_login ip link add "v$2" type veth peer name eth0 address "02:00:00:00:00:$3" netns 1
on_login ip link set "v$2" master bridge0 up
exec 3<&-
ip link set lo up
ip address add "{SUBNET}.$3/24" dev eth0
ip link set eth0 up
ip route add default via {SUBNET}.1
mount -t tmpfs -o "mode=1777,size=$4m" none /dev/shm
mount --bind "$1/scratch" /mnt
printf %s "$5" | while read -r folder; do
    case $folder in /tmp/*) mkdir -p "$1$folder" && mount --rbind "$folder" "$1$folder";; esac
done
mount --rbind "$1/tmp" /tmp
{" ".join(WITHOUT_RIGHTS)} slurmd -D -N "$2" -f "$SLURM_CONF" -d "$SLURMSTEPD" &
wait
"""


class SlurmCluster:
    """A cluster in the new folder `base`, whose path is short, since sockets lie below it. A context manager; the folder goes with it.

    Nodes are node1, node2, …; partitions `main` (the default) and `short` (one node, two minutes). `shared` are folders below /tmp that nodes
    see too; all else of /tmp is each node's own. `options` are those of conf.Options.
    """

    def __init__(self, base: Path, shared: Sequence[Path] = (), **options: Any) -> None:
        self.base, self.options = base, Options(**options)
        self.nodes = self.options.names
        self.shared = base / "shared"  # a folder that everyone sees and may write to
        self.shared_folders = [base, REPOSITORY, *shared]
        self.packages = base / "packages"
        self.packages.symlink_to(unpacked())  # slurm.conf takes no path with a space in it
        self.daemon_env = daemon_environment(self.packages) | {"SLURM_CONF": f"{base}/etc/slurm.conf"}
        self._pids: dict[str, int] = {}  # of slurmctld and of each node's first process
        self._write_folders()
        self._write_clients()
        write_conf(base, self.options, self.packages)

    def _write_folders(self) -> None:
        for folder in ("bin", "dev", "etc", "home", "log", "run", "shared", "spool/slurmctld", "db"):
            (self.base / folder).mkdir(parents=True)
        for node in self.nodes:
            for folder in (f"nodes/{node}/tmp", f"nodes/{node}/scratch", f"spool/{node}"):
                (self.base / folder).mkdir(parents=True)
            for folder in ("tmp", "scratch"):
                (self.base / "nodes" / node / folder).chmod(0o1777)
        self.base.chmod(0o755)
        self.shared.chmod(0o1777)
        home = self.base / "home" / GUEST
        home.mkdir(mode=0o700)
        if IS_ROOT:
            os.chown(home, GUEST_UID, GUEST_UID)
        etc = self.base / "etc"
        hosts = {"localhost": "127.0.0.1", "login": f"{SUBNET}.1"} | {node: address(node) for node in self.nodes}
        (etc / "hosts").write_text("".join(f"{ip} {name}\n" for name, ip in hosts.items()))
        (etc / "resolv.conf").touch()  # unknown names fail at once
        (etc / "passwd").write_text(Path("/etc/passwd").read_text() + f"{GUEST}:x:{GUEST_UID}:{GUEST_UID}::{home}:/bin/sh\n")
        (etc / "group").write_text(Path("/etc/group").read_text() + f"{GUEST}:x:{GUEST_UID}:\n")
        (etc / "munge.key").touch(mode=0o600)
        (etc / "munge.key").write_bytes(os.urandom(128))
        # On the cluster, clients and the children of slurmstepd find the unpacked libraries without LD_LIBRARY_PATH, which jobs would inherit.
        ldconfig = ["ldconfig", "-X", "-C", etc / "ld.so.cache", *libraries(self.packages)]
        subprocess.run(ldconfig, env=self.daemon_env, check=True)

    def _write_clients(self) -> None:
        """Clients that know where their configuration is: no variable can tell them, since Snakemake's jobstep deletes all of Slurm's."""
        for name in CLIENTS:
            client = self.base / "bin" / name
            client.write_text(f'#!/bin/sh\nexport SLURM_CONF={self.base}/etc/slurm.conf\nexec {self.packages}/usr/bin/{name} "$@"\n')
            client.chmod(0o755)

    def __enter__(self) -> SlurmCluster:
        argv = [*UNSHARE, sys.executable, str(Path(__file__).with_name("supervisor.py")), str(self.base)]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self._supervisor = subprocess.Popen(argv, env=self.daemon_env, start_new_session=True, **pipes)
        try:
            self._bring_up()
        except BaseException as error:
            error.add_note(self.logs())
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End all that runs on the cluster, and remove its folder."""
        self._supervisor.communicate(timeout=300)
        if self._supervisor.returncode or self.base.exists():
            raise RuntimeError(f"the cluster in {self.base} did not end well (exit code {self._supervisor.returncode})")

    def _ask(self, verb: str, *arguments: object) -> Any:
        """Have the supervisor do something, and return its answer. Raises RuntimeError with what it says against it."""
        assert self._supervisor.stdin
        assert self._supervisor.stdout
        print(json.dumps([verb, *map(str, arguments)]), file=self._supervisor.stdin, flush=True)
        answer = json.loads(self._supervisor.stdout.readline() or '{"error": "the supervisor ended"}')
        if "error" in answer:
            raise RuntimeError(f"{verb} {arguments[0]}: {answer['error']}")
        return answer.get("pid")

    def _bring_up(self) -> None:
        on_the_way = [folder for path in (REPOSITORY, Path(sys.executable).resolve()) for folder in reversed(path.parents)]
        closed = [folder for folder in dict.fromkeys(on_the_way) if IS_ROOT and not folder.stat().st_mode & stat.S_IXOTH]
        self._ask("run", "sh", "-euc", LOGIN_SCRIPT, "login", self.base, *closed)
        run, etc = self.base / "run", self.base / "etc"
        munged = ["munged", "--foreground", "--force", f"--socket={run}/munge", f"--key-file={etc}/munge.key"]
        munged += [f"--pid-file={run}/munged.pid", f"--seed-file={run}/munged.seed"]
        self._ask("start", "munged", *WITHOUT_RIGHTS, *munged)
        wait_until((run / "munge").exists, "munged is up")
        if self.options.accounting:
            self._start_accounting()
        self.start_controller()
        for node in self.nodes:
            self._power_on(node)
        self.wait_for_nodes(*self.nodes)

    def _start_accounting(self) -> None:
        (system_tables,) = self.packages.glob("usr/share/m*/*_system_tables.sql")  # mysql in Debian 12, mariadb in Debian 13
        share = system_tables.parent
        # The server starts with the one table of its own that slurmdbd's stored procedure needs, and with slurmdbd's database. If slurmdbd had to create
        # the database, slurmdbd would connect twice on one handle. After the first, failed attempt libmariadb 11.8 limits the columns of an answer to 0.
        tables = system_tables.read_text().splitlines()
        (table,) = [line for line in tables if line.startswith("CREATE TABLE IF NOT EXISTS proc ")]
        (self.base / "etc/init.sql").write_text(f"CREATE DATABASE mysql;\nUSE mysql;\n{table}\nCREATE DATABASE slurm_acct_db;\n")
        options = {
            "datadir": self.base / "db",
            "socket": self.base / "run/db",
            "init-file": self.base / "etc/init.sql",
            "lc-messages-dir": share,
            "character-sets-dir": share / "charsets",
            "bind-address": "127.0.0.1",
            "innodb-buffer-pool-size": "32M",
            "innodb-log-file-size": "16M",
            "innodb-flush-log-at-trx-commit": 0,
        } | ({"user": "root"} if IS_ROOT else {})
        mariadbd = ["mariadbd", "--no-defaults", "--skip-grant-tables", *(f"--{key}={value}" for key, value in options.items())]
        self._ask("start", "mariadbd", *WITHOUT_RIGHTS, *mariadbd)
        wait_until((self.base / "run/db").exists, "mariadbd is up")
        self._ask("start", "slurmdbd", *WITHOUT_RIGHTS, "slurmdbd", "-D")
        wait_until(lambda: self.run(["sacctmgr", "show", "cluster"], check=False).returncode == 0, "slurmdbd is up")
        me = psutil.Process().username()
        for what in (["cluster", "tests"], ["account", ACCOUNT], ["user", f"{me},{GUEST}", f"account={ACCOUNT}"]):
            self.run(["sacctmgr", "--immediate", "add", *what])

    def start_controller(self) -> None:
        self._pids["slurmctld"] = self._ask("start", "slurmctld", *WITHOUT_RIGHTS, "slurmctld", "-D")
        wait_until(lambda: self.run(["scontrol", "ping"], check=False).returncode == 0, "slurmctld is up")

    def stop_controller(self) -> None:
        """End slurmctld; jobs go on. It keeps its state on disk."""
        os.kill(self._pids.pop("slurmctld"), signal.SIGTERM)
        self._ask("wait", "slurmctld")

    def _power_on(self, node: str) -> None:
        unshare = ["unshare", "--net", "--uts", "--mount", "--ipc", "--pid", "--fork", "--mount-proc", "--kill-child"]
        number, shared = address(node).rpartition(".")[2], "".join(f"{folder}\n" for folder in self.shared_folders)
        script = ["sh", "-euc", NODE_SCRIPT, "node", str(self.base / "nodes" / node), node, number, str(self.options.shm_mb), shared]
        with_network = ["sh", "-euc", 'exec 3</proc/self/ns/net; exec "$@"', "network"]
        pid = self._ask("start", node, *with_network, *unshare, *script)
        wait_until(lambda: psutil.Process(pid).children(), f"{node} is on")
        self._pids[node] = psutil.Process(pid).children()[0].pid

    def boot(self, node: str) -> None:
        """Switch a node on, and wait until Slurm has it back."""
        # The kernel removes a cable with the last process of its node, which may take long on a busy machine.
        self.run(["ip", "link", "delete", f"v{node}"], check=False)
        self._power_on(node)
        self.wait_for_nodes(node)

    def power_off(self, node: str) -> None:
        """Pull a node's plug: all its processes are gone at once, its disks stay. Slurm notices after a while."""
        # The cable goes first. Otherwise a slurmstepd that the kernel kills last may still report that the job's script has failed.
        self.run(["ip", "link", "set", f"v{node}", "down"])
        os.kill(self._pids.pop(node), signal.SIGKILL)
        self._ask("wait", node)

    def node_state(self, node: str) -> str:
        """The node's state, such as `idle`, `mixed`, `down`."""
        return self.run(["sinfo", "--noheader", "--Node", f"--nodes={node}", "--partition=main", "--format=%T"]).stdout.strip()

    def wait_for_nodes(self, *nodes: str) -> None:
        wait_until(lambda: all(self.node_state(node) in ("idle", "mixed", "allocated") for node in nodes), f"Slurm has {', '.join(nodes)}")

    @property
    def nodes_on(self) -> list[str]:
        """The nodes that have power."""
        return [node for node in self.nodes if node in self._pids]

    def env(self, user: str | None = None) -> dict[str, str]:
        """The environment of a user's commands: this one, with the clients on PATH, and without an outer Slurm or the tests' paths."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM", "SBATCH", "SRUN", "PYTHONPATH"))}
        kept["PATH"] = f"{self.base}/bin:{os.environ['PATH']}"
        return kept | ({"HOME": str(self.base / "home" / user), "USER": user, "LOGNAME": user} if user else {})

    def command(self, argv: Sequence[object], node: str | None = None, user: str | None = None, cwd: Path | None = None) -> list[str]:
        """How to run `argv` as a user's command on the login machine, or on a node. `user` is None, the one who tests, or GUEST, if he is root."""
        assert user is None or (IS_ROOT and user == GUEST), "only root can be somebody else"
        enter = ["nsenter", f"--target={self._pids[node] if node else self._supervisor.pid}", "--net", "--uts", "--mount", "--ipc"]
        enter += ["--pid"] if node else []  # on the login machine a command keeps its pid, for signals
        enter += [] if IS_ROOT else ["--user", "--preserve-credentials"]
        become = ["setpriv", f"--reuid={GUEST_UID}", f"--regid={GUEST_UID}", "--clear-groups"] if user else []
        folder = cwd or (self.base / "home" / user if user else self.shared)
        # Where the tests run in the background of a shell, a Ctrl-C would be ignored.
        return [*enter, *become, "env", "--default-signal=INT", f"--chdir={folder}", *map(str, argv)]

    def popen(
        self,
        argv: Sequence[object],
        node: str | None = None,
        user: str | None = None,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        **options: Any,
    ) -> subprocess.Popen[str]:
        """Start a user's command, see `command`, in a process group of its own, as a terminal does. `env` adds to his environment.

        On the login machine its pid is the command's. Whatever it starts ends with the cluster at the latest.
        """
        defaults: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        full_env = self.env(user) | dict(env or {})
        return subprocess.Popen(self.command(argv, node, user, cwd), env=full_env, start_new_session=True, **(defaults | options))

    def run(self, argv: Sequence[object], check: bool = True, timeout: float = 900, **how: Any) -> subprocess.CompletedProcess[str]:
        """Run a user's command to its end; `how` as in `popen`. When it fails, or takes too long, the error shows all that it wrote."""
        process = self.popen(argv, **{"stderr": subprocess.PIPE, **how})
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            pytest.fail(f"{argv}: not within {timeout} s\n" + "\n".join(filter(None, process.communicate())))
        assert not (check and process.returncode), f"{argv}: exit code {process.returncode}\n{out}\n{err}"
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def sbatch(self, *arguments: object, user: str | None = None, cwd: Path | None = None) -> str:
        """Submit a job; returns its id."""
        return self.run(["sbatch", "--parsable", *arguments], user=user, cwd=cwd).stdout.strip()

    def job_state(self, job: str) -> str | None:
        """The job's state, such as `RUNNING`; None when slurmctld has forgotten it."""
        shown = self.run(["scontrol", "--oneliner", "show", "job", job], check=False).stdout
        return dict(field.partition("=")[::2] for field in shown.split()).get("JobState")

    def nodes_of(self, job: str) -> list[str]:
        """The nodes of a job that runs, its first one first."""
        names = self.run(["squeue", "--noheader", f"--jobs={job}", "--format=%N"]).stdout.strip()
        return self.run(["scontrol", "show", "hostnames", names]).stdout.split()

    def node_processes(self, node: str, uid: int | None = None) -> dict[int, str]:
        """What runs on a node beside Slurm: process id (on this machine, for signals) → command line. Of one user, or of all."""
        first = self._pids[node]
        namespace = os.readlink(f"/proc/{first}/ns/pid")
        found = {}
        for process in psutil.process_iter():
            with contextlib.suppress(OSError, psutil.NoSuchProcess):  # it ended just now, or is another user's
                if os.readlink(f"/proc/{process.pid}/ns/pid") == namespace and uid in (None, process.uids().real):
                    line = " ".join(process.cmdline())  # a zombie has none
                    slurm = process.pid == first or line.startswith(("slurmstepd: ", f"slurmd -D -N {node} "))
                    if line and not slurm:
                        found[process.pid] = line
        return found

    def node_path(self, node: str, path: str) -> Path:
        """Where to find a file of a node that is on, such as /tmp/x or /dev/shm/x, from here."""
        return Path(f"/proc/{self._pids[node]}/root{path}")

    def logs(self, lines: int = 10) -> str:
        """The end of each daemon's log."""
        folder = self.base / "log"
        files = {path.stem: path for path in (*folder.glob("*.out"), *folder.glob("*.log"))}  # a log says more than a daemon's output
        tails = {name: path.read_text(errors="replace").splitlines()[-lines:] for name, path in files.items()}
        return "\n".join(f"{name}: {line}" for name, tail in tails.items() for line in tail)
