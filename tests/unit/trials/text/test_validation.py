"""Several validation texts: whole files with equal weight, under their own names."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from distilling import CORPUS, SETTINGS, TEACHER, Readings, student, uninterrupted
from reading_models import beginning, make_llama
from transformers import PreTrainedTokenizerFast

from search_spaces.architecture import Architecture
from search_spaces.errors import InputError
from trials.distill.distill import distill
from trials.losses.window_losses import mean_loss, validation_loss
from trials.preparation import prepare, prepare_targets, shared, teacher_windows
from trials.recipe import Recipe
from trials.storage.cache import Cache
from trials.teacher.targets import Targets
from trials.text.corpus import Corpus, ValidationText, windows
from trials.text.packing import encode
from trials.text.validation import add_validation, parse_validation
from trials.trial import TrialResult, TrialSpec, run_trial

FURTHER = np.random.default_rng(1).integers(0, 300, 16 * 7, dtype=np.uint16)
Add = Callable[..., Corpus]


@pytest.fixture
def add(tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> Add:
    def add(*further: tuple[str, str], limit: int = 10**6) -> Corpus:
        return add_validation(CORPUS, further, tiny_tokenizer, Cache(tmp_path / "cache"), limit)

    return add


@pytest.mark.parametrize(
    ("text", "names"),
    [
        (None, []),
        ("a.txt", ["a"]),
        ("a.txt, b=c/a.txt", ["a", "b"]),
        ("wikitext-2,org/name:config", ["wikitext-2", "name-config"]),
        ("./x=1/my text.txt", ["my-text"]),
    ],
)
def test_texts_are_named(text: str | None, names: list[str]) -> None:
    assert [name for name, _ in parse_validation(text)] == names


@pytest.mark.parametrize("text", ["a.txt,,b.txt", "a=", "", "a.txt,b/a.txt"])
def test_a_list_that_cannot_be_read_is_refused(text: str) -> None:
    if not text:
        assert parse_validation(text) == ()
        return
    with pytest.raises(InputError, match="--validation"):
        parse_validation(text)


def test_a_file_is_used_whole_up_to_the_limit(
    add: Add, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    texts = [f"document number {number}" for number in range(30)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    whole = [token for ids in encode(tiny_tokenizer, texts) for token in [*ids, tiny_tokenizer.eos_token_id]]
    corpus = add(("rows", str(tmp_path / "rows.jsonl")))
    assert corpus.texts["rows"].tolist() == whole
    assert add(("rows", str(tmp_path / "rows.jsonl")), limit=50).texts["rows"].tolist() == whole[:50]
    assert list(corpus.texts) == ["random", "rows"]
    assert corpus.fingerprint != CORPUS.fingerprint
    assert add() is CORPUS


def test_of_a_folder_its_validation_files_are_read_or_else_all(add: Add, tmp_path: Path) -> None:
    for name in ("train", "test"):
        (tmp_path / f"{name}.txt").write_text(name * 20)
    both = add(("t", str(tmp_path))).texts["t"]
    (tmp_path / "valid.txt").write_text("held out")
    assert len(add(("t", str(tmp_path))).texts["t"]) < len(both)


@pytest.mark.parametrize(("name", "content", "message"), [("random", "text", "is the name"), ("x", "\n", "no text")])
def test_a_text_that_will_not_do_is_refused(add: Add, tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / "x.txt").write_text(content)
    with pytest.raises(InputError, match=message):
        add((name, str(tmp_path / "x.txt")))
    with pytest.raises(InputError, match="no such file"):
        add(("y", str(tmp_path / "y.txt")))


def test_a_further_text_changes_the_loss_to_the_mean_and_the_training_not_at_all(tmp_path: Path) -> None:
    model, readings = student(), Readings()
    corpus = replace(CORPUS, further=(ValidationText("other", FURTHER, "f"),))
    result = distill(model, Targets(TEACHER), corpus, SETTINGS, tmp_path, readings)
    for (_, alone), (_, both) in zip(uninterrupted()[1], readings, strict=True):
        assert both["val_loss/random"] == alone["val_loss"]
        assert both["val_loss"] == pytest.approx((both["val_loss/random"] + both["val_loss/other"]) / 2, rel=1e-12)
        assert not [name for name in alone if name.startswith("val_loss/")]
    own = validation_loss(model, Targets(TEACHER).family, windows(FURTHER, 16))
    assert readings[-1][1]["val_loss/other"] == own
    assert mean_loss(result.window_losses) == readings[-1][1]["val_loss"]


def test_a_trial_and_its_teacher_are_measured_on_all_texts(tiny_teacher_folder: Path, tmp_path: Path) -> None:
    words = ["the", "teacher", "is", "pruned", "to", "a", "smaller", "architecture"]
    for name, count in (("text", 300), ("other", 40)):
        (tmp_path / f"{name}.txt").write_text("\n\n".join(" ".join(words[place % 7 :]) * 3 for place in range(count)))
    paths = [str(tmp_path / name) for name in ("text.txt", "other.txt")]
    recipe = Recipe(str(tiny_teacher_folder), paths[0], 320, (128, 320), 256, 16, 64, 3e-3, 8, 0, (("o", paths[1]),))
    cache = str(tmp_path / "cache")
    result = run_trial(TrialSpec(recipe, Architecture.uniform(2, 36, 3, 64), str(tmp_path / "t"), cache), lambda *_: 0)
    assert set(result.losses) == {"text.txt", "o"}
    assert result.val_loss == pytest.approx(sum(result.losses.values()) / 2, rel=1e-12)
    assert TrialResult.from_dict(json.loads(json.dumps(result.to_dict()))) == result
    found = prepare(recipe, cache, "cpu")
    assert found.teacher_loss == pytest.approx(sum(found.teacher_losses.values()) / 2, rel=1e-12)
    assert {name: one.mean() for name, one in teacher_windows(recipe, cache, "cpu").items()} == found.teacher_losses
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe
    alone = replace(recipe, validation=())
    assert "validation" not in alone.to_dict()
    assert shared(alone, cache, "cpu").fingerprint != shared(recipe, cache, "cpu").fingerprint


def test_a_text_shorter_than_a_window_is_refused(tiny_teacher_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("\n\n".join("one two three four" * 9 for _ in range(90)))
    (tmp_path / "short.txt").write_text("one")
    further = (("short", str(tmp_path / "short.txt")),)
    recipe = Recipe(str(tiny_teacher_folder), str(tmp_path / "text.txt"), 320, (320,), 256, 16, 64, 3e-3, 8, 0, further)
    with pytest.raises(InputError, match="--validation short: its text is shorter than one window of 16"):
        prepare(recipe, str(tmp_path / "cache"), "cpu")


def test_every_window_of_a_trial_begins_as_the_teacher_expects_a_text(
    tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    """Windows for training, calibration and validation, and the targets that other workers compute for them."""
    begins = beginning(tiny_tokenizer)
    make_llama().save_pretrained(tmp_path / "llama")
    begins.save_pretrained(tmp_path / "llama")
    for name in ("text", "other"):
        (tmp_path / f"{name}.txt").write_text("\n\n".join("the teacher is pruned to fit" * 9 for _ in range(90)))
    further = (("o", str(tmp_path / "other.txt")),)
    recipe = Recipe(str(tmp_path / "llama"), str(tmp_path / "text.txt"), 320, (320,), 256, 16, 64, 3e-3, 8, 0, further)
    cache = str(tmp_path / "cache")
    prepare_targets(recipe, cache, "cpu", 0, 1)
    corpus = shared(recipe, cache, "cpu").corpus
    for tokens in (corpus.train, *corpus.texts.values()):
        assert (windows(tokens, 16)[:, 0] == begins.bos_token_id).all()
    assert len(list((tmp_path / "cache" / "corpus").glob("[!.]*"))) == 1, "the targets are those of another packing"
