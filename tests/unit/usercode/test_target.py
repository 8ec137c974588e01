from __future__ import annotations

from pathlib import Path

import pytest

from raysweep.common.errors import ConfigError
from raysweep.usercode.target import SCRIPTS_DIR, defined_names_of, files_with_one_name, find_target, local_sources
from user_files import write_files


def sources_of(text: str, root: Path) -> set[str]:
    """The local sources of a target, relative to `root`."""
    return {str(path.relative_to(root)) for path in local_sources(find_target(text, root))}


def test_a_file_and_a_module(tmp_path: Path) -> None:
    write_files(tmp_path, {"lib/net.py": "class Net: ...\n"})
    by_file, by_module = find_target("lib/net.py:Net", tmp_path), find_target("lib.net:Net", tmp_path)
    assert by_file.path == by_module.path == tmp_path / "lib/net.py"
    assert by_file.name == by_module.name == "Net"
    assert by_file.import_root == tmp_path / "lib"
    assert by_module.import_root == tmp_path


def test_a_package_stands_for_its_init_file(tmp_path: Path) -> None:
    (tmp_path / "nets").mkdir()
    (tmp_path / "nets/__init__.py").write_text("class Net: ...\n")
    target = find_target("nets:Net", tmp_path)
    assert target.path == tmp_path / "nets/__init__.py"
    assert target.import_root == tmp_path


def test_an_absolute_path_and_one_outside_of_the_root(tmp_path: Path) -> None:
    write_files(tmp_path, {"train.py": "def train(config): ...\n", "project/x.py": ""})
    assert find_target(f"{tmp_path}/train.py:train", tmp_path / "project").path == tmp_path / "train.py"
    assert find_target("../train.py:train", tmp_path / "project").path == tmp_path / "train.py"


def test_a_module_of_the_users_hides_one_of_the_workflow(tmp_path: Path) -> None:
    assert find_target("raysweep.models.lenet:LeNet", tmp_path).path == SCRIPTS_DIR / "raysweep/models/lenet.py"
    write_files(tmp_path, {"raysweep/models/lenet.py": "LeNet = 1\n"})
    assert find_target("raysweep.models.lenet:LeNet", tmp_path).path == tmp_path / "raysweep/models/lenet.py"


def test_target_of_a_sweep(tmp_path: Path) -> None:
    write_files(tmp_path, {"a.py": "Net = 1\ndef train(config): ...\n"})


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "write path/to/file.py:name or package.module:name"),
        ("train.py", "write path/to/file.py:name or package.module:name"),
        (":train", "write path/to/file.py:name or package.module:name"),
        ("train.py:", "write path/to/file.py:name or package.module:name"),
        ("train.py:a.b", "write path/to/file.py:name or package.module:name"),
        ("train.py:def f()", "write path/to/file.py:name or package.module:name"),
        ("a/b:c", "write path/to/file.py:name or package.module:name"),
        ("a..b:c", "write path/to/file.py:name or package.module:name"),
        ("nothing.py:train", "there is no file nothing.py (paths are relative to the folder where Snakemake runs)"),
        ("folder.py:train", "there is no file folder.py (paths are relative to the folder where Snakemake runs)"),
        ("nothing:train", "there is no module nothing in this folder or in workflow/scripts"),
        ("train.py:Train", "train.py does not define Train (it defines a, train)"),
        ("empty.py:train", "empty.py does not define train (it defines nothing)"),
    ],
)
def test_targets_that_are_refused(tmp_path: Path, text: str, reason: str) -> None:
    write_files(tmp_path, {"train.py": "def train(config): ...\na = _b = 1\n", "empty.py": ""})
    (tmp_path / "folder.py").mkdir()
    with pytest.raises(ConfigError) as caught:
        find_target(text, tmp_path)
    assert str(caught.value) == f"{text!r} is not allowed: {reason}"


@pytest.mark.parametrize("content", ["def train(:\n", "x = '\0'\n", "# -*- coding: nonsense -*-\n"])
def test_a_file_that_is_no_python(tmp_path: Path, content: str) -> None:
    write_files(tmp_path, {"train.py": content})
    with pytest.raises(ConfigError, match=r"'train\.py:train' is not allowed: .*train\.py is not Python that can be read: "):
        find_target("train.py:train", tmp_path)


def test_an_imported_file_that_is_no_python_is_named_once_with_the_line(tmp_path: Path) -> None:
    write_files(tmp_path, {"lib/net.py": "from .parts import x\nclass Net: ...\n", "lib/parts.py": "x = 1\nx = = 2\n"})
    for text, wanted in (("lib.net:Net", "lib.net:Net"), ("lib/net.py:Net", "net.py:Net")):
        if text.startswith("lib/"):
            write_files(tmp_path, {"lib/net.py": "import parts\nclass Net: ...\n"})
        with pytest.raises(ConfigError) as caught:
            local_sources(find_target(text, tmp_path))
        reason = f"{tmp_path}/lib/parts.py is not Python that can be read: invalid syntax (line 2)"
        assert str(caught.value) == f"{wanted!r} is not allowed: {reason}"


