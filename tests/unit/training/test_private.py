"""Names and texts of PyTorch without a promise: each of private.py is still what that module takes it for."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path

import pytest
import torch
import torch._inductor.config
from torch.func import vmap

from raysweep.training import private


@pytest.mark.parametrize("option", [*private.COMPILER_OPTIONS, private.THREADS_OPTION])
def test_torch_compile_knows_the_option(option: str) -> None:
    torch.compile(lambda x: x, options={option: private.compiler_options(threads=2)[option]})  # an unknown option raises RuntimeError


def test_an_option_that_inductor_does_not_know_is_refused() -> None:
    with pytest.raises(RuntimeError, match="Unexpected optimization option"):
        torch.compile(lambda x: x, options={"no_such_option": True})


def test_get_cpp_compiler_and_invalid_cxx_compiler_say_whether_there_is_a_compiler(tmp_path: Path) -> None:
    from torch._inductor import config, cpp_builder

    inspect.signature(cpp_builder.get_cpp_compiler).bind()  # PyTorch 2.15 added an optional parameter
    compiler = tmp_path / "some-c++"
    compiler.write_text("#!/bin/sh\necho 'some-c++ 14.2'\n")
    compiler.chmod(0o755)
    for path, is_there in ((compiler, True), (tmp_path / "none", False)):
        with config.patch({"cpp.cxx": (str(path),)}):  # monkeypatch would leave the setting deleted for the tests that follow
            assert private.cpp_compiler() == (str(path) if is_there else None)


def test_vmap_words_the_error_of_data_dependent_control_flow_as_before() -> None:
    with pytest.raises(RuntimeError) as caught:
        vmap(lambda x: x if x > 0 else -x)(torch.ones(2))
    assert private.is_data_dependent(caught.value)
    assert not private.is_data_dependent(RuntimeError("another"))


def test_torch_compile_puts_the_name_of_the_backend_before_the_error_of_the_compiler() -> None:
    from torch._dynamo.exc import BackendCompilerFailed

    def inductor() -> None: ...

    others = [None] * (len(inspect.signature(BackendCompilerFailed).parameters) - 2)  # PyTorch 2.6 has no third parameter
    error = BackendCompilerFailed(inductor, ValueError("no\nmore"), *others)
    assert str(error).splitlines()[0].endswith(private.BACKEND_PREFIX_ENDING)
    assert private.compiler_error(error) == "ValueError: no"
    assert private.compiler_error(ValueError()) == "ValueError"


@pytest.mark.parametrize("kind", [torch.nn.BatchNorm1d, torch.nn.BatchNorm3d, torch.nn.SyncBatchNorm, torch.nn.LazyBatchNorm2d])
def test_layers_of_batch_normalisation_have_one_base(kind: type[torch.nn.Module]) -> None:
    assert issubclass(kind, private.BatchNormBase)
    assert not issubclass(torch.nn.InstanceNorm1d, private.BatchNormBase)


def test_batch_normalisation_words_its_refusal_of_one_row_as_before() -> None:
    with pytest.raises(ValueError, match=private.ONE_VALUE) as caught:
        torch.nn.BatchNorm1d(3)(torch.ones(1, 3))
    assert private.is_refused_by_batch_norm(caught.value)
    assert not private.is_refused_by_batch_norm(ValueError("another"))


def test_inductor_names_a_compiled_file_without_the_path_of_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor import codecache

    monkeypatch.setenv(private.COMPILER_DIR_ENV, str(tmp_path))
    monkeypatch.setattr(codecache, "write", inspect.unwrap(codecache.write))  # an earlier test of this process may have replaced it
    private.ignore_path_of_environment.cache_clear()
    before = codecache.write("int x;", "cpp", extra=f"g++ -I{sys.prefix}/include")
    private.ignore_path_of_environment()
    private.ignore_path_of_environment()
    after = codecache.write("int x;", "cpp", extra=f"g++ -I{sys.prefix}/include")
    assert after == codecache.write("int x;", "cpp", extra="g++ -I/include") != before
    assert codecache.write("int x;", "cpp", extra="g++ -O2") != after
    assert Path(after[1]).is_relative_to(tmp_path)
    private.ignore_path_of_environment.cache_clear()


@pytest.mark.skipif(not hasattr(torch._inductor.config, private.HEADERS_OPTION), reason="PyTorch 2.6 compiles no headers in advance")
def test_no_headers_are_compiled_in_advance() -> None:
    assert private.compiler_options(threads=2)[private.HEADERS_OPTION] is False
    torch.compile(lambda x: x, options={private.HEADERS_OPTION: False})  # an unknown option raises RuntimeError
