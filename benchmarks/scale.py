"""Print what the workflow itself costs in sweeps of 1,000 and 10,000 trials on 64 nodes with 8 GPUs each, without Ray's and the trials' own work.

The trials are made up: this program calls the driver's callback, scheduler and record as Tune does, with 512 trials at a time, up to ten reports for
each trial, and ASHA. The nodes are stand-ins for Ray's list of nodes. Run it with the Python of the node environment:

    PYTHONPATH=workflow/scripts:tests resources/env-test/venv/bin/python benchmarks/scale.py
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from ray.tune.schedulers import AsyncHyperBandScheduler

from raysweep.common.machine import NodeSize
from raysweep.record.events import Provenance
from raysweep.record.file import RecordReader
from raysweep.record.outputs import PartialOutputs
from raysweep.record.results import Goal
from raysweep.report.report import write_report
from raysweep.stages.watch import view
from raysweep.tune.node_watch import LiveNode, NodeWatch, RayNodes
from raysweep.tune.record_callback import RecordCallback
from raysweep.tune.schedulers import ShieldedScheduler
from reporting import made_up
from tune_parts import Events

NODES, GPUS, EPOCHS = 64, 8, 10
SPACE = {"lr": {"loguniform": [1e-4, 1e-1]}, "width": {"choice": [16, 32, 64]}, "dropout": {"uniform": [0, 0.5]}}


class StandInNodes(RayNodes):
    """Stands in for Ray's list of nodes."""

    def live(self) -> list[LiveNode]:
        return [LiveNode(f"id{n}", f"10.0.0.{n}", NodeSize(f"n{n}", 64, GPUS)) for n in range(NODES)]


class Sweep:
    """A sweep of made-up trials, which report in turn. `reports_s` gets the time of each report in seconds."""

    def __init__(self, folder: Path, num_trials: int) -> None:
        self.num_trials, self.begun = num_trials, 0
        self.events = events = Events(folder, max_epochs=EPOCHS, name="s", metric="score", num_trials=num_trials, search_space=SPACE)
        sizes = tuple(node.size for node in StandInNodes().live())
        outputs = PartialOutputs(folder, Goal("s", "score", "max"), Provenance("0", "0", "0", None))
        nodes = NodeWatch(events.record, sizes, ray_nodes=StandInNodes())
        events.parts = replace(events.parts, nodes=nodes, partial_outputs=outputs)
        events.callback = RecordCallback(events.record, events.parts)
        asha: Any = AsyncHyperBandScheduler("training_iteration", max_t=EPOCHS, grace_period=1, reduction_factor=2)
        asha.set_search_properties("score", "max")
        events.scheduler = ShieldedScheduler(asha, events.record, events.stop, events.parts.retries.is_retried)
        self.reports_s: list[float] = []

    def run(self) -> None:
        """Run all trials, and end a step after each report, as Tune does."""
        running = [self.begin() for _ in range(min(NODES * GPUS, self.num_trials))]
        while running:
            for trial in list(running):
                began = time.perf_counter()
                epoch = trial.last_result.get("training_iteration", 0) + 1
                score = 0.9 * (1 - 1 / (epoch + 1)) * (1 - int(trial.trial_id) * 7919 % 1000 / 1000)
                is_over = self.events.report(trial, epoch, score, checkpoint=False, node_ip=f"10.0.0.{int(trial.trial_id) % NODES}")
                self.events.step()
                self.reports_s.append(time.perf_counter() - began)
                if is_over:
                    self.events.complete(trial)
                    running.remove(trial)
                    if self.begun < self.num_trials:
                        running.append(self.begin())

    def begin(self) -> Any:
        self.begun += 1
        trial = self.events.start(f"{self.begun - 1:05d}")
        self.events.scheduler.on_trial_add(self.events.controller, trial)
        return trial


def milliseconds(action: Callable[[], object], rounds: int = 5) -> float:
    """Return the median time of an action in milliseconds."""
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        action()
        times.append(time.perf_counter() - began)
    return 1000 * statistics.median(times)


def measure(folder: Path, num_trials: int) -> dict[str, float]:
    """Return the figures of a sweep, by name."""
    (folder / "driver").mkdir()
    sweep = Sweep(folder / "driver", num_trials)
    sweep.run()
    num_reports, path = len(sweep.reports_s), sweep.events.record.path
    tenth = num_reports // 10
    found = {
        "reports": float(num_reports),
        "first tenth of the reports, µs each": 1e6 * statistics.mean(sweep.reports_s[:tenth]),
        "last tenth of the reports, µs each": 1e6 * statistics.mean(sweep.reports_s[-tenth:]),
        "longest report, ms": 1000 * max(sweep.reports_s),
        "record, bytes for each report": path.stat().st_size / num_reports,
        "a new session reads the record, s": milliseconds(lambda: RecordReader(path).read(), rounds=1) / 1000,
    }
    reader = RecordReader(path)
    recorded = reader.read()
    sweep.events.record.write("pause", trial="00000")
    found["make watch: one more event, ms"] = milliseconds(reader.read, rounds=1)
    found["make watch: one frame, ms"] = milliseconds(lambda: view(recorded, None, 80, 40))
    (folder / "report").mkdir()
    inputs = made_up(
        folder / "report", num_trials=num_trials, max_epochs=EPOCHS, slots=NODES, scheduler={"name": "asha"}, search_space=SPACE
    )
    page = folder / "report.html"
    found["report, s"] = milliseconds(lambda: write_report(inputs, page, folder / "figures", folder), rounds=1) / 1000
    found["report, MB"] = page.stat().st_size / 1e6
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, nargs="+", default=[1_000, 10_000])
    columns = []
    for num_trials in parser.parse_args().trials:
        with tempfile.TemporaryDirectory() as folder:
            columns.append(measure(Path(folder), num_trials))
    names = list(columns[0])
    print("| trials | " + " | ".join(f"{column:,}" for column in parser.parse_args().trials) + " |")
    print("|---|" + "--:|" * len(columns))
    for name in names:
        print(
            f"| {name} | "
            + " | ".join(f"{column[name]:,.3g}" if column[name] < 1000 else f"{column[name]:,.0f}" for column in columns)
            + " |"
        )


if __name__ == "__main__":
    main()
