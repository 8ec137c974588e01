"""The links of the documents lead to a target, their commands exist and a test runs them, and the messages that they quote stand in the sources."""

from __future__ import annotations

import ast
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from raysweep import __version__

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted(path for pattern in ("*.md", "docs/*.md", "config/*.md", "benchmarks/*.md") for path in ROOT.glob(pattern))


def prose_of(text: str) -> str:
    """Return Markdown without the blocks of code, in which brackets are no links."""
    return re.sub(r"(?ms)^```.*?^```", "", text)


def anchors_of(text: str) -> set[str]:
    """Return the anchors of the headings, as GitHub derives them from the text."""
    headings = re.findall(r"(?m)^#+ (.+)$", prose_of(text))
    plain = [re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading) for heading in headings]
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in plain}


def commands_of(text: str) -> list[list[str]]:
    """Return the words of each command in the blocks of shell."""
    lines = [line for block in re.findall(r"(?ms)^```bash\n(.*?)^```", text) for line in block.replace("\\\n", " ").splitlines()]
    commands = [words for line in lines if (words := shlex.split(line, comments=True))]
    return commands + [shlex.split(word) for words in commands for word in words if " " in word]  # such as the argument of sbatch --wrap


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_to_files_and_headings_that_exist(document: Path) -> None:
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
def test_targets_of_make_and_files_in_commands_exist(document: Path) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"(?m)^([a-z-]+):", makefile))
    of_the_reader = ("my.yaml", "sweeps/mine/")  # files that the reader or `make new-sweep` writes
    for words in commands_of(document.read_text(encoding="utf-8")):
        if words[0] == "make":
            named = [word for word in words[1:] if "=" not in word]
            assert set(named) <= targets, words
        for word in words:
            if re.fullmatch(r"[^ =]+\.(yaml|py|in)", word) and not word.startswith(of_the_reader):
                assert (ROOT / word).exists(), f"{document.name}: {word}"


# ------------------------------------------------------------------------------------------------------------------ commands

SETS_UP = "test_makefile.py::test_sets_up_and_then_does_nothing_until_the_folder_is_moved"
# A command in a document → the test that runs the command, maybe in a smaller case, or the file with which CI or git runs the command.
RUN_BY = {
    "make setup": SETS_UP,
    "source .venv/bin/activate": SETS_UP,
    "make new-sweep NAME=mine": SETS_UP,
    "make watch": SETS_UP,
    "make watch SWEEP=mine": SETS_UP,
    "make demo": ".github/workflows/ci.yml",
    "make test": ".ci/run",
    "make check": ".pre-commit-config.yaml",
    "snakemake -n": "test_dry_run.py::test_a_clean_checkout_runs_every_rule_once_and_a_dry_run_makes_no_file",
    "snakemake --cores all": "test_examples.py::test_a_model_on_a_folder_of_images",
    "snakemake --cores all --configfile sweeps/mine/config.yaml": "test_examples.py::test_a_model_on_a_folder_of_images",
    "snakemake --cores all results/mine/best.yaml": "test_end_to_end.py::test_a_models_own_file_is_trained_and_its_change_starts_anew",
    "snakemake --cores all --until build_env": "test_dry_run.py::test_single_stages_and_targets",
    "snakemake --cores all -R run_sweep": "test_end_to_end.py::test_forcing_the_sweep_writes_the_same_outputs_from_the_record_without_ray",
    "snakemake --cores all -R stage_data --configfile sweeps/mine/config.yaml": "test_dry_run.py::test_data_that_are_staged_again_bring_the_sweep",
    "snakemake --cores all plan": "test_plan.py::test_steps_of_a_model_are_timed",
    "snakemake --cores all --quiet": "test_controller.py::test_our_lines_follow_snakemakes_quiet",
    "snakemake --report report.zip": "test_end_to_end.py::test_snakemakes_own_report_has_the_results_with_their_captions",
    ".venv/bin/uv pip compile --universal --python-version 3.11 sweeps/mine/requirements.in -o sweeps/mine/requirements.txt": (
        "test_locks.py::test_a_list_of_ones_own_is_locked_as_the_documents_say"
    ),
    "snakemake check_cluster --executor slurm --profile cluster --configfile my.yaml": (
        "slurm/test_check_cluster.py::test_all_is_well_on_two_nodes_and_asked_again_it_looks_again"
    ),
    "snakemake plan --executor slurm --profile cluster --configfile my.yaml": "slurm/test_sweep.py::test_confirm_and_report_follow_on_one_node",
    "snakemake --executor slurm --profile cluster --configfile my.yaml": "slurm/test_sweep.py::test_confirm_and_report_follow_on_one_node",
    "snakemake --executor slurm --profile cluster --set-resources run_sweep:runtime=180 run_sweep:constraint=skylake --set-threads run_sweep=8": (
        "slurm/test_sweep.py::test_three_nodes_without_gpus_and_what_set_resources_gives_counts"
    ),
    "sbatch --time=1-00:00 --cpus-per-task=2 --mem=4G --wrap 'snakemake --executor slurm --profile cluster --configfile my.yaml'": (
        "slurm/test_sweep.py::test_from_inside_a_job_the_same_command_submits_new_jobs"
    ),
}
# A command in a document → the reason why no test runs the command.
NOT_RUN = {
    "git clone '<this' 'repository>' raysweep": "the address is the reader's",
    "'(cd' 'raysweep;' make 'setup)'": "sets up another clone; test_makefile.py runs `make setup`, and test_module.py what follows",
    "source raysweep/.venv/bin/activate": "the same",
    "apptainer build image.sif workflow/envs/image.def": "needs Apptainer, a builder's rights and a network; test_container.py runs what uses the image",
    "snakemake --cores all --configfile benchmarks/recipe.yaml": "takes an hour, and downloads CIFAR-10; test_load.py reads the config",
    "make bench": "takes hours; test_bench.py has the parts",
    "make bench ONLY=step,snakemake ROUNDS=1": "takes minutes, and measures nothing while tests run; test_bench.py finds figures by such words",
    "make bench DATA=folder": "needs CIFAR-10",
    "resources/env-test/venv/bin/python -m pytest tests/slurm/test_sweep.py": "is a part of `make test`",
}


