"""What check_cluster makes of what it finds: edges first. A real cluster: tests/slurm/test_check_cluster.py."""

from __future__ import annotations

import io
import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest

import project
import sweeping
from raysweep.cluster import check as cc
from raysweep.cluster import probe
from raysweep.cluster.check import Answer, Check, over_nodes, table
from raysweep.common.errors import RaysweepError
from raysweep.slurm.allocation import Allocation, Node

NODES = (Node("n1", 4, 1, 8000, "10.0.0.1"), Node("n2", 4, 1, 8000, "10.0.0.2"))
ACCOUNTED = "AccountingStorageEnforce = associations,limits\nAccountingStorageType   = accounting_storage/slurmdbd\n"
ALLOCATION = {
    "nodes": 2,
    "cpus_per_node": 4,
    "gpus_per_node": 0,
    "gpu_type": None,
    "mem_mb_per_node": 8000,
    "runtime": "1h",
    "max_wait": None,
}
DISK = {"local_dir": "/scratch", "local_type": "xfs", "local_free_mb": 50_000, "local_noexec": False, "local_writable": True}


# ---------------------------------------------------------------------------------------------------------------- the table


def test_a_check_is_a_line_with_what_to_do_below_it() -> None:
    checks = [Check("one", "ok", "fine"), Check("another", "FAILED", "broken " * 20, "Mend " * 20)]
    first, *rest = table(checks)
    assert first == "ok       one                fine"
    assert rest[0].startswith("FAILED   another            broken")
    assert any(line.startswith(" " * 28 + "→ Mend") for line in rest)
    assert max(map(len, rest)) <= 100


