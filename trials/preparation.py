"""Loads or computes what all trials of a study share: teacher, text, importance scores, streams and targets."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from search_spaces.errors import InputError
from search_spaces.shape import ModelShape
from trials.families.lookup import family_of
from trials.losses.precision import training_precision
from trials.losses.window_losses import WindowLosses, mean_loss, text_losses, window_losses
from trials.prune.importance import ImportanceScores, load_importance
from trials.recipe import Recipe
from trials.storage.cache import Cache, digest
from trials.teacher.source import resolve_model
from trials.teacher.streams import Streams, load_streams
from trials.teacher.targets import Targets, Way, compute_share, load_targets
from trials.teacher.teacher import Teacher, load_teacher
from trials.text.corpus import Corpus, load_corpus, windows
from trials.text.mixture import parse_mixture
from trials.text.sources import is_on_the_hub
from trials.text.validation import add_validation

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Preparation:
    """Results of the preparation before the first trial.

    ``teacher_loss`` is the teacher's validation loss in nats per token, averaged over ``teacher_losses`` if there are
    several texts. ``importance_key`` is a digest of the importance scores; ``importance_cached`` says whether they
    came from the cache. ``seconds`` is the time that the preparation took. ``arithmetic`` is the number format of
    matrix products and the kind of device where the teacher was prepared, such as "bfloat16 on cuda".
    """

    shape: ModelShape
    fingerprint: str
    teacher_loss: float
    corpus: str
    corpus_fingerprint: str
    importance_key: str
    importance_cached: bool
    seconds: float
    teacher_losses: Mapping[str, float] = field(default_factory=dict)
    arithmetic: str = ""

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return asdict(self)

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Preparation:
        """The inverse of `to_dict`."""
        return cls(**{**value, "shape": ModelShape(**value["shape"])})


@dataclass(frozen=True)
class Shared:
    """What all trials of a study share, loaded in this process.

    ``calibration`` (n, T) are the windows of the scores. ``scores_cached`` says whether the scores came from the cache.
    Trials use the ``first`` windows of the training text; the others are for finals.
    """

    teacher: Teacher
    corpus: Corpus
    targets: Targets
    scores: ImportanceScores
    calibration: NDArray[np.integer]
    cache: Cache
    scores_cached: bool
    first: int

    @cached_property
    def streams(self) -> Streams:
        """The teacher's streams on the calibration text. A study without a refit needs none."""
        return load_streams(self.teacher, self.calibration, self.cache)

    @property
    def fingerprint(self) -> str:
        """A digest of the teacher, the text and the scores."""
        return digest(self.teacher.fingerprint, self.corpus.fingerprint, self.scores_key)

    @property
    def scores_key(self) -> str:
        """A digest of the scores."""
        return self.scores.key


def prepare(recipe: Recipe, cache: str, device: str) -> Preparation:
    """Load or compute everything that the trials of ``recipe`` share, and the teacher's validation loss.

    ``cache`` is the folder of the shared cache. Raises InputError when the model or the corpus cannot be used.
    """
    started = time.perf_counter()
    common = shared(recipe, cache, device)
    if recipe.refit:
        _ = common.streams  # from now on in the cache, for all trials
    losses = teacher_windows(recipe, cache, device)
    return Preparation(
        shape=common.teacher.shape,
        fingerprint=common.teacher.fingerprint,
        teacher_loss=mean_loss(losses),
        corpus=common.corpus.description,
        corpus_fingerprint=common.corpus.fingerprint,
        importance_key=common.scores_key,
        importance_cached=common.scores_cached,
        seconds=time.perf_counter() - started,
        teacher_losses=text_losses(losses),
        arithmetic=f"{str(training_precision(device)[0]).removeprefix('torch.')} on {device}",
    )


def keep_text(recipe: Recipe, cache: str, device: str, more: int) -> None:
    """Bring text of the hub into the cache as far as trainings on ``more`` tokens than the trials' read it.

    After this, no stage of a search needs the hub. Text on this machine is left to those who read it.
    """
    if any(is_on_the_hub(part.source) for part in parse_mixture(recipe.corpus)):
        teacher, store, length = (
            _teacher(resolve_model(recipe.model), device),
            Cache(Path(cache)),
            recipe.sequence_length,
        )
        _corpus(teacher, recipe.corpus, recipe.text_tokens + more, recipe.validation_tokens, length, store)


