"""Everything that decides what stays is read from training text: held-out text is for judging alone."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np

from trials.preparation import Shared, shared
from trials.recipe import Recipe

SENTENCE = "the teacher is pruned to a smaller architecture and distilled for a short while"


def corpus(folder: Path, train: int, valid: int) -> Path:
    """A folder with a training and a validation file, each drawn by its seed."""
    folder.mkdir()
    for name, seed in (("train", train), ("valid", valid)):
        source = random.Random(seed)
        paragraphs = (" ".join(source.choices(SENTENCE.split(), k=60)) for _ in range(40))
        (folder / f"{name}.txt").write_text("\n\n".join(paragraphs))
    return folder


def prepared(teacher: Path, folder: Path, cache: Path) -> Shared:
    recipe = Recipe(str(teacher), str(folder), 64, (64,), 128, 16, 64, 3e-3, 8, 0)
    return shared(recipe, str(cache), "cpu")


def test_orders_scores_and_streams_follow_from_training_text_alone(tiny_teacher_folder: Path, tmp_path: Path) -> None:
    one, held_out, train = (
        prepared(tiny_teacher_folder, corpus(tmp_path / name, *seeds), tmp_path / f"cache of {name}")
        for name, seeds in (("one", (0, 1)), ("held out", (0, 2)), ("train", (3, 1)))
    )
    assert not np.array_equal(one.corpus.validation, held_out.corpus.validation)
    assert one.scores_key == held_out.scores_key != train.scores_key
    assert np.array_equal(one.streams.windows, held_out.streams.windows)
    assert np.array_equal(one.corpus.validation, train.corpus.validation)
