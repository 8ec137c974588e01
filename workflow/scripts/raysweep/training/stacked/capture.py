"""Makes the steps of a stack faster, by compiling a step for a CPU or by capturing a step as a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable

import torch

from raysweep.training.private import compiler_options, ignore_path_of_environment
from raysweep.training.stacked.plan import StepPlan
from raysweep.training.stacked.state import StackState
from raysweep.training.stacked.step import MicroBatch

MaskedStep = Callable[[StackState, MicroBatch], None]


def compile_step(step: MaskedStep, threads: int) -> MaskedStep:
    """Return the step compiled by torch.compile. The compiler uses at most `threads` threads."""

    def run(state: StackState, batch: MicroBatch) -> None:
        step(state, batch)

    ignore_path_of_environment()
    # torch.compile compiles one code object at most 8 times. The stacks of several forms need more, so each step has a code object of its own.
    run.__code__ = run.__code__.replace()
    # dynamic=False makes torch.compile compile each form of stack for its exact sizes. Otherwise the second form is compiled for variable sizes.
    compiled: MaskedStep = torch.compile(run, fullgraph=True, dynamic=False, options=compiler_options(threads))
    return compiled


class CapturedStep:
    """Captures a step, with the selection of its rows, as a CUDA graph. One launch replays the whole step.

    The graph reads and writes the tensors that were used in the capture. So `run` copies a state into these tensors and the result back, and the members
    of a stack may change without another capture. Raises RuntimeError where PyTorch cannot capture the step.
    """

    def __init__(self, step: MaskedStep, state: StackState, plan: StepPlan, batch_of: Callable[[StepPlan], MicroBatch]) -> None:
        # The factor 2 leaves space for later members, whose batch sizes may need more steps than `plan` has.
        self.max_steps = 2 * len(plan.rows)
        self.state = state.clone()
        self.plan = StepPlan(*(tensor.new_zeros(self.max_steps, *tensor.shape[1:]) for tensor in plan))
        self.number = torch.zeros(1, dtype=torch.int64, device=plan.rows.device)

        def run_step() -> None:
            step(self.state, batch_of(StepPlan(*(tensor.index_select(0, self.number)[0] for tensor in self.plan))))
            self.number.add_(1).remainder_(self.max_steps)

        self.replay = capture_graph(run_step)

    def run(self, state: StackState, plan: StepPlan) -> None:
        """Run all steps of `plan`, which is the plan of an epoch, on `state`. The tensors of `state` change."""
        self.state.copy_from(state)
        steps = len(plan.rows)
        for buffer, values in zip(self.plan, plan, strict=True):
            buffer[:steps].copy_(values)
        self.number.zero_()
        for _ in range(steps):
            self.replay()
        state.copy_from(self.state)


def capture_graph(action: Callable[[], None]) -> Callable[[], None]:
    """Return a function that replays all GPU operations of `action` with one launch. `action` is called four times during this function.

    The code follows https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs. Other threads may use the GPU during the capture.
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