def commands() -> set[str]:
    """Return the commands in the documents: the commands in blocks of shell, and the commands in the table of the README."""
    texts = [document.read_text(encoding="utf-8") for document in DOCUMENTS]
    rows = [command for text in texts for command in re.findall(r"(?m)^\| `((?:snakemake|make) [^`]+)` \|", text)]
    return {shlex.join(words) for text in texts for words in commands_of(text)} | set(rows)


def essential_words(command: str) -> set[str]:
    """Return the words of a command without the reader's files, names and values, and without `snakemake`, which helpers of the tests call."""
    words = [part for word in shlex.split(command) for part in word.split()]  # also the words that sbatch wraps
    of_the_reader = r"snakemake|my\.yaml|(sweeps|results)/mine/.*"
    return {re.split("(?<=[=:])", word)[0] for word in words if not re.fullmatch(of_the_reader, word)}


def source_of(module: Path) -> str:
    """Return the text of a module of tests, followed by the text of the helpers that the module imports."""
    text = module.read_text(encoding="utf-8")
    helpers = [ROOT / "tests" / f"{name.replace('.', '/')}.py" for name in re.findall(r"(?m)^(?:from|import) ([\w.]+)", text)]
    return "\n".join([text, *(helper.read_text(encoding="utf-8") for helper in helpers if helper.is_file())])


def missing_words(command: str, text: str) -> list[str]:
    """Return the essential words of a command that a text does not have."""
    words = {word: re.escape(word) + ("" if word.endswith(("=", ":")) else r"(?![\w-])") for word in essential_words(command)}
    return sorted(word for word, pattern in words.items() if not re.search(rf"(?<![\w-]){pattern}", text))


def test_every_command_has_a_test_or_a_reason() -> None:
    assert commands() == RUN_BY.keys() | NOT_RUN.keys()
    assert not RUN_BY.keys() & NOT_RUN.keys()


@pytest.mark.parametrize("command", RUN_BY)
def test_the_test_of_a_command_exists_and_has_the_words_of_the_command(command: str) -> None:
    module, _, name = RUN_BY[command].partition("::")
    if not name:
        assert re.search(rf"(?m)\b{re.escape(command)}$", (ROOT / module).read_text(encoding="utf-8"))
        return
    path = next(path for path in (ROOT / "tests" / module, ROOT / "tests/integration" / module) if path.exists())
    assert re.search(rf"(?m)^def {name}\(", path.read_text(encoding="utf-8")), f"{module} has no {name}"
    assert missing_words(command, source_of(path)) == []


