"""The losses of students that are whole layers of the teacher: many are measured together, and trials read them."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from search_spaces.architecture import Architecture
from trials.families.lookup import family_of
from trials.losses.window_losses import WindowLosses
from trials.preparation import Shared, shared
from trials.prune.prune import prune
from trials.prune.subset_losses import subset_losses
from trials.recipe import Recipe
from trials.storage.cache import Cache, digest
from trials.text.corpus import windows

KIND, FILE = "slice_losses", "losses.npy"


class SlicesSpec(NamedTuple):
    """What to measure: slices that keep the layers of each of ``subsets``, in the study of ``recipe``."""

    recipe: Recipe
    cache: str
    device: str
    subsets: tuple[tuple[int, ...], ...]


def measure_slices(spec: SlicesSpec) -> int:
    """Measure the window losses of all slices of ``spec`` that are not in the cache; returns how many.

    Slices that begin with the same layers share their computation (`trials.prune.subset_losses`). The losses are those
    that the trial of such a slice would measure for itself.
    """
    common = shared(spec.recipe, spec.cache, spec.device)
    missing: set[tuple[int, ...]] = set()
    for text in _texts(common, spec.recipe).values():
        asked = [one for one in spec.subsets if not common.cache.has(KIND, _key(common, text, one))]
        missing.update(asked)
        if asked:
            _measure(common, text, asked)
    return len(missing)


def _measure(common: Shared, text: NDArray[np.integer], subsets: list[tuple[int, ...]]) -> None:
    whole = prune(common.teacher.model, common.scores, common.teacher.shape.full).float()  # the dtype of students
    for subset, losses in subset_losses(whole, family_of(whole.config), text, subsets).items():

        def write(folder: Path, losses: NDArray[np.float64] = losses) -> None:
            np.save(folder / FILE, losses)

        common.cache.build(KIND, _key(common, text, subset), write)


def slice_losses(common: Shared, recipe: Recipe, architecture: Architecture) -> WindowLosses | None:
    """The losses of the student of ``architecture`` that `measure_slices` has left in the cache.

    None when it has not, for a student that is more than a slice of whole layers, and in a study that trains.
    """
    other = recipe.refit or recipe.tokens or architecture.compression
    layers = None if other else common.teacher.shape.whole_layers(architecture)
    if layers is None:
        return None
    keys = {name: _key(common, text, layers) for name, text in _texts(common, recipe).items()}
    if not all(common.cache.has(KIND, key) for key in keys.values()):
        return None
    return {name: np.load(_folder(common.cache, key) / FILE) for name, key in keys.items()}


def _folder(cache: Cache, key: str) -> Path:
    return cache.root / KIND / key


def _texts(common: Shared, recipe: Recipe) -> dict[str, NDArray[np.integer]]:
    return {name: windows(text, recipe.sequence_length) for name, text in common.corpus.texts.items()}


def _key(common: Shared, text: NDArray[np.integer], layers: tuple[int, ...]) -> str:
    content = np.ascontiguousarray(text).tobytes()
    return digest(common.teacher.fingerprint, common.teacher.model.device.type, *text.shape, content, *layers)
