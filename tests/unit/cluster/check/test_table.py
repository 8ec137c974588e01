"""The table of check_cluster: lines, and one line for many nodes."""

from __future__ import annotations

from raysweep.cluster.check.table import CheckResult, Section, few_of, first_of, lines_of, worst_of_nodes


def test_a_result_is_a_line_with_the_remedy_below_it() -> None:
    assert lines_of(CheckResult("one", "ok", "fine")) == ["ok       one                fine"]
    first, *others = lines_of(CheckResult("another", "FAILED", "broken " * 20, "Mend " * 20))
    assert first.startswith("FAILED   another            broken")
    assert any(line.startswith(" " * 28 + "→ Mend") for line in others)
    assert max(map(len, [first, *others])) <= 100


def test_a_section_has_a_title_and_knows_what_has_failed() -> None:
    section = Section("Slurm", (CheckResult("a", "ok", "fine"), CheckResult("b", "FAILED", "broken", "Mend it")))
    assert str(section).splitlines()[:3] == ["", "Slurm", "ok       a                  fine"]
    assert section.failed == ["b"]


def test_of_several_nodes_the_worst_counts_and_is_named() -> None:
    good, bad = CheckResult("x", "ok", "fine"), CheckResult("x", "FAILED", "broken", "Mend it")
    assert worst_of_nodes({"n1": good}) == good
    assert worst_of_nodes({"n1": good, "n2": good}) == good
    assert worst_of_nodes({"n1": good, "n2": bad}) == CheckResult("x", "FAILED", "n2: broken", "Mend it")
    assert worst_of_nodes({"n1": bad, "n2": bad}) == bad
    many = worst_of_nodes({f"n{n}": CheckResult("x", "ok", str(n // 5)) for n in range(30)})
    listed = "n0, n1, n2, n3 and 1 others: 0; n5, n6, n7, n8 and 1 others: 1; n10, n11, n12, n13 and 1 others: 2; 3 other findings"
    assert many.finding == listed


def test_of_many_a_few_are_listed() -> None:
    assert few_of([]) == ""
    assert few_of(list("abcd")) == "a, b, c, d"
    assert few_of(list("abcde")) == "a, b, c, d and 1 others"
    assert first_of(list("abc"), "pairs") == "a; b; c"
    assert first_of(list("abcd"), "pairs") == "a; b; c; 1 other pairs"
