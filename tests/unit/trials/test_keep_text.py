"""Once a search is prepared, no stage of it reads from the hub."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from search_spaces.errors import InputError
from trials.preparation import keep_text, prepare, shared
from trials.recipe import Recipe
from trials.text import corpus
from trials.text.text_source import TextSource

MORE = 640  # tokens of a final
HUB = "org/text"


class Hub:
    """A dataset that can be read while ``up``."""

    def __init__(self) -> None:
        self.up = True

    def documents(self) -> Iterator[str]:
        for number in range(100):
            if not self.up:
                raise InputError("the hub is out of reach")
            yield f"the teacher is pruned to a smaller architecture, number {number}, and distilled for a while"

    def open(self, source: str, pins: Path | None = None) -> TextSource:
        return TextSource(source, "its revision", self.documents, self.documents)


@pytest.mark.parametrize("kept", [True, False], ids=["kept", "not kept"])
def test_text_of_finals_is_there_when_the_hub_is_gone(
    kept: bool, tiny_teacher_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = Hub()
    monkeypatch.setattr(corpus, "open_source", hub.open)
    recipe = Recipe(str(tiny_teacher_folder), HUB, 320, (128, 320), 256, 16, 64, 3e-3, 8, 0)
    prepare(recipe, str(tmp_path), "cpu")
    if kept:
        keep_text(recipe, str(tmp_path), "cpu", MORE)
    hub.up = False
    if not kept:
        with pytest.raises(InputError, match="out of reach"):
            shared(recipe, str(tmp_path), "cpu", MORE)
        return
    assert len(shared(recipe, str(tmp_path), "cpu", MORE).corpus.train) == 320 + MORE


def test_text_on_this_machine_is_not_read_twice(tiny_teacher_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("\n\n".join("one two three four" * 9 for _ in range(90)))
    recipe = Recipe(str(tiny_teacher_folder), str(tmp_path / "text.txt"), 320, (320,), 256, 16, 64, 3e-3, 8, 0)
    keep_text(recipe, str(tmp_path / "cache"), "cpu", MORE)
    assert not (tmp_path / "cache").exists()
