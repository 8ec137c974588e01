"""The documents: their links lead somewhere, what they tell people to type exists, and what they say that one sees is what the sources say."""

from __future__ import annotations

import ast
import re
import shlex
import shutil
import subprocess
import sys
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


def build(folder: Path, output: Path) -> subprocess.CompletedProcess[str]:
    """The site, as `make docs` builds it, in the environment of the tests."""
    [line] = [line for line in (ROOT / "Makefile").read_text(encoding="utf-8").splitlines() if " -m sphinx " in line]
    options = [str(output) if word == "resources/docs" else word for word in line.partition(" -m sphinx ")[2].split()]
    return subprocess.run([sys.executable, "-m", "sphinx", *options], cwd=folder, capture_output=True, text=True, timeout=120)


def test_the_site_has_a_page_for_each_document(tmp_path: Path) -> None:
    done = build(ROOT, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    pages = {path.relative_to(tmp_path).with_suffix(".md") for path in tmp_path.rglob("*.html")}
    assert {path.relative_to(ROOT) for path in DOCUMENTS} <= pages


def test_a_link_of_the_site_that_leads_nowhere_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    shutil.copy(ROOT / "docs" / "conf.py", tmp_path / "docs")
    (tmp_path / "docs" / "index.md").write_text("# A page\n\n[that](other.md) and [this](#a-page)\n")
    done = build(tmp_path, tmp_path / "site")
    assert done.returncode != 0
    assert "other.md" in done.stderr
    assert "a-page" not in done.stderr


def test_the_diagram_has_every_rule_that_makes_a_result() -> None:
    diagram = (ROOT / "docs" / "how-it-works.md").read_text(encoding="utf-8").split("```")[1]
    files = [path for path in (ROOT / "workflow" / "rules").glob("*.smk") if path.stem != "check"]
    rules = {rule for path in files for rule in re.findall(r"(?m)^rule (\w+):", path.read_text(encoding="utf-8"))}
    assert rules == set(re.findall(r"(?<![\w/.])[a-z]+_[a-z]+\b|\b(?:confirm|report|compare)\b(?!\.)", diagram))


# ------------------------------------------------------------------------------------------------------------------ troubleshooting

VALUE = "\0"  # stands for each value that is put into a message


def messages_of(path: Path) -> list[str]:
    """The texts in a file of the workflow, with VALUE where a value is put in."""
    source = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        tree = ast.parse(source)
        docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        texts = [
            "".join(str(part.value) if isinstance(part, ast.Constant) else VALUE for part in node.values)
            if isinstance(node, ast.JoinedStr)
            else node.value
            for node in ast.walk(tree)
            if isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))
            if id(node) not in docstrings
        ]
        return [re.sub(r"%[-.\d]*[sdfg]", VALUE, " ".join(text.split())) for text in texts]
    # Of make and of Snakemake: lines. A comment is no message.
    lines = [line for line in source.splitlines() if not line.lstrip().startswith("#")]
    return [re.sub(r"\$\(\w+\)|\$\$\w+", VALUE, line) for line in lines]


def that_say(messages: list[str], symptom: str) -> set[str]:
    """The messages that a document quotes so, in which `<…>` is one value, and `…` any text."""
    parts = re.split(r"(<[^<>]+>| ?… ?)", symptom)
    words = [VALUE if part.startswith("<") else ".*" if "…" in part else re.escape(part) for part in parts]
    return {message for message in messages if re.search("".join(words), message)}


def symptoms() -> list[str]:
    """All that the first columns of docs/troubleshooting.md quote. Where a symptom is no line, it is told in words."""
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    rows = [line.split(" | ")[0] for line in page.splitlines() if line.startswith("| ") and not line.startswith("| you see")]
    return [quoted for row in rows for quoted in re.findall(r"`([^`]+)`", row) if " " in quoted]


MESSAGES = [
    message
    for path in (*sorted((ROOT / "workflow").rglob("*.py")), *sorted((ROOT / "workflow").rglob("*.smk")), ROOT / "Makefile")
    for message in messages_of(path)
]


@pytest.mark.parametrize("symptom", symptoms())
def test_what_one_sees_is_what_the_sources_say(symptom: str) -> None:
    found = that_say(MESSAGES, symptom)
    assert found, "no text in workflow/ or the Makefile is like this: has the message changed?"
    words = re.sub(r"<[^<>]+>|…", "", symptom)
    assert len(found) == 1 or len(re.findall(r"\w", words)) >= 12, f"too little to be told from others: {found}"


def test_a_message_that_has_changed_is_noticed(tmp_path: Path) -> None:
    source = 'raise WorldError(\n    f"{node}: no room at {folder}: "\n    f"{free} GB are free"\n)\nlogger.info("%s: %d trials are done", name, 3)\n'
    quoted = ["<node>: no room at <folder>: <free> GB", "no room at … GB are free", "<sweep>: <number> trials are done"]
    changes = [
        ("no room at", "no space at"),
        (" GB", " MB"),
        ("trials are", "of {all} trials are"),
        ("{folder}: ", "{folder}, "),
        ("%d", "3"),
    ]
    path = tmp_path / "module.py"
    path.write_text(source)
    assert all(that_say(messages_of(path), one) for one in quoted)
    for old, new in changes:
        path.write_text(source.replace(old, new))
        assert not all(that_say(messages_of(path), one) for one in quoted), new
    path.write_text('"""No room at {folder} is what a docstring says."""\n')
    assert not that_say(messages_of(path), "No room at {folder} is what")
