"""What a trial that does nothing costs with Tune as it comes, a fresh process for each: seconds for all, as a line of JSON."""

import argparse
import json
import shlex
import sys
import tempfile
import time

import ray
from ray import tune


def train(config: dict) -> None:
    tune.report({"score": config["x"]})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, required=True)
    parser.add_argument("--cpus", type=int, required=True)
    args = parser.parse_args()
    # Ray puts the path of Python into a shell line as it is.
    python = {"py_executable": shlex.quote(sys.executable)}
    # Without an address, Ray would join a cluster of another program of this machine.
    ray.init(address="local", num_cpus=args.cpus, include_dashboard=False, log_to_driver=False, runtime_env=python)
    with tempfile.TemporaryDirectory() as storage:
        tuner = tune.Tuner(
            tune.with_resources(train, {"CPU": 1}),
            param_space={"x": tune.uniform(0, 1)},
            tune_config=tune.TuneConfig(metric="score", mode="max", num_samples=args.trials, reuse_actors=False),
            run_config=tune.RunConfig(storage_path=storage, verbose=0),
        )
        began = time.monotonic()
        tuner.fit()
        print(json.dumps({"seconds": time.monotonic() - began}), flush=True)
    ray.shutdown()


if __name__ == "__main__":
    main()