def test_of_several_nodes_the_worst_counts_and_is_named() -> None:
    good, bad = Check("x", "ok", "fine"), Check("x", "FAILED", "broken", "Mend it")
    assert over_nodes({"n1": good}) == good
    assert over_nodes({"n1": good, "n2": good}) == good
    assert over_nodes({"n1": good, "n2": bad}) == Check("x", "FAILED", "n2: broken", "Mend it")
    assert over_nodes({"n1": bad, "n2": bad}) == bad
    many = over_nodes({f"n{n}": Check("x", "ok", str(n // 5)) for n in range(30)})
    assert (
        many.found == "n0, n1, n2, n3 and 1 others: 0; n5, n6, n7, n8 and 1 others: 1; n10, n11, n12, n13 and 1 others: 2; 3 other findings"
    )


def test_a_failed_check_ends_it_with_one_line_and_a_warning_does_not() -> None:
    cc.refuse_failed([Check("a", "ok", ""), Check("b", "warning", "", "")], "next")
    with pytest.raises(RaysweepError, match=r"1 of 2 checks FAILED \(b\): the table above says what to do. next"):
        cc.refuse_failed([Check("a", "ok", ""), Check("b", "FAILED", "", "")], "next")


# ---------------------------------------------------------------------------------------------------------------- what Slurm says


@pytest.mark.parametrize(
    ("said", "state"),
    [
        ("slurm-wlm 22.05.8", "ok"),
        ("slurm 25.11.0-0rc1", "ok"),
        ("slurm 22.04.9", "warning"),
        ("slurm 21.08.8-2", "warning"),
        ("", "warning"),
    ],
)
def test_slurm_version(said: str, state: str) -> None:
    assert cc.slurm_version(said).state == state


@pytest.mark.parametrize(
    ("config", "state"), [("", "warning"), ("KillWait = 19 sec", "warning"), ("KillWait                = 20 sec", "ok")]
)
def test_kill_wait(config: str, state: str) -> None:
    assert cc.kill_wait(config).state == state


def test_a_job_is_remembered_until_it_is_asked_for_or_is_accounted() -> None:
    assert cc.min_job_age("MinJobAge = 300 sec", accounts_jobs=False).state == "ok"
    assert cc.min_job_age("MinJobAge = 180 sec", accounts_jobs=False).state == "warning"
    assert cc.min_job_age("", accounts_jobs=False).state == "warning"
    assert cc.min_job_age("MinJobAge = 2 sec", accounts_jobs=True).state == "ok"


def test_accounting() -> None:
    fails, answers = Answer(1, "sacct: error: no slurmdbd"), Answer(0, "")
    assert cc.accounting("AccountingStorageType = accounting_storage/none\n", fails).state == "ok"
    assert cc.accounting("AccountingStorageType = (null)\n", fails).state == "ok"
    assert cc.accounting(ACCOUNTED, answers).state == "ok"
    broken = cc.accounting(ACCOUNTED, fails)
    assert broken.state == "warning"
    assert "no slurmdbd" in broken.found


@pytest.mark.parametrize(
    ("config", "sacctmgr", "wanted", "state", "found"),
    [
        ("", Answer(1, "sacctmgr: error: off"), "", "ok", "keeps no accounts"),
        ("", Answer(1, "sacctmgr: error: off"), "def-a", "FAILED", "slurm_account is def-a"),
        (ACCOUNTED, Answer(None, "sacctmgr does not answer within 30 s"), "def-a", "warning", "does not answer"),
        (ACCOUNTED, Answer(0, ""), "", "FAILED", "you have none"),
        (ACCOUNTED, Answer(0, "def-a"), "", "ok", "def-a"),
        (ACCOUNTED, Answer(0, "def-a\ndef-a\ndef-b"), "", "warning", "def-a, def-b"),
        (ACCOUNTED, Answer(0, "def-a\ndef-b"), "DEF-B", "ok", "DEF-B"),
        (ACCOUNTED, Answer(0, "def-a"), "def-c", "FAILED", "none of yours (def-a)"),
        (ACCOUNTED.replace("associations,limits", "none"), Answer(0, "def-a"), "def-c", "warning", "none of yours"),
        (ACCOUNTED.replace("associations,limits", "none"), Answer(0, ""), "", "ok", "none needed"),
    ],
)
def test_account(config: str, sacctmgr: Answer, wanted: str, state: str, found: str) -> None:
    check = cc.account(config, sacctmgr, wanted)
    assert check.state == state
    assert found in check.found


def test_what_slurm_would_take_says_when_and_what_it_refuses_says_what_to_change() -> None:
    said = "sbatch: Job 7 to start at 2026-01-02T03:04:05 using 8 processors on nodes n[1-2] in partition main"
    assert cc.sweep_fits("s", ALLOCATION, Answer(0, said), Answer(0, ""), {}) == Check(
        "sweep s", "ok", "2 × (4 CPUs, 8000 MB), 60 minutes: could start at 2026-01-02T03:04:05"
    )
    refused = cc.sweep_fits(
        "s",
        ALLOCATION,
        Answer(1, "a banner\nallocation failure: Requested time limit is invalid"),
        Answer(0, ""),
        {"slurm_partition": "short"},
    )
    assert refused.state == "FAILED"
    assert "Slurm says 'Requested time limit is invalid'" in refused.found
    assert "sweeps.s.allocation.runtime (now 60 minutes)" in refused.remedy
    assert "slurm_partition (now short)" in refused.remedy
    out = cc.sweep_fits("s", ALLOCATION, Answer(1, "allocation failure: busy"), Answer(0, "n2 (down*, no power)"), {})
    assert "out of service: n2 (down*, no power)" in out.found
    assert cc.sweep_fits("s", ALLOCATION, Answer(None, "sbatch does not answer within 30 s"), Answer(0, ""), {}).state == "FAILED"


def test_slurm_is_asked_for_the_same_as_the_plugin_asks_for() -> None:
    resources = {"slurm_account": "def-a", "slurm_partition": "", "qos": "high"}
    argv = cc.test_only(ALLOCATION | {"gpus_per_node": 2, "gpu_type": "a100-sxm4"}, resources)
    assert argv[:2] == ["sbatch", "--test-only"]
    assert {"--nodes=2", "--ntasks=2", "--cpus-per-task=4", "--mem=8000", "--time=60", "--account=def-a", "--qos=high"} <= set(argv)
    assert "--gpus-per-node=a100-sxm4:2" in argv
    assert not [word for word in argv if "partition" in word]


@pytest.mark.parametrize(
    ("quota", "state", "found"),
    [
        (Answer(None, "quota cannot be run"), None, "free on the disk"),
        (Answer(0, "Disk quotas for user a (uid 1): none"), None, "free on the disk"),
        (
            Answer(0, "     Filesystem  blocks   quota   limit   grace   files   quota   limit   grace\n /d  5 0 0 0 7 0 0 0"),
            None,
            "free on the disk",
        ),
        (Answer(0, "     Filesystem  blocks ...\n host:/home 1000000* 900000 1000000 6days 10 0 0 0"), "warning", "-0.1 GB"),
        (Answer(0, "/lustre/with/a/long/path\n     1000 2000 2000 - 99000 100000 110000 -"), "warning", "and 1000 files free by quota"),
    ],
)
def test_room_is_by_the_quota_where_it_is_told(quota: Answer, state: str | None, found: str, tmp_path: Path) -> None:
    check = cc.room(tmp_path, quota)
    assert found in check.found
    assert state in (None, check.state)


def test_a_program_that_hangs_or_is_not_there_is_an_answer_with_a_made_up_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "quota").write_text("#!/bin/sh\nexec sleep 60\n")
    (tmp_path / "quota").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(cc, "ASK_DEADLINE_S", 0.2)
    assert cc.ask("quota") == Answer(None, "quota does not answer within 0.2 s")
    assert cc.ask("no-such-program").code is None


# ---------------------------------------------------------------------------------------------------------------- what nodes say


def test_a_node_that_does_not_answer_is_named_with_srun_s_words() -> None:
    assert cc.nodes_answer(NODES, {"n1": {"shared_s": 0.0}, "n2": {"shared_s": None}}, "").state == "ok"
    check = cc.nodes_answer(NODES, {"n1": {"shared_s": 0.0}}, "slurmstepd: error: execve(): /p/.venv/bin/python: No such file or directory")
    assert check.state == "FAILED"
    assert check.found.startswith("n2: no answer: slurmstepd")
    assert check.remedy == cc.SHARE
    assert cc.nodes_answer(NODES, {}, "").found == "n1, n2: no answer: srun says nothing"


@pytest.mark.parametrize(
    ("there_s", "back_s", "state", "found"),
    [
        (0.0, 0.0, "ok", "at once"),
        (0.0, 12.0, "ok", "after 12 s"),
        (31.0, 0.0, "warning", "after 31 s"),
        (None, None, "FAILED", "does not see"),
        (0.0, None, "FAILED", "is not seen by the first"),
    ],
)
def test_shared_folder(there_s: float | None, back_s: float | None, state: str, found: str) -> None:
    check = cc.shared_folder({"shared_s": there_s, "seen_s": back_s})
    assert check.state == state
    assert found in check.found


@pytest.mark.parametrize(
    ("named", "seen", "state", "found"),
    [
        (1, 1, "ok", "1 given"),
        (0, 1, "FAILED", "CUDA_VISIBLE_DEVICES names 0"),
        (1, 0, "FAILED", "nvidia-smi lists 0"),
        (1, 4, "ok", "1 given"),
    ],
)
def test_gpus(named: int, seen: int, state: str, found: str) -> None:
    check = cc.gpus({"gpus_named": named, "gpus_seen": seen, "gpus_said": f"nvidia-smi lists {seen}"}, 1)
    assert check.state == state
    assert found in check.found


@pytest.mark.parametrize(
    ("facts", "needed_mb", "state", "found"),
    [
        ({}, 5000, "ok", "/scratch (xfs), 50.0 GB free"),
        ({"local_free_mb": 5000}, 5000, "ok", "5.0 GB free"),
        ({"local_free_mb": 4999}, 5000, "FAILED", "the environment takes 5.0 GB"),
        ({"local_noexec": True}, 5000, "FAILED", "noexec"),
        ({"local_noexec": True}, 0, "ok", "/scratch"),
        ({"local_writable": False}, 0, "FAILED", "cannot be written to"),
        ({"local_type": "tmpfs"}, 5000, "warning", "counts as the job's"),
        ({"local_type": "nfs4"}, 0, "warning", "not the node's own"),
        ({"local_type": "lustre"}, 0, "warning", "not the node's own"),
        ({"local_type": "overlay"}, 0, "ok", "overlay"),
    ],
)
def test_local_disk(facts: dict[str, Any], needed_mb: float, state: str, found: str) -> None:
    check = cc.local_disk(DISK | facts, needed_mb)
    assert check.state == state
    assert found in check.found


@pytest.mark.parametrize(
    ("free_mb", "store_mb", "state"),
    [(None, 800, "warning"), (50, 100, "warning"), (1000, 500, "warning"), (1600, 800, "ok"), (9000, 800, "ok")],
)
def test_shared_memory_holds_a_tenth_of_the_memory(free_mb: int | None, store_mb: int, state: str) -> None:
    assert cc.shared_memory({"shm_free_mb": free_mb, "store_mb": store_mb}, 8000).state == state


@pytest.mark.parametrize(
    ("soft", "hard", "state"),
    [(1024, 4096, "ok"), (1023, 4096, "warning"), (1024, 4095, "warning"), (None, None, "ok"), (1024, None, "ok")],
)
def test_open_files(soft: int | None, hard: int | None, state: str) -> None:
    assert cc.open_files({"open_files": [soft, hard]}).state == state


@pytest.mark.parametrize(("left", "state"), [(None, "ok"), (460, "ok"), (459, "warning"), (-3, "warning")])
def test_threads(left: int | None, state: str) -> None:
    assert cc.threads({"threads": left}, 4).state == state


def test_a_pair_of_nodes_that_do_not_reach_each_other_is_named() -> None:
    fine: dict[str, Any] = {"unreachable": {}}
    assert cc.connections(NODES, {"n1": fine, "n2": fine}).state == "ok"
    check = cc.connections(NODES, {"n1": {"unreachable": {"1": "timed out"}}, "n2": fine})
    assert (check.state, check.found) == ("FAILED", "n1 → n2: timed out")
    assert cc.connections(NODES, {"n1": fine, "n2": {"no_address": "n2 finds no way to n1"}}).state == "FAILED"
    assert cc.connections(NODES, {"n1": fine, "n2": {}}).found == "n2: no answer"


def test_torch_has_to_compute_on_every_gpu_of_each_node() -> None:
    good, bad = {"gpus": 1, "torch": "2.13.0"}, {"gpus": 0, "torch": "2.13.0+cpu"}
    assert cc.torch_computes(NODES, {"n1": good, "n2": good}).state == "ok"
    check = cc.torch_computes(NODES, {"n1": good, "n2": bad})
    assert (check.state, check.found) == ("FAILED", "n2: torch 2.13.0+cpu computes on 0 of 1 GPUs")


# ---------------------------------------------------------------------------------------------------------------- on this machine


@pytest.mark.slow
def test_this_machine_is_looked_at_like_a_node(project: sweeping.Project) -> None:
    project.configure(sweeps={"s": sweeping.sweep_of("climb")})
    project.build_env()
    shared = project.folder / "shared"
    shared.mkdir()
    node = Node(socket.gethostname(), 1, 0, 1000)
    heard, words = probe.probe(Allocation((node,)), project.folder / "env", shared)
    [facts] = heard.values()
    assert words == ""
    assert cc.nodes_answer((node,), heard, words).state == "ok"
    assert cc.shared_folder(facts).found == "files are seen at once"
    assert cc.python(facts).state == "ok"
    assert cc.connections((node,), heard).state == "ok"
    assert facts["local_writable"]
    assert facts["local_type"] != "unknown"


def test_a_folder_that_is_not_shared_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "SHARED_DEADLINE_S", 0.2)
    (tmp_path / "first").write_text("what an earlier one wrote")
    start = {"nodes": [NODES[0].__dict__], "nonce": "a new one", "shared_dir": str(tmp_path), "env_dir": str(tmp_path)}
    tell = io.StringIO()
    probe.look_at_node(io.StringIO(json.dumps(start) + "\n"), tell, in_slurm=False)
    facts = json.loads(tell.getvalue().splitlines()[0])
    assert facts["shared_s"] is None
    assert "env.yaml is missing" in facts["python"]["wrong"]
    assert (tmp_path / "0").read_text() == "a new one"


def test_an_address_that_refuses_is_told_with_the_reason() -> None:
    with socket.socket() as open_one, socket.socket() as closed:
        for each in (open_one, closed):
            each.bind(("127.0.0.1", 0))
        open_one.listen()
        found = probe.unreachable({"0": list(open_one.getsockname()), "1": list(closed.getsockname())})
    assert found == {"1": os.strerror(111)}


def test_a_folder_s_disk_has_a_type(tmp_path: Path) -> None:
    assert probe.type_of_disk(Path("/proc/self")) == "proc"
    assert probe.type_of_disk(tmp_path / "not there yet") == probe.type_of_disk(tmp_path)


# ---------------------------------------------------------------------------------------------------------------- the rules


def test_outside_of_slurm_one_line_says_what_it_takes_and_nothing_is_built(checkout: project.Project) -> None:
    done = checkout.snakemake("check_cluster", "--cores", "1")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "Error: check_cluster looks at a cluster: run it with --executor slurm --profile cluster"
    assert "Traceback" not in done.stderr
    assert not (checkout.root / "resources").exists()


def test_a_dry_run_names_the_job_in_the_shape_of_the_sweep_with_the_most_nodes(checkout: project.Project) -> None:
    config = checkout.read_config()
    small = config["sweeps"]["lenet"]
    config["sweeps"]["large"] = small | {
        "allocation": {"nodes": 3, "cpus_per_node": 2, "gpus_per_node": 1, "mem_mb_per_node": 5000, "runtime": "2h"}
    }
    checkout.write_config(config)
    done = checkout.snakemake("check_cluster", "--dry-run")
    assert done.returncode == 0, done.stderr
    said = done.stdout + done.stderr
    job = said[said.index("rule check_nodes:") :]
    assert "nodes=3" in job
    assert "mem_mb=5000" in job
    assert "runtime=20" in job
    assert "rule run_sweep" not in said
