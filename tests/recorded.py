"""Made-up sweeps for the tests of what reads a record: written through `record.file.Record`, so in the format that the driver writes."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import fmean, stdev
from typing import Any
from unittest.mock import patch

import numpy as np

from raysweep.common.files import write_yaml
from raysweep.common.typed_json import to_json
from raysweep.config.space import configuration, flattened, parse_space
from raysweep.record import file as record_file
from raysweep.record.events import Provenance
from raysweep.record.file import Record
from raysweep.record.outputs import best_of
from raysweep.record.results import Goal
from raysweep.record.sweep import Sweep

START = datetime(2026, 3, 1, 9, 0, tzinfo=UTC)
LENET_SPACE = {"lr": {"loguniform": [1e-4, 1e-1]}, "batch_size": {"choice": [2, 4, 8, 16]}}


@dataclass(frozen=True)
class MemberJob:
    """A Slurm job of one node that works on a made-up sweep. The times are seconds since the start of the sweep."""

    id: str
    node: str
    from_s: float = 0.0
    until_s: float = math.inf


def header(**changes: Any) -> dict[str, Any]:
    """What a session says of its sweep."""
    return {
        "name": "lenet",
        "identity": "3f" * 32,
        "metric": "accuracy",
        "mode": "max",
        "max_epochs": 1,
        "num_trials": 20,
        "seed": 0,
        "search_space": LENET_SPACE,
        "search_algorithm": {"name": "random"},
        "scheduler": {"name": "none"},
        "dataset": "cifar10",
        "model": "raysweep.models.lenet:LeNet",
        "optimizer": "sgd",
        "loss": "cross_entropy",
        "trial_resources": {"cpu": 1, "gpu": 0},
        "version": "0.1.0",
    } | changes


def made_up_value(config: dict[str, Any], progress: float, noise: float) -> float:
    """An accuracy that is best for a learning rate near 0.003, grows with `progress` in (0, 1] and suffers from the other numbers."""
    flat = flattened(config)
    lr = flat.get("lr", 3e-3)
    others = sum(math.tanh(v) for k, v in flat.items() if k != "lr" and isinstance(v, int | float)) / 20
    return 0.1 + 0.5 * math.exp(-(math.log10(lr / 3e-3) ** 2)) * progress**0.4 - 0.02 * others + noise


def made_up_cost(config: dict[str, Any], number: int) -> float:
    """A cost, such as a latency, that is low where the learning rate is high, so that it contradicts the accuracy."""
    lr = flattened(config).get("lr", 3e-3)
    return 10 * (number + 1) - 2 * math.log10(lr) + math.sin(1000 * lr)


def events_of(
    sweep: dict[str, Any],
    nodes: tuple[str, ...],
    slots: int,
    running: int,
    failed: dict[int, str],
    constant: float | None,
    jobs: Sequence[MemberJob] = (),
) -> list[tuple[float, str, dict[str, Any]]]:
    """What happens in a made-up sweep: (seconds since its start, event, its values), in order. Arguments as in `write_record`."""
    space = parse_space(sweep["search_space"])
    metric, epochs, count = sweep["metric"], sweep["max_epochs"], sweep["num_trials"]
    generator = np.random.default_rng(sweep["seed"])
    free = [(jobs[i % len(nodes)].from_s if jobs else 0.0, i) for i in range(slots * len(nodes))]
    heapq.heapify(free)
    events: list[tuple[float, str, dict[str, Any]]] = []
    for index in range(count):
        trial, config = f"{index:05d}", configuration(space, sweep["seed"], index)
        at, slot = heapq.heappop(free)
        node, epoch_s = nodes[slot % len(nodes)], float(generator.uniform(8, 20))
        events.append((at, "trial", {"trial": trial, "index": index, "repeat": 0, "seed": 1000 + index, "config": config}))
        at += 0.2
        events.append((at, "start", {"trial": trial, "node": node, "from_epoch": 0}))
        stopped = sweep["scheduler"]["name"] != "none" and made_up_value(config, 1, 0.0) < 0.4
        unfinished = index >= count - running
        last = 0 if index in failed else max(1, epochs // 4) if stopped else max(1, epochs // 2) if unfinished else epochs
        for epoch in range(1, last + 1):
            at += epoch_s
            value = made_up_value(config, epoch / epochs, float(generator.normal(0, 0.01)))
            value = constant if constant is not None else value if sweep["mode"] == "max" else 1 - value
            others = {o["metric"]: round(made_up_cost(config, number), 4) for number, o in enumerate(sweep.get("objectives", ())[1:])}
            result = {"metrics": {metric: round(value, 4), **others}, "time_s": round(epoch * epoch_s, 3), "node": node}
            events.append((at, "result", {"trial": trial, "epoch": epoch, **result}))
        if not unfinished:
            at += epoch_s / 3 if index in failed else 0
            status = "ERROR" if index in failed else "STOPPED" if last < epochs else "TERMINATED"
            events.append((at, "finish", {"trial": trial, "status": status, "error": failed.get(index)}))
        if not jobs or at < jobs[slot % len(nodes)].until_s - 60:
            heapq.heappush(free, (at, slot))
    return sorted(events, key=lambda event: event[0])


def node_events(jobs: Sequence[MemberJob], session: int, start_s: float, slots: int) -> list[tuple[float, dict[str, Any]]]:
    """The nodes that join and are lost in a session that `jobs[session]` leads; the leaders before it have ended."""
    events: list[tuple[float, dict[str, Any]]] = []
    for job in jobs[session + 1 :]:
        facts = {"node": job.node, "cpus": slots, "gpus": 0, "job": job.id}
        if job.until_s > start_s + 5:
            events += [(max(start_s + 5, job.from_s), {**facts, "state": "joined"}), (job.until_s, {**facts, "state": "lost"})]
    return sorted(events, key=lambda event: event[0])


def write_record(
    path: Path,
    *,
    failed: dict[int, str] | None = None,
    constant: float | None = None,
    interruptions: int = 0,
    running: int = 0,
    outcome: str | None = "complete",
    nodes: tuple[str, ...] = ("node-1",),
    slots: int = 2,
    jobs: Sequence[MemberJob] = (),
    pid: int = 1,
    host: str = "login-1",
    **changes: Any,
) -> Sweep:
    """Write the record of a made-up sweep to `path`.

    failed: error of trial i · constant: every trial reports this value · interruptions: how often the driver was killed on the way, an hour
    before it went on · running: the last so many trials are not finished (`outcome` None then means that the driver still runs) · slots:
    trials at a time on each node · jobs: Slurm jobs that work on the sweep together, whose nodes replace `nodes`, and of which the first leads
    until the first interruption, then the second, and so on · changes: of the header.
    """
    sweep = header(**changes)
    nodes = tuple(job.node for job in jobs) or nodes
    events = events_of(sweep, nodes, slots, running, failed or {}, constant, jobs)
    cuts = {len(events) * (i + 1) // (interruptions + 1) for i in range(interruptions)}
    session = {"sweep": sweep, "host": host, "pid": pid}

    def leader(number: int) -> dict[str, Any]:
        """What a session says of its nodes, and of its job where there are several."""
        own, of_job = (nodes[number : number + 1], {"slurm_job": jobs[number].id}) if jobs else (nodes, {})
        return {"nodes": [{"name": n, "cpus": slots, "gpus": 0} for n in own], **of_job}

    joins = node_events(jobs, 0, 0, slots)
    clock, pause = START, timedelta(0)
    with (
        patch.object(record_file, "now", lambda: clock.isoformat(timespec="milliseconds").replace("+00:00", "Z")),
        Record(path) as file,
    ):
        file.write("session", **session, **leader(0))
        for position, (at, kind, values) in enumerate(events):
            if position in cuts:
                pause += timedelta(hours=1)
                clock = START + timedelta(seconds=at) + pause
                broken = [t for t in file.sweep.trials.values() if t.status == "RUNNING"]
                number = len(file.sweep.sessions)
                joins = node_events(jobs, number, at, slots)
                file.write("session", **session, **leader(number))
                for trial in broken:
                    file.write("start", trial=trial.trial_id, node=nodes[number if jobs else 0], from_epoch=trial.epochs)
            while joins and joins[0][0] <= at:
                joined_at, facts = joins.pop(0)
                clock = START + timedelta(seconds=joined_at) + pause
                file.write("node", **facts)
            clock = START + timedelta(seconds=at) + pause
            file.write(kind, **values)
        if outcome is not None:
            clock += timedelta(seconds=1)
            file.write("session_end", outcome=outcome)
        return file.sweep


def write_outputs(
    folder: Path,
    sweep: Sweep,
    *,
    seeds: int = 3,
    spread: float = 0.01,
    on: str = "test",
    synthetic: bool = False,
    seed_errors: dict[int, str] | None = None,
    confirmed: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Write what the report reads beside the record below `folder`; the keys are the arguments of `report.read_inputs`.

    `confirmed` has further keys of confirmed.yaml, such as `predictions`.
    """
    about = sweep.header
    best = sweep.best_trial(about.metric, about.mode)
    assert best is not None
    trial, result = best
    value = result.metrics[about.metric]
    goal = Goal(about.name, about.metric, about.mode)
    results_dir = folder / "results" / about.name
    errors = [t for t in sweep.trials.values() if t.status == "ERROR"]
    write_yaml(
        results_dir / "best.yaml",
        {
            "sweep": about.name,
            "trial_id": trial.trial_id,
            "config": trial.config,
            "metric": {"name": about.metric, "mode": about.mode, "value": value},
            **{
                key: value for key, value in to_json(best_of(sweep, goal, Provenance())).items() if key in ("objectives", "choose", "front")
            },
            "epochs": result.epoch,
            "model_epoch": result.epoch,
            "num_trials": len(sweep.trials),
            "num_errors": len(errors),
            "provenance": {
                "workflow_version": "0.1.0",
                "identity": about.identity,
                "environment_sha256": "e5" * 32,
                "data_sha256": "da" * 32,
            },
        },
    )
    outcomes: list[dict[str, Any]] = []
    for number in range(seeds):
        error = (seed_errors or {}).get(number)
        offset = spread * (number - (seeds - 1) / 2)
        outcomes.append({"seed": 2000 + number, "value": None if error else round(value - 0.012 + offset, 4), "error": error})
    values = [o["value"] for o in outcomes if o["value"] is not None]
    write_yaml(
        results_dir / "confirmed.yaml",
        {
            "sweep": about.name,
            "metric": {"name": about.metric, "mode": about.mode},
            "config": trial.config,
            "epochs": result.epoch,
            "evaluated_on": on,
            "note": "trained on all training data, evaluated on the test set"
            if on == "test"
            else "repeated on validation, not a test result",
            "seeds": outcomes,
            "n": len(values),
            "mean": fmean(values) if values else None,
            "standard_deviation": stdev(values) if len(values) > 1 else None,
            "published_model": {about.metric: round(value - 0.01, 4)} if on == "test" else None,
            **(confirmed or {}),
        },
    )
    write_yaml(results_dir / "config.yaml", {"sweeps": {about.name: {"search_space": about.search_space, "metric": about.metric}}})
    data_manifest = None
    if about.dataset is not None:
        data_manifest = folder / "resources" / "data" / about.dataset / "manifest.yaml"
        write_yaml(
            data_manifest,
            {
                "name": about.dataset,
                "source": "synthetic" if synthetic else "download",
                "synthetic": synthetic,
                "description": "generated images in ten classes" if synthetic else "CIFAR-10, the published archive",
                "checksum": "upstream",
                "classes": ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"],
                "image_shape": [3, 32, 32],
                "splits": {"train": 45000, "validation": 5000, "test": 10000},
                "validation_fraction": 0.1,
                "seed": 0,
                "files": {"train/images.npy": "f1" * 32},
                "data_sha256": "da" * 32,
            },
        )
    env_manifest = folder / "resources" / "env" / "0123abcd" / "env.yaml"
    write_yaml(
        env_manifest,
        {
            "key": "0123abcd",
            "python": str(env_manifest.parent / "venv" / "bin" / "python"),
            "python_version": "3.11.7",
            "torch_backend": "cpu",
            "wheels": "download",
            "packages": {"numpy": "2.4.6", "ray": "2.60.0", "safetensors": "0.6.2", "torch": "2.13.0"},
            "environment_sha256": "e5" * 32,
        },
    )
    return {
        "sweep_name": about.name,
        "path_to_best": results_dir / "best.yaml",
        "path_to_confirmed": results_dir / "confirmed.yaml",
        "path_to_config": results_dir / "config.yaml",
        "path_to_data_manifest": data_manifest,
        "path_to_env_manifest": env_manifest,
    }