def test_a_file_without_a_target_is_named_once(tmp_path: Path) -> None:
    write_files(tmp_path, {"train.py": "def train(:\n"})
    with pytest.raises(ConfigError) as caught:
        defined_names_of(tmp_path / "train.py")
    assert str(caught.value) == f"{tmp_path}/train.py is not Python that can be read: invalid syntax (line 1)"


def test_names_bound_at_the_top_level_and_nowhere_else(tmp_path: Path) -> None:
    write_files(
        tmp_path,
        {
            "names.py": (
                "import a.b, c as d\n"
                "from e import f, g as h\n"
                "i, (j, *k) = l = 1, (2, 3)\n"
                "m: int = 4\n"
                "class N:\n    inner = 1\n"
                "def o():\n    inner = 1\n"
                "async def p(): ...\n"
                "if i:\n    q = 1\nelif j:\n    r = 1\nelse:\n    s = 1\n"
                "try:\n    import t\nexcept ImportError:\n    t2 = None\nelse:\n    u = 1\nfinally:\n    v = 1\n"
                "with open(x) as y:\n    w = 1\n"
                "table[unbound] = 1\n"
                "unbound.attribute = 1\n"
            ),
        },
    )
    assert defined_names_of(tmp_path / "names.py") == set("adfhijklmNopqrstuvw") | {"t2"}


def test_a_star_import_may_define_anything(tmp_path: Path) -> None:
    write_files(tmp_path, {"nets.py": "from other import *\n"})
    assert find_target("nets.py:Net", tmp_path).name == "Net"


def test_nothing_is_run(tmp_path: Path) -> None:
    write_files(tmp_path, {"train.py": "raise SystemExit\ndef train(config): ...\n"})
    assert sources_of("train.py:train", tmp_path) == {"train.py"}


def test_local_imports_are_followed_and_others_are_not(tmp_path: Path) -> None:
    write_files(
        tmp_path,
        {
            "train.py": "import os, torch\nimport nets.small\nfrom helpers import one, two\ndef train(config):\n    import late\n",
            "nets/__init__.py": "",
            "nets/small.py": "from . import parts\nfrom .deep.er import x\nfrom .. import nothing\n",
            "nets/parts.py": "import nets.small\n",
            "nets/deep/er.py": "x = 1\n",
            "nets/other.py": "",
            "helpers/__init__.py": "from .inner import one\n",
            "helpers/inner.py": "one = two = 1\n",
            "helpers/two.py": "",
            "late.py": "",
            "unused.py": "",
            "torch_.py": "",
        },
    )
    assert sources_of("train.py:train", tmp_path) == {
        "train.py",
        "nets/__init__.py",
        "nets/small.py",
        "nets/parts.py",
        "nets/deep/er.py",
        "helpers/__init__.py",
        "helpers/inner.py",
        "helpers/two.py",
        "late.py",
    }


def test_of_the_workflow_only_models_count(tmp_path: Path) -> None:
    models = SCRIPTS_DIR / "raysweep/models"
    assert local_sources(find_target("raysweep.models.lenet:LeNet", tmp_path)) == [models / "__init__.py", models / "lenet.py"]


def test_relative_imports_of_a_module(tmp_path: Path) -> None:
    write_files(
        tmp_path, {"lib/__init__.py": "", "lib/net.py": "from .layers import Layer\nclass Net: ...\n", "lib/layers.py": "Layer = 1\n"}
    )
    assert sources_of("lib.net:Net", tmp_path) == {"lib/__init__.py", "lib/net.py", "lib/layers.py"}


def test_the_packages_that_a_module_lies_in_are_run_too(tmp_path: Path) -> None:
    write_files(tmp_path, {"lib/__init__.py": "import setting\n", "lib/nets/net.py": "class Net: ...\n", "setting.py": ""})
    assert sources_of("lib.nets.net:Net", tmp_path) == {"lib/__init__.py", "lib/nets/net.py", "setting.py"}
    assert sources_of("lib/nets/net.py:Net", tmp_path) == {"lib/nets/net.py"}


def test_two_files_of_one_name_are_found_and_one_file_of_two_targets_is_not(tmp_path: Path) -> None:
    net, loss = "import utils\nclass Net: ...\n", "import utils\ndef mine(outputs, targets): ...\n"
    write_files(tmp_path, {"a/net.py": net, "a/utils.py": "", "a/loss.py": loss, "b/loss.py": loss, "b/utils.py": ""})
    model, beside, elsewhere = (find_target(text, tmp_path) for text in ("a/net.py:Net", "a/loss.py:mine", "b/loss.py:mine"))
    assert files_with_one_name(model, beside) is None
    assert files_with_one_name(model, elsewhere) == (tmp_path / "a/utils.py", tmp_path / "b/utils.py")
