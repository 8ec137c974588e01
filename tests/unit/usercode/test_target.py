from __future__ import annotations

import inspect
import json
import sys
from pathlib import Path

import pytest

from raysweep.common.errors import ConfigError
from raysweep.usercode.target import SCRIPTS_DIR, Code, defined_names_of, find_target, load_target, local_sources, target_of


def write(root: Path, files: dict[str, str]) -> None:
    """Write Python files below `root`."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def found(text: str, root: Path) -> set[str]:
    """The local sources of a target, relative to `root`."""
    return {str(path.relative_to(root)) for path in local_sources(find_target(text, root))}


def test_a_file_and_a_module(tmp_path: Path) -> None:
    write(tmp_path, {"lib/net.py": "class Net: ...\n"})
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
    write(tmp_path, {"train.py": "def train(config): ...\n", "project/x.py": ""})
    assert find_target(f"{tmp_path}/train.py:train", tmp_path / "project").path == tmp_path / "train.py"
    assert find_target("../train.py:train", tmp_path / "project").path == tmp_path / "train.py"


def test_a_module_of_the_users_hides_one_of_the_workflow(tmp_path: Path) -> None:
    assert find_target("raysweep.models.lenet:LeNet", tmp_path).path == SCRIPTS_DIR / "raysweep/models/lenet.py"
    write(tmp_path, {"raysweep/models/lenet.py": "LeNet = 1\n"})
    assert find_target("raysweep.models.lenet:LeNet", tmp_path).path == tmp_path / "raysweep/models/lenet.py"


def test_target_of_a_sweep(tmp_path: Path) -> None:
    write(tmp_path, {"a.py": "Net = 1\ndef train(config): ...\n"})
    assert target_of({"model": "a:Net"}, tmp_path).name == "Net"
    assert target_of({"trainable": "a.py:train"}, tmp_path).name == "train"


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
    write(tmp_path, {"train.py": "def train(config): ...\na = _b = 1\n", "empty.py": ""})
    (tmp_path / "folder.py").mkdir()
    with pytest.raises(ConfigError) as caught:
        find_target(text, tmp_path)
    assert str(caught.value) == f"{text!r} is not allowed: {reason}"


@pytest.mark.parametrize("content", ["def train(:\n", "x = '\0'\n", "# -*- coding: nonsense -*-\n"])
def test_a_file_that_is_no_python(tmp_path: Path, content: str) -> None:
    write(tmp_path, {"train.py": content})
    with pytest.raises(ConfigError, match=r"'train\.py:train' is not allowed: .*train\.py is not Python that can be read: "):
        find_target("train.py:train", tmp_path)


def test_an_imported_file_that_is_no_python_is_named_once_with_the_line(tmp_path: Path) -> None:
    write(tmp_path, {"lib/net.py": "from .parts import x\nclass Net: ...\n", "lib/parts.py": "x = 1\nx = = 2\n"})
    for text, wanted in (("lib.net:Net", "lib.net:Net"), ("lib/net.py:Net", "net.py:Net")):
        if text.startswith("lib/"):
            write(tmp_path, {"lib/net.py": "import parts\nclass Net: ...\n"})
        with pytest.raises(ConfigError) as caught:
            local_sources(find_target(text, tmp_path))
        reason = f"{tmp_path}/lib/parts.py is not Python that can be read: invalid syntax (line 2)"
        assert str(caught.value) == f"{wanted!r} is not allowed: {reason}"


def test_a_file_without_a_target_is_named_once(tmp_path: Path) -> None:
    write(tmp_path, {"train.py": "def train(:\n"})
    with pytest.raises(ConfigError) as caught:
        defined_names_of(tmp_path / "train.py")
    assert str(caught.value) == f"{tmp_path}/train.py is not Python that can be read: invalid syntax (line 1)"


def test_names_bound_at_the_top_level_and_nowhere_else(tmp_path: Path) -> None:
    write(
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
    write(tmp_path, {"nets.py": "from other import *\n"})
    assert find_target("nets.py:Net", tmp_path).name == "Net"


def test_nothing_is_run(tmp_path: Path) -> None:
    write(tmp_path, {"train.py": "raise SystemExit\ndef train(config): ...\n"})
    assert found("train.py:train", tmp_path) == {"train.py"}


def test_local_imports_are_followed_and_others_are_not(tmp_path: Path) -> None:
    write(
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
    assert found("train.py:train", tmp_path) == {
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
    write(tmp_path, {"lib/__init__.py": "", "lib/net.py": "from .layers import Layer\nclass Net: ...\n", "lib/layers.py": "Layer = 1\n"})
    assert found("lib.net:Net", tmp_path) == {"lib/__init__.py", "lib/net.py", "lib/layers.py"}


def test_the_packages_that_a_module_lies_in_are_run_too(tmp_path: Path) -> None:
    write(tmp_path, {"lib/__init__.py": "import setting\n", "lib/nets/net.py": "class Net: ...\n", "setting.py": ""})
    assert found("lib.nets.net:Net", tmp_path) == {"lib/__init__.py", "lib/nets/net.py", "setting.py"}
    assert found("lib/nets/net.py:Net", tmp_path) == {"lib/nets/net.py"}


@pytest.fixture
def clean_modules() -> object:
    before, path, finders = set(sys.modules), list(sys.path), list(sys.meta_path)
    yield
    sys.path[:], sys.meta_path[:] = path, finders
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_the_checksum_is_of_the_contents_whatever_the_place_and_order(tmp_path: Path) -> None:
    def sha256() -> str:
        return Code.read(find_target("a.py:x", tmp_path)).sha256()

    write(tmp_path, {"a.py": "x = 1\nimport b\n", "b.py": "2\n"})
    one = sha256()
    (tmp_path / "b.py").unlink()
    write(tmp_path, {"b/__init__.py": "2\n"})
    assert sha256() == one
    write(tmp_path, {"b/__init__.py": "3\n"})
    assert sha256() != one


@pytest.mark.usefixtures("clean_modules")
@pytest.mark.parametrize("target", ["lib/train.py:train", "lib.train:train"])
def test_what_was_read_is_what_is_imported_though_the_files_have_changed(tmp_path: Path, target: str) -> None:
    own = "beside" if ".py" in target else "lib.beside"
    write(
        tmp_path,
        {
            "lib/__init__.py": "",
            "lib/train.py": f"from {own} import value\nimport {own} as other\ncount = []\ndef train(): count.append(value); return count, __file__\n",
            "lib/beside.py": "value = 1\n",
        },
    )
    said = json.dumps(Code.read(find_target(target, tmp_path)).as_dict())
    write(tmp_path, {"lib/train.py": "def train(): return 0\n"})
    (tmp_path / "lib/beside.py").unlink()
    code = Code.told(json.loads(said))
    train, module = code.load()
    assert train() == ([1], str(tmp_path / "lib/train.py"))
    assert code.load()[1] is module
    again, _ = code.load(anew=True)
    assert again() == ([1], str(tmp_path / "lib/train.py")), "what it kept at its top level is new"
    assert "value = 1" in inspect.getsource(module.other)  # of a file that is not there any more


@pytest.mark.usefixtures("clean_modules")
def test_a_file_is_imported_once_with_what_lies_beside_it(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "mine/train.py": "from neighbour_of_train import value\ndef train(config): return value\n",
            "mine/neighbour_of_train.py": "value = 5\n",
        },
    )
    target = find_target("mine/train.py:train", tmp_path)
    function, module = load_target(target)
    assert function({}) == 5
    assert module.train is function
    assert load_target(target)[0] is function


@pytest.mark.usefixtures("clean_modules")
def test_two_files_of_one_name_are_two_modules(tmp_path: Path) -> None:
    write(tmp_path, {"a/train.py": "name = 'a'\n", "b/train.py": "name = 'b'\n", "train.py": "name = 'top'\n"})
    assert [load_target(find_target(f"{path}:name", tmp_path))[0] for path in ("a/train.py", "b/train.py", "train.py")] == ["a", "b", "top"]


@pytest.mark.usefixtures("clean_modules")
def test_a_file_that_raises_is_not_kept_half_imported(tmp_path: Path) -> None:
    write(tmp_path, {"broken_train.py": "def train(config): ...\nraise ValueError('at import')\n"})
    for _ in range(2):
        with pytest.raises(ValueError, match="at import"):
            load_target(find_target("broken_train.py:train", tmp_path))


@pytest.mark.usefixtures("clean_modules")
def test_a_module_is_imported_under_its_own_name(tmp_path: Path) -> None:
    write(tmp_path, {"some_package/__init__.py": "", "some_package/nets.py": "class Net: ...\n"})
    net, module = load_target(find_target("some_package.nets:Net", tmp_path))
    assert net.__module__ == module.__name__ == "some_package.nets"
