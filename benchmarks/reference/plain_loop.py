"""Microseconds of a training step of one model, in the best plain PyTorch loop: data in memory and normalised once, one thread on a CPU."""

import argparse
import json
import time

import torch
from sweep import model_of
from torch.nn import functional as F

STEPS = 1500


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="path/to/file.py:Class")
    parser.add_argument("--batch-size", type=int, required=True)
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    torch.set_num_threads(1)
    images = torch.rand(args.batch_size * STEPS, 3, 32, 32, device=device) * 2 - 1
    labels = torch.randint(0, 10, (len(images),), device=device)
    net = model_of(args.model).to(device)
    # `foreach` and `fused` make no difference on a CPU; both were tried.
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3, momentum=0.9)
    times = []
    for _ in range(3):
        order = torch.randperm(len(images), device=device).split(args.batch_size)
        began = time.perf_counter()
        for rows in order:
            optimizer.zero_grad()
            F.cross_entropy(net(images[rows]), labels[rows]).backward()
            optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    print(json.dumps({"microseconds": min(times) / STEPS * 1e6}))


if __name__ == "__main__":
    main()
