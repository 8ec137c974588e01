from __future__ import annotations

import inspect
import json
import sys
from pathlib import Path

import pytest

from raysweep.usercode.freeze import Code, load_target
from raysweep.usercode.target import find_target
from user_files import write_files


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

    write_files(tmp_path, {"a.py": "x = 1\nimport b\n", "b.py": "2\n"})
    one = sha256()
    (tmp_path / "b.py").unlink()
    write_files(tmp_path, {"b/__init__.py": "2\n"})
    assert sha256() == one
    write_files(tmp_path, {"b/__init__.py": "3\n"})
    assert sha256() != one


@pytest.mark.usefixtures("clean_modules")
@pytest.mark.parametrize("target", ["lib/train.py:train", "lib.train:train"])
def test_what_was_read_is_what_is_imported_though_the_files_have_changed(tmp_path: Path, target: str) -> None:
    own = "beside" if ".py" in target else "lib.beside"
    write_files(
        tmp_path,
        {
            "lib/__init__.py": "",
            "lib/train.py": f"from {own} import value\nimport {own} as other\ncount = []\ndef train(): count.append(value); return count, __file__\n",
            "lib/beside.py": "value = 1\n",
        },
    )
    text = json.dumps(Code.read(find_target(target, tmp_path)).to_json())
    write_files(tmp_path, {"lib/train.py": "def train(): return 0\n"})
    (tmp_path / "lib/beside.py").unlink()
    code = Code.from_json(json.loads(text))
    train, module = code.load()
    assert train() == ([1], str(tmp_path / "lib/train.py"))
    assert code.load()[1] is module
    again, _ = code.load(anew=True)
    assert again() == ([1], str(tmp_path / "lib/train.py")), "what it kept at its top level is new"
    assert "value = 1" in inspect.getsource(module.other)  # of a file that is not there any more


@pytest.mark.usefixtures("clean_modules")
def test_a_file_is_imported_once_with_what_lies_beside_it(tmp_path: Path) -> None:
    write_files(
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
    write_files(tmp_path, {"a/train.py": "name = 'a'\n", "b/train.py": "name = 'b'\n", "train.py": "name = 'top'\n"})
    assert [load_target(find_target(f"{path}:name", tmp_path))[0] for path in ("a/train.py", "b/train.py", "train.py")] == ["a", "b", "top"]


@pytest.mark.usefixtures("clean_modules")
def test_a_file_that_raises_is_not_kept_half_imported(tmp_path: Path) -> None:
    write_files(tmp_path, {"broken_train.py": "def train(config): ...\nraise ValueError('at import')\n"})
    for _ in range(2):
        with pytest.raises(ValueError, match="at import"):
            load_target(find_target("broken_train.py:train", tmp_path))


@pytest.mark.usefixtures("clean_modules")
def test_a_module_is_imported_under_its_own_name(tmp_path: Path) -> None:
    write_files(tmp_path, {"some_package/__init__.py": "", "some_package/nets.py": "class Net: ...\n"})
    net, module = load_target(find_target("some_package.nets:Net", tmp_path))
    assert net.__module__ == module.__name__ == "some_package.nets"
