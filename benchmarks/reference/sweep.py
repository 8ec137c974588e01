"""What the benchmarks compare with: a sweep as people write it from Ray's and PyTorch's tutorials, and as the wiki's page runs it.

For comparison only. Each trial is a fresh process that opens the data set with torchvision, transforms image by image in a DataLoader with one worker,
and takes plain eager SGD steps. Prints a line of JSON: seconds from the start of this process to the best result, and the accuracy of each trial.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shlex
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

STARTED = time.time()

import ray  # noqa: E402
import torch  # noqa: E402
from ray import tune  # noqa: E402
from torch.utils.data import DataLoader  # noqa: E402
from torchvision import transforms  # noqa: E402
from torchvision.datasets import CIFAR10  # noqa: E402


class AnyCifar10(CIFAR10):
    """torchvision's, of files in CIFAR-10's layout whose checksums are others."""

    train_list = [[f"data_batch_{number}", None] for number in range(1, 6)]  # noqa: RUF012
    test_list = [["test_batch", None]]  # noqa: RUF012
    meta = {"filename": "batches.meta", "key": "label_names", "md5": None}  # noqa: RUF012


def model_of(target: str) -> torch.nn.Module:
    path, _, name = target.rpartition(":")
    spec = importlib.util.spec_from_file_location("model_of_user", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, name)()


def train(config: dict[str, Any], data_dir: str, model: str) -> None:
    torch.set_num_threads(1)
    config = config["which"]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.5,) * 3, (0.5,) * 3)])
    loaders = {
        is_train: DataLoader(
            AnyCifar10(data_dir, train=is_train, transform=transform), int(config["batch_size"]), shuffle=is_train, num_workers=1
        )
        for is_train in (True, False)
    }
    net = model_of(model).to(device)
    optimizer = torch.optim.SGD(net.parameters(), lr=config["lr"], momentum=0.9)
    for images, labels in loaders[True]:
        images, labels = images.to(device), labels.to(device)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(net(images), labels).backward()
        optimizer.step()
    correct = 0
    with torch.no_grad():
        for images, labels in loaders[False]:
            correct += (net(images.to(device)).argmax(1) == labels.to(device)).sum().item()
    with tempfile.TemporaryDirectory() as folder:
        torch.save((net.state_dict(), optimizer.state_dict()), os.path.join(folder, "checkpoint.pt"))
        tune.report({"accuracy": correct / len(loaders[False].dataset)}, checkpoint=tune.Checkpoint.from_directory(folder))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", type=Path, required=True, help="folder that holds cifar-10-batches-py")
    parser.add_argument("--model", required=True, help="path/to/file.py:Class")
    parser.add_argument("--configs", type=Path, required=True, help="JSON file with the configurations")
    parser.add_argument("--at-a-time", type=int, required=True)
    parser.add_argument("--cpus", type=int, required=True)
    parser.add_argument("--gpus", type=int, default=0)
    args = parser.parse_args()
    configs = json.loads(args.configs.read_text())
    # Ray puts the path of Python into a shell line as it is.
    python = {"py_executable": shlex.quote(sys.executable)}
    # Without an address, Ray would join a cluster of another program of this machine.
    ray.init(address="local", num_cpus=args.cpus, num_gpus=args.gpus, include_dashboard=False, log_to_driver=False, runtime_env=python)
    share = {"CPU": args.cpus / args.at_a_time, "GPU": args.gpus / args.at_a_time}
    with tempfile.TemporaryDirectory() as storage:
        results = tune.Tuner(
            tune.with_resources(tune.with_parameters(train, data_dir=str(args.data_dir.resolve()), model=args.model), share),
            param_space={"which": tune.grid_search(configs)},
            tune_config=tune.TuneConfig(metric="accuracy", mode="max", reuse_actors=False),
            run_config=tune.RunConfig(storage_path=storage, verbose=0),
        ).fit()
        accuracy_of = {json.dumps(result.config["which"]): result.metrics["accuracy"] for result in results}
        accuracies = [accuracy_of[json.dumps(config)] for config in configs]
        results.get_best_result()
    print(json.dumps({"seconds": time.time() - STARTED, "accuracies": accuracies}), flush=True)
    ray.shutdown()


if __name__ == "__main__":
    main()
