"""SECURITY.md names tests that there are."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_each_line_of_the_threat_model_names_tests_that_exist() -> None:
    lines = [line.split(" | ") for line in (ROOT / "SECURITY.md").read_text().splitlines() if line.startswith("| ")][1:]
    assert len(lines) > 10
    modules: list[str] = []
    for *_, shown_by in lines:
        named = re.findall(r"`(tests/\S+\.py)`", shown_by)
        assert named or shown_by.startswith("the same: "), shown_by
        modules = named or modules
        sources = [(ROOT / module).read_text() for module in modules]
        for test in re.findall(r"`(test_\w+)`", shown_by):
            assert any(f"def {test}(" in source for source in sources), test
