"""Faster steps: compiled for a CPU, or captured as a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable

import torch

from raysweep.training.private import compiler_options
from raysweep.training.stacked.plan import StepPlan
from raysweep.training.stacked.state import StackState
from raysweep.training.stacked.step import MicroBatch
from raysweep.training.trainer import normalized

MaskedStep = Callable[[StackState, MicroBatch], None]


def compile_step(step: MaskedStep, threads: int) -> MaskedStep:
    """Return the step compiled by torch.compile, with at most `threads` threads of the compiler."""
    # dynamic=False: otherwise a second form of stack is compiled for all sizes.
    compiled: MaskedStep = torch.compile(step, fullgraph=True, dynamic=False, options=compiler_options(threads))
    return compiled


class CapturedStep:
    """A step as a CUDA graph, which one launch replays, the choice of its rows included.

    The graph reads and writes the tensors of the capture, so `run` copies a state in and out: members come and go without another capture. Raises RuntimeError
    where PyTorch cannot capture the step.
    """

    def __init__(self, step: MaskedStep, state: StackState, plan: StepPlan, images: torch.Tensor, labels: torch.Tensor) -> None:
        self.max_steps = 2 * len(plan.rows)  # members with other batch sizes may need more steps than `plan` has
        self.state = state.clone()
        self.rows, self.weights = (tensor.new_zeros(self.max_steps, *tensor.shape[1:]) for tensor in (plan.rows, plan.weights))
        self.gates = plan.weights.new_zeros(self.max_steps, *plan.gates.shape[1:])
        self.number = torch.zeros(1, dtype=torch.int64, device=images.device)

        def run_step() -> None:
            rows, weights, gate = (tensor.index_select(0, self.number)[0] for tensor in (self.rows, self.weights, self.gates))
            step(self.state, MicroBatch(normalized(images[rows], weights.dtype), labels[rows], weights, gate))
            self.number.add_(1).remainder_(self.max_steps)

        self.replay = capture_graph(run_step)

    def run(self, state: StackState, plan: StepPlan) -> None:
        """Take a state through all steps of an epoch."""
        self.state.copy_from(state)
        steps = len(plan.rows)
        for buffer, values in ((self.rows, plan.rows), (self.weights, plan.weights), (self.gates, plan.gates)):
            buffer[:steps].copy_(values)
        self.number.zero_()
        for _ in range(steps):
            self.replay()
        state.copy_from(self.state)


def capture_graph(action: Callable[[], None]) -> Callable[[], None]:
    """Return a function that does on the GPU, as one launch, all that `action` does. `action` is called a few times before.

    The steps are those of https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs; other threads may use the GPU meanwhile.
    """
    side_stream = torch.cuda.Stream()
    side_stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side_stream):
        for _ in range(3):
            action()
    torch.cuda.current_stream().wait_stream(side_stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        action()
    replay: Callable[[], None] = graph.replay
    return replay
