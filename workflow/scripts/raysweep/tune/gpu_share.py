"""This module decides which share of a GPU each trial uses.

The first trial's use of memory sets the share. The share is doubled when the trials on a GPU used up the GPU's memory.
"""

from __future__ import annotations

from ray.tune import PlacementGroupFactory
from ray.tune.experiment import Trial as TuneTrial

from raysweep.common.errors import logger
from raysweep.record.file import Record

# Fraction of a GPU's memory that the trials on the GPU may use together. The rest is a reserve, because later trials may use more memory than the first trial.
PACKED_SHARE = 0.9
# Maximum number of trials on one GPU. Each trial is a process, and with more processes each process would get too little of the GPU's time.
MAX_TRIALS_PER_GPU = 32


def gpus_of(trial: TuneTrial) -> float:
    """Return how many GPUs a trial uses without its workers, which may be a fraction of one GPU."""
    return float(trial.placement_group_factory.bundles[0].get("GPU", 0))


class GpuShare:
    """Keeps the share of a GPU that a trial uses if the trial starts now.

    While `is_measuring` is true, the next trial has a GPU alone. The first report of this trial shows how many trials can share a GPU.
    """

    def __init__(self, record: Record, share: float, is_measuring: bool = False) -> None:
        self.record, self.share, self.is_measuring = record, share, is_measuring

    def pack(self, memory_mb: tuple[int, int] | None) -> None:
        """Let the trials that start from now on share GPUs.

        `memory_mb` contains two values in MB, which are the memory that the first trial uses on its GPU and the total memory of this GPU.
        """
        if not self.is_measuring:
            return
        self.is_measuring = False
        if memory_mb is None:
            logger.warning(
                "Neither PyTorch nor a program such as nvidia-smi can say what a trial takes of its GPU: each has one for itself."
                " Set trial_resources.gpu to a number."
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
        """Double the share after a trial that used `failed_share` of a GPU found too little free memory.

        All trials on that GPU may fail together. The first failure doubles the share, so later failures of trials with the smaller share change nothing.
        """
        if failed_share < self.share:
            return
        self.share = min(1.0, 2 * self.share)
        self.record.write("gpu_share", gpu=self.share)
        logger.info("A GPU was too full for the trials on it: each now takes %.3g of one.", self.share)

    def apply(self, trial: TuneTrial) -> None:
        """Set the resources of a waiting trial to the present share of a GPU."""
        own, *workers = trial.placement_group_factory.bundles
        if own.get("GPU") and own["GPU"] != self.share:
            trial.update_resources(PlacementGroupFactory([{**own, "GPU": self.share}, *workers]))
