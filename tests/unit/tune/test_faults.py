from __future__ import annotations

import errno
import os
import shutil

import pytest

from raysweep.tune.faults import FirstFault, full_disk_in


def test_the_first_fault_is_kept_and_nothing_is_done_after_it() -> None:
    faults, done = FirstFault(), []

    def fail() -> None:
        raise ValueError("first")

    faults.note(None)
    faults.guard(lambda: done.append(1))
    faults.guard(fail)
    faults.guard(lambda: done.append(2))
    faults.note(ValueError("second"))
    assert done == [1]
    assert str(faults.fault) == "first"


def raised_from(cause: BaseException, text: str) -> RuntimeError:
    try:
        raise RuntimeError(text) from cause
    except RuntimeError as error:
        return error


def raised_during(cause: BaseException, text: str) -> RuntimeError:
    try:
        try:
            raise cause
        except BaseException:
            raise RuntimeError(text)  # noqa: B904
    except RuntimeError as error:
        return error


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_seen_through_the_errors_that_it_caused(number: int) -> None:
    cause = OSError(number, os.strerror(number), "/state/file")
    assert full_disk_in(cause) is cause
    assert full_disk_in(raised_from(raised_during(cause, "snapshot"), "TuneError")) is cause


def test_an_error_of_shutil_has_a_text_and_no_number() -> None:
    cause = shutil.Error([("a", "b", "[Errno 28] No space left on device: 'b'")])
    assert full_disk_in(raised_during(cause, "copy")) is cause


def test_another_fault_is_no_full_disk() -> None:
    assert full_disk_in(raised_from(OSError(errno.ESTALE, "Stale file handle"), "TuneError")) is None
    assert full_disk_in(RuntimeError("No space left on device, says a trial")) is None
