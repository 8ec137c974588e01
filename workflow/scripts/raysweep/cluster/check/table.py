"""This module defines the result of a check, and formats the results as a table."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

COLUMNS = 100  # width of the table in characters
INDENT = 28  # width in characters of the state and the name, which stand before the finding
MOST_FINDINGS = 3  # greatest number of findings that the result of one check lists

State = Literal["ok", "warning", "FAILED"]
STATES: tuple[State, ...] = ("ok", "warning", "FAILED")  # sorted from the best to the worst state


@dataclass(frozen=True)
class CheckResult:
    """Describes the result of one check, which is one row of the table.

    `finding` says what the check found. `remedy` says what the user should do where the state is not ok.
    """

    name: str
    state: State
    finding: str
    remedy: str = ""

    @property
    def has_failed(self) -> bool:
        return self.state == "FAILED"


@dataclass(frozen=True)
class Section:
    """Contains the results of several checks, which the table shows below a title."""

    title: str
    results: tuple[CheckResult, ...]

    @property
    def failed(self) -> list[str]:
        """Return the names of the checks that have failed."""
        return [result.name for result in self.results if result.has_failed]

    def __str__(self) -> str:
        lines = "\n".join(line for result in self.results for line in lines_of(result))
        return f"\n{self.title}\n{lines}\n"


def ok(name: str, finding: str) -> CheckResult:
    return CheckResult(name, "ok", finding)


def warning(name: str, finding: str, remedy: str) -> CheckResult:
    return CheckResult(name, "warning", finding, remedy)


def failed(name: str, finding: str, remedy: str) -> CheckResult:
    return CheckResult(name, "FAILED", finding, remedy)


def lines_of(result: CheckResult) -> list[str]:
    """Return a result as lines of at most COLUMNS characters. The lines of the remedy follow the lines of the finding."""
    lines = textwrap.wrap(
        result.finding,
        COLUMNS,
        initial_indent=f"{result.state:<8} {result.name:<18} ",
        subsequent_indent=" " * INDENT,
        break_on_hyphens=False,
    )
    if result.remedy:
        lines += textwrap.wrap(
            f"→ {result.remedy}.",
            COLUMNS,
            initial_indent=" " * INDENT,
            subsequent_indent=" " * (INDENT + 2),
            break_on_hyphens=False,
        )
    return lines


def worst_of_nodes(results: Mapping[str, CheckResult]) -> CheckResult:
    """Combine the results of one check on several nodes (node → result) into one result, with the worst state and the nodes that have this state."""
    worst = max((result.state for result in results.values()), key=STATES.index)
    nodes_of_finding: dict[str, list[str]] = {}
    for node, result in results.items():
        if result.state == worst:
            nodes_of_finding.setdefault(result.finding, []).append(node)
    first = next(result for result in results.values() if result.state == worst)
    if len(nodes_of_finding[first.finding]) == len(results):
        return first
    findings = [f"{few_of(nodes)}: {finding}" for finding, nodes in nodes_of_finding.items()]
    return CheckResult(first.name, worst, first_of(findings, "findings"), first.remedy)


def first_of(items: Iterable[str], plural: str) -> str:
    """Return a text with the first MOST_FINDINGS items and the number of the remaining items. `plural` names the items."""
    items = list(items)
    num_others = len(items) - MOST_FINDINGS
    return "; ".join(items[:MOST_FINDINGS]) + (f"; {num_others} other {plural}" if num_others > 0 else "")


def few_of(names: Sequence[str]) -> str:
    """Return a text with the first four names and the number of the remaining names."""
    return ", ".join(names[:4]) + (f" and {len(names) - 4} others" if len(names) > 4 else "")


def format_size(mb: float) -> str:
    return f"{mb / 1000:.1f} GB" if mb >= 1000 else f"{mb:.0f} MB"
