"""The documents: their links lead somewhere, and what they tell people to type exists."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted(path for pattern in ("*.md", "docs/*.md", "config/*.md", "benchmarks/*.md") for path in ROOT.glob(pattern))


def prose_of(text: str) -> str:
    """Markdown without its blocks of code, in which brackets are no links."""
    return re.sub(r"(?ms)^```.*?^```", "", text)


def anchors_of(text: str) -> set[str]:
    """What its headings are called in links, as GitHub makes it of their text."""
    headings = re.findall(r"(?m)^#+ (.+)$", prose_of(text))
    plain = [re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading) for heading in headings]
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in plain}


def commands_of(text: str) -> list[list[str]]:
    """The words of each command in its blocks of shell."""
    lines = [line for block in re.findall(r"(?ms)^```bash\n(.*?)^```", text) for line in block.replace("\\\n", " ").splitlines()]
    commands = [words for line in lines if (words := shlex.split(line, comments=True))]
    return commands + [shlex.split(word) for words in commands for word in words if " " in word]  # such as that of sbatch --wrap


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_to_files_and_headings_that_are_there(document: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", prose_of(document.read_text(encoding="utf-8")))
    for link in links:
        if re.match(r"[a-z]+:", link):
            assert link.startswith("https://"), link
            continue
        path, _, anchor = link.partition("#")
        target = (document.parent / path).resolve() if path else document
        assert target.exists(), f"{document.name}: {link}"
        if anchor:
            assert anchor in anchors_of(target.read_text(encoding="utf-8")), f"{document.name}: {link}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_targets_of_make_and_files_that_commands_name_are_there(document: Path) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"(?m)^([a-z-]+):", makefile))
    own = ("my.yaml", "sweeps/mine/")  # what the reader writes, or has `make new-sweep` write
    for words in commands_of(document.read_text(encoding="utf-8")):
        if words[0] == "make":
            named = [word for word in words[1:] if "=" not in word]
            assert set(named) <= targets, words
        for word in words:
            if re.fullmatch(r"[^ =]+\.(yaml|py|in)", word) and not word.startswith(own):
                assert (ROOT / word).exists(), f"{document.name}: {word}"


def test_the_command_that_the_readme_gives_for_the_tests_is_the_one_that_ci_runs() -> None:
    tests = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Tests")[2]
    assert commands_of(tests)[:1] == [["make", "test"]]
    assert (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()[-1] == "make test"
