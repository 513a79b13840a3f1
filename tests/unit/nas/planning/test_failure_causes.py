"""Retries are decided by the cause: what the surroundings do may pass, what a trial does would come again."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from filelock import Timeout

from nas.planning.errors import classify, explained, full_disk_named
from search_spaces.errors import InputError

FULL = [
    OSError(errno.ENOSPC, "No space left on device", "/x/y"),
    OSError(errno.EDQUOT, "Disk quota exceeded"),
    RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
    RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 23040 vs 22932"),
    OSError("4096 requested and 1000 written"),
]


@pytest.mark.parametrize("error", FULL)
def test_a_full_disk_in_any_words_is_tried_again(error: Exception, tmp_path: Path) -> None:
    failure = classify(explained(error, str(tmp_path)))
    assert failure.retry
    assert "bytes free; free some" in failure.reason


@pytest.mark.parametrize("error", [Timeout("lease"), ConnectionError("gone"), OSError(errno.ESTALE, "stale handle")])
def test_what_may_pass_is_tried_again(error: Exception) -> None:
    assert classify(error).retry


@pytest.mark.parametrize("error", [ValueError("nan"), RuntimeError("shape"), MemoryError(), InputError("wrong")])
def test_what_would_come_again_is_not(error: Exception) -> None:
    assert not classify(error).retry


@pytest.mark.parametrize("error", FULL)
@pytest.mark.parametrize("wrapped", [False, True])
def test_a_full_disk_in_the_driver_is_one_line_with_what_is_needed(
    error: Exception, wrapped: bool, tmp_path: Path
) -> None:
    def fail() -> None:
        if not wrapped:
            raise error
        try:
            raise error
        except Exception as cause:
            raise RuntimeError("a guess of somebody else") from cause

    told = pytest.raises(InputError, match=r"bytes free; free some; this needs 3 GB$")
    with told as caught, full_disk_named(tmp_path, after="this needs 3 GB"):
        fail()
    assert "a guess" not in str(caught.value)


def test_other_errors_of_the_driver_stay_as_they_are(tmp_path: Path) -> None:
    for error in (ValueError("nan"), InputError("wrong")):
        with pytest.raises(type(error)) as told, full_disk_named(tmp_path, after="3 GB"):
            raise error
        assert told.value is error
