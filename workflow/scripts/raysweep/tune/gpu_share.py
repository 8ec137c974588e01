"""The part of a GPU that each trial takes: packed by the memory of the first trial, doubled when a GPU was too full."""

from __future__ import annotations

import logging

from ray.tune.experiment import Trial as TuneTrial

from raysweep.record.file import Record

logger = logging.getLogger("raysweep")

PACKED_SHARE = 0.9  # of a GPU's memory: later trials may take a little more than the first one
MAX_TRIALS_PER_GPU = 32  # processes; with more, each gets too little of the GPU's time


def gpus_of(trial: TuneTrial) -> float:
    """Return the GPUs that a trial takes."""
    return float(trial.placement_group_factory.required_resources.get("GPU", 0))


class GpuShare:
    """The part of a GPU that a trial takes that starts now.

    While `is_measuring`, the next trial has a GPU for itself, and its first report says how many trials can share a GPU.
    """

    def __init__(self, record: Record, share: float, is_measuring: bool = False) -> None:
        self.record, self.share, self.is_measuring = record, share, is_measuring

    def pack(self, memory_mb: tuple[int, int] | None) -> None:
        """Have trials that start from now on share GPUs. `memory_mb`: memory that the first trial takes, and memory of its GPU."""
        if not self.is_measuring:
            return
        self.is_measuring = False
        if memory_mb is None:
            logger.warning(
                "Neither PyTorch nor nvidia-smi can say what a trial takes of its GPU: each has one for itself. Set trial_resources.gpu to a number."
            )
            return
        used_mb, total_mb = memory_mb
        sharing = max(1, min(int(PACKED_SHARE * total_mb / max(used_mb, 1)), MAX_TRIALS_PER_GPU))
        self.share = 1 / sharing
        self.record.write("gpu_share", gpu=self.share, used_mb=used_mb, total_mb=total_mb)
        logger.info(
            "The first trial takes %d of %d MB of its GPU: up to %d share one (trial_resources.gpu: %.3g would say so from the start).",
            used_mb,
            total_mb,
            sharing,
            self.share,
        )

    def double(self, failed_share: float) -> None:
        """Double the share after a trial with `failed_share` found its GPU too full.

        The trials of that GPU fail in the same moment, so a trial that had less than the present share does not double the share once more.
        """
        if failed_share < self.share:
            return
        self.share = min(1.0, 2 * self.share)
        self.record.write("gpu_share", gpu=self.share)
        logger.info("A GPU was too full for the trials on it: each now takes %.3g of one.", self.share)

    def apply(self, trial: TuneTrial) -> None:
        """Have a trial that waits take the present share."""
        resources = trial.placement_group_factory.required_resources
        if resources.get("GPU") and resources["GPU"] != self.share:
            trial.update_resources({"cpu": resources.get("CPU", 0), "gpu": self.share})