def prepare_targets(recipe: Recipe, cache: str, device: str, place: int, shares: int) -> None:
    """Compute share number ``place`` of ``shares`` of the teacher's targets, which a `prepare` elsewhere will use."""
    teacher, store, length = _teacher(resolve_model(recipe.model), device), Cache(Path(cache)), recipe.sequence_length
    corpus = _corpus(teacher, recipe.corpus, recipe.text_tokens, recipe.validation_tokens, length, store)
    compute_share(teacher, corpus, length, store, recipe.targets_for(recipe.tokens), place, shares)


def teacher_windows(recipe: Recipe, cache: str, device: str) -> WindowLosses:
    """The teacher's loss on every validation window, by the name of the text; from the cache or measured now."""
    common = shared(recipe, cache, device)
    texts = {name: windows(tokens, recipe.sequence_length) for name, tokens in common.corpus.texts.items()}
    return {name: _teacher_losses(common.teacher, text, Cache(Path(cache))) for name, text in texts.items()}


def shared(recipe: Recipe, cache: str, device: str, more: int = 0) -> Shared:
    """Teacher, corpus, targets and scores of ``recipe``. This process keeps them for later trials.

    The corpus has up to ``more`` further tokens of training text, behind those of the trials.
    """
    return _shared(
        resolve_model(recipe.model),
        recipe.corpus,
        recipe.text_tokens,
        more,
        recipe.validation_tokens,
        recipe.validation,
        recipe.sequence_length,
        recipe.calibration_samples,
        recipe.targets_for(recipe.tokens + more),
        Path(cache),
        device,
    )


@lru_cache(maxsize=2)
def _shared(
    model: Path,
    source: str,
    train_tokens: int,
    more: int,
    validation_tokens: int,
    further: tuple[tuple[str, str], ...],
    length: int,
    samples: int,
    teacher_targets: Way | None,
    root: Path,
    device: str,
) -> Shared:
    cache, teacher = Cache(root), _teacher(model, device)
    corpus = _corpus(teacher, source, train_tokens + more, validation_tokens, length, cache)
    corpus = add_validation(corpus, further, teacher.tokenizer, cache, validation_tokens, length)
    for name, tokens in corpus.texts.items():
        if len(tokens) < length:
            raise InputError(
                f"--validation {name}: its text is shorter than one window of {length} tokens; give more text or a "
                "smaller --sequence-length"
            )
    calibration = windows(corpus.train, length)[:samples]
    scores, cached = load_importance(teacher, calibration, cache)
    first = min(train_tokens, len(corpus.train)) // length
    targets = load_targets(teacher, corpus, length, cache, first, teacher_targets)
    return Shared(teacher, corpus, targets, scores, calibration, cache, cached, first)


def _corpus(
    teacher: Teacher, source: str, train_tokens: int, validation_tokens: int, length: int, cache: Cache
) -> Corpus:
    if length > teacher.shape.positions:
        raise InputError(
            f"sequence length {length}: the teacher reads at most {teacher.shape.positions} tokens; give a smaller "
            "--sequence-length"
        )
    corpus = load_corpus(source, teacher.tokenizer, cache, train_tokens, validation_tokens, length)
    for side in ("train", "validation"):
        if len(getattr(corpus, side)) < length:
            raise InputError(
                f"corpus {source}: its {side} text is shorter than one window of {length} tokens; give more text or a "
                "smaller --sequence-length"
            )
    return corpus


@lru_cache(maxsize=1)
def _teacher(model: Path, device: str) -> Teacher:
    return load_teacher(model, device)


def _teacher_losses(teacher: Teacher, text: NDArray[np.integer], cache: Cache) -> NDArray[np.float64]:
    model = teacher.model

    def write(folder: Path) -> None:
        log.info("measuring the teacher's loss on %s validation tokens", f"{text.size:,}")
        np.save(folder / "losses.npy", window_losses(model, family_of(model.config), text))

    key = digest(teacher.fingerprint, str(model.dtype), text.shape[1], _content(text))
    losses: NDArray[np.float64] = np.load(cache.build("teacher_losses", key, write) / "losses.npy")
    return losses


def _content(tokens: NDArray[np.integer]) -> bytes:
    return np.ascontiguousarray(tokens).tobytes()
