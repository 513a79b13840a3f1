"""What a failed task is told as."""

from __future__ import annotations

import pytest

from nas.planning.errors import AlikeFailures, classify
from search_spaces.errors import lacks_memory
from trials.distill.distill import OutOfMemory

SHORT = [
    (OutOfMemory("a training step on one window"), "OutOfMemory: a training step on one window"),
    (MemoryError("Unable to allocate 2 GiB"), "OutOfMemory: MemoryError: Unable to allocate 2 GiB"),
    (RuntimeError("could not create a primitive"), "OutOfMemory: RuntimeError: could not create a primitive"),
    (RuntimeError("CUDA out of memory."), "OutOfMemory: RuntimeError: CUDA out of memory."),
]


@pytest.mark.parametrize(("error", "reason"), SHORT)
def test_too_little_memory_has_one_name_and_is_not_tried_again(error: Exception, reason: str) -> None:
    failure = classify(error)
    assert (failure.reason, failure.retry) == (reason, False)


@pytest.mark.parametrize("error", [ValueError("shapes"), OSError(28, "No space left on device"), KeyError("memory")])
def test_other_errors_keep_their_names(error: Exception) -> None:
    assert not lacks_memory(error)
    assert classify(error).reason.startswith(type(error).__name__)
    assert classify(error).retry == isinstance(error, OSError)


def test_trials_that_run_out_of_memory_at_different_sizes_are_alike() -> None:
    alike = AlikeFailures()
    for tokens in (64, 128, 256):
        alike.failed(classify(OutOfMemory(f"a training step on one window of {tokens} tokens")).reason)
    assert alike.reason.endswith("256 tokens")