def test_a_word_that_is_missing_in_a_test_is_an_error() -> None:
    text = 'run(["snakemake", "--cores", "2", "--set-resources", "run_sweep:mem_mb=3000", f"--time={minutes}"])'
    assert missing_words("snakemake --cores results/mine/best.yaml --set-resources run_sweep:runtime=9 --time=5", text) == []
    assert missing_words("snakemake --cores -n", text) == ["-n"]
    assert missing_words("sbatch --wrap 'snakemake --core --configfile my.yaml'", text) == ["--configfile", "--core", "--wrap", "sbatch"]
    assert missing_words("snakemake --set-resources confirm:runtime=9", text) == ["confirm:"]


def test_ci_runs_the_command_that_the_readme_names_for_the_tests() -> None:
    tests = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Tests")[2]
    assert commands_of(tests)[:1] == [["make", "test"]]
    assert (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()[-1] == "make test"


def test_the_version_is_the_same_wherever_the_version_stands() -> None:
    version = re.search(r"(?m)^version: (.+)$", (ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    released = re.search(r"(?m)^## (\d\S+) - (\S+)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"))
    assert version
    assert released
    assert version[1] == released[1] == __version__
    assert f"date-released: {released[2]}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")


def build(folder: Path, output: Path) -> subprocess.CompletedProcess[str]:
    """Build the site of the documents in `folder` with the options of `make docs`, in the environment of the tests."""
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
    files = [path for path in (ROOT / "workflow" / "rules").glob("*.smk") if path.stem not in ("check", "plan")]  # these two only print
    rules = {rule for path in files for rule in re.findall(r"(?m)^rule (\w+):", path.read_text(encoding="utf-8"))}
    assert rules == set(re.findall(r"(?<![\w/.])[a-z]+_[a-z]+\b|\b(?:confirm|report|compare)\b(?!\.)", diagram))


# ------------------------------------------------------------------------------------------------------------------ troubleshooting

VALUE = "\0"  # stands for each value in a message


def messages_of(path: Path) -> list[str]:
    """Return the texts in a file of the workflow, with VALUE in the place of each value."""
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
    # A message of the Makefile or of a Snakefile is a line. A comment is no message.
    lines = [line for line in source.splitlines() if not line.lstrip().startswith("#")]
    return [re.sub(r"\$\(\w+\)|\$\$\w+", VALUE, line) for line in lines]


def matching_messages(messages: list[str], symptom: str) -> set[str]:
    """Return the messages that match the quotation `symptom`, in which `<…>` is one value and `…` is any text."""
    parts = re.split(r"(<[^<>]+>| ?… ?)", symptom)
    words = [VALUE if part.startswith("<") else ".*" if "…" in part else re.escape(part) for part in parts]
    return {message for message in messages if re.search("".join(words), message)}


def symptoms() -> list[str]:
    """Return the quotations in the first columns of docs/troubleshooting.md. A symptom that is no message stands there in words, without quotation."""
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    rows = [line.split(" | ")[0] for line in page.splitlines() if line.startswith("| ") and not line.startswith("| you see")]
    return [quoted for row in rows for quoted in re.findall(r"`([^`]+)`", row) if " " in quoted]


MESSAGES = [
    message
    for path in (*sorted((ROOT / "workflow").rglob("*.py")), *sorted((ROOT / "workflow").rglob("*.smk")), ROOT / "Makefile")
    for message in messages_of(path)
]


@pytest.mark.parametrize("symptom", symptoms())
def test_a_quoted_message_stands_in_the_sources(symptom: str) -> None:
    messages = matching_messages(MESSAGES, symptom)
    assert messages, "no text in workflow/ or the Makefile matches: has the message changed?"
    words = re.sub(r"<[^<>]+>|…", "", symptom)
    assert len(messages) == 1 or len(re.findall(r"\w", words)) >= 12, f"the quotation is too short, it matches {messages}"


def test_a_changed_message_is_an_error(tmp_path: Path) -> None:
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
    assert all(matching_messages(messages_of(path), quotation) for quotation in quoted)
    for old, new in changes:
        path.write_text(source.replace(old, new))
        assert not all(matching_messages(messages_of(path), quotation) for quotation in quoted), new
    path.write_text('"""No room at {folder} is what a docstring says."""\n')
    assert not matching_messages(messages_of(path), "No room at {folder} is what")
