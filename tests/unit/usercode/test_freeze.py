from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from raysweep.usercode.freeze import CODE_FILE, FOLDER_ENV, Code, load_target, write_for_processes
from raysweep.usercode.target import SCRIPTS_DIR, find_target
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
def test_a_loss_function_elsewhere_is_frozen_with_the_model(tmp_path: Path) -> None:
    write_files(tmp_path, {"net.py": "class Net: pass\n", "lib/losses.py": "from factor_of_loss import two\ndef loss(o, t): return two\n"})
    write_files(tmp_path, {"lib/factor_of_loss.py": "two = 2\n"})
    model = Code.read(find_target("net.py:Net", tmp_path))
    both = Code.read(find_target("net.py:Net", tmp_path), find_target("lib/losses.py:loss", tmp_path))
    text = json.dumps(both.to_json())
    write_files(tmp_path, {"lib/losses.py": "1 / 0\n", "lib/factor_of_loss.py": "two = 3\n"})
    code = Code.from_json(json.loads(text))
    loss = code.load_loss()
    assert loss is not None
    assert loss(0, 0) == 2
    assert code.load()[0].__name__ == "Net"
    assert (model.load_loss(), model.sha256() == both.sha256()) == (None, False)


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


@pytest.mark.usefixtures("clean_modules")
@pytest.mark.parametrize("name", ["json", "my-train", "taken"])
def test_a_file_whose_name_belongs_to_another_module_is_a_module_of_its_own(tmp_path: Path, name: str) -> None:
    sys.modules["taken"] = ModuleType("taken")
    write_files(
        tmp_path, {f"{name}.py": "import json\ndef train(): return json.dumps(1)\n" if name != "json" else "def train(): return '1'\n"}
    )
    train, module = Code.read(find_target(f"{name}.py:train", tmp_path)).load()
    assert train() == "1"
    assert module.__name__.startswith("raysweep_user_")
    assert json.loads("1") == 1


# A trial that gives objects of its own classes to other processes, by each way of Python to start a process.
PROGRAM = """
import concurrent.futures, multiprocessing, pathlib, pickle, subprocess, sys
import beside
class Weights:
    def __init__(self): self.value = beside.value
def read(weights): return weights.value, __file__, beside.__file__
def train(folder):
    found = {}
    for method in ("spawn", "forkserver"):
        with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context(method)) as pool:
            found[method] = pool.submit(read, Weights()).result()
    path = pathlib.Path(folder, "weights.pkl")
    path.write_bytes(pickle.dumps(Weights()))
    code = "import pickle, sys; w = pickle.load(open(sys.argv[1], 'rb')); print(*sys.modules[type(w).__module__].read(w), sep='|')"
    out = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True, cwd=folder).stdout.strip().split("|")
    found["subprocess"] = (int(out[0]), *out[1:])
    return found
"""


@pytest.mark.parametrize("target", ["net/train.py:train", "net.train:train"])
def test_each_process_that_a_trial_starts_imports_what_was_read(tmp_path: Path, target: str) -> None:
    program = PROGRAM if ".py" in target else PROGRAM.replace("import beside", "from net import beside")
    write_files(tmp_path, {"net/train.py": program, "net/beside.py": "value = 1\n"})
    code = Code.read(find_target(target, tmp_path))
    write_files(tmp_path, {"net/train.py": "edited = True\n", "net/beside.py": "value = 2\n"})
    folder = tmp_path / "a node's folder"
    write_for_processes(code, folder)
    trial = f"""
from raysweep.usercode.freeze import Code
import json, sys
if __name__ == "__main__":
    train, _ = Code.from_json(json.load(open({str(folder / CODE_FILE)!r}))).load()
    print(json.dumps(train({str(tmp_path)!r})))
"""
    environment = os.environ | {"PYTHONPATH": f"{SCRIPTS_DIR}{os.pathsep}{folder}", FOLDER_ENV: str(folder)}
    (tmp_path / "trial.py").write_text(trial)
    run = subprocess.run([sys.executable, tmp_path / "trial.py"], env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    as_read = [1, str(tmp_path / "net/train.py"), str(tmp_path / "net/beside.py")]
    assert json.loads(run.stdout) == {"spawn": as_read, "forkserver": as_read, "subprocess": as_read}


def test_a_process_without_the_variable_imports_as_usual(tmp_path: Path) -> None:
    write_files(tmp_path, {"helper.py": "value = 1\n"})
    write_for_processes(Code.read(find_target("helper.py:value", tmp_path)), tmp_path / "code")
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": f"{SCRIPTS_DIR}{os.pathsep}{tmp_path / 'code'}"}
    code = "import sys; print('raysweep' in sys.modules, any(type(f).__name__ == '_FrozenFinder' for f in sys.meta_path))"
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["False", "False"]
