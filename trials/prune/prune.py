"""Prunes the teacher to an architecture: keeps the most important parts in order and refits them."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from search_spaces.architecture import Architecture
from trials.families.base import Kept
from trials.families.lookup import family_of
from trials.families.shapes import LayerSettings, settings_of, shape_of
from trials.prune.importance import ImportanceScores
from trials.prune.refit import refit
from trials.prune.rotate import rotated, rotation_to
from trials.teacher.streams import Streams


@torch.no_grad()
def prune(
    teacher: PreTrainedModel, scores: ImportanceScores, architecture: Architecture, streams: Streams | None = None
) -> PreTrainedModel:
    """A student of ``architecture`` cut from ``teacher``. The two share no memory.

    Layers, hidden channels (one choice for the whole network), heads and MLP neurons with the highest ``scores`` stay;
    the earlier of equal ones stays. Layers that ``architecture`` names stay whatever their scores are.

    Without ``streams``, all weights are slices of the teacher's. With ``streams``, the principal components of the
    stream stay instead of its channels (`trials.prune.rotate`), and the output projections are refitted
    (`trials.prune.refit`). An ``architecture`` equal to the teacher's is a plain copy. Weights are not compressed here.

    Dtype and device are the teacher's. The student is in eval mode and its parameters require gradients.

    Raises InputError when ``architecture`` exceeds the teacher.
    """
    family, architecture = family_of(teacher.config), architecture.plain
    shape = shape_of(teacher.config)
    shape.check(architecture)
    if streams is None or architecture == shape.full:
        kept = choose(scores, architecture, shape.group, teacher.device)
        settings = settings_of(teacher.config, kept.layers.tolist())
        student = student_from(teacher.config, architecture, family.cut(teacher, kept), settings)
    else:
        student = _refitted(teacher, scores, architecture, streams)
    student.generation_config = copy.deepcopy(teacher.generation_config)
    return student


def _refitted(
    teacher: PreTrainedModel, scores: ImportanceScores, architecture: Architecture, streams: Streams
) -> PreTrainedModel:
    family = family_of(teacher.config)
    shape = shape_of(teacher.config)
    wide = replace(architecture, hidden=shape.hidden)
    kept, rotation = choose(scores, wide, shape.group, teacher.device), None
    settings = settings_of(teacher.config, kept.layers.tolist())
    student = student_from(teacher.config, wide, family.cut(teacher, kept), settings)
    if wide != architecture:
        rotation = rotation_to(student, family, streams.directions, architecture.hidden)
        student = student_from(teacher.config, architecture, rotated(student, family, rotation), settings)
    refit(student, family, kept.layers.tolist(), streams, rotation)
    return student


def student_from(
    config: PretrainedConfig,
    architecture: Architecture,
    state: Mapping[str, Tensor],
    settings: LayerSettings | None = None,
) -> PreTrainedModel:
    """A student in eval mode whose parameters are the tensors of ``state`` themselves, not copies.

    ``config`` is the teacher's. ``state`` maps parameter names to tensors, as from `Family.cut` or a safetensors file;
    tied weights may occur once or twice. ``settings`` are as in `Family.build`.

    Raises ValueError when a tensor is missing, unknown or of another size.
    """
    student = family_of(config).build(config, architecture, settings)
    try:
        missing, unknown = student.load_state_dict(dict(state), strict=False, assign=True)
    except RuntimeError as error:
        raise ValueError(f"weights do not fit architecture {architecture.key}: {error}") from error
    student.tie_weights(missing_keys=set(missing))
    tensors = [*student.named_parameters(), *student.named_buffers()]
    if empty := [name for name, tensor in tensors if tensor.is_meta]:
        raise ValueError(f"weights for architecture {architecture.key} lack {empty[0]}")
    if unknown:
        raise ValueError(f"weights for architecture {architecture.key} have an unknown tensor {unknown[0]}")
    student.config.dtype = student.dtype
    return student.to(student.device).eval()  # moves the buffers to the device of the weights


def choose(
    scores: ImportanceScores, architecture: Architecture, group: int = 1, device: torch.device | None = None
) -> Kept:
    """The parts with the highest scores on each axis, as ascending indices on ``device``.

    ``group`` heads of the teacher share one key/value head. `_best_groups` chooses among them.
    """
    named = np.array(architecture.kept_layers, np.int64)
    layers = named if len(named) else _top(scores.layers, architecture.depth)
    sizes = zip(layers.tolist(), architecture.heads, architecture.kv_heads, strict=True)
    chosen = [_best_groups(scores.heads[layer].reshape(-1, group), kv, heads // kv) for layer, heads, kv in sizes]
    mlp = (_top(scores.mlp[layer], size) for layer, size in zip(layers.tolist(), architecture.mlp, strict=True))

    def tensors(parts: Iterable[NDArray[np.int64]]) -> tuple[Tensor, ...]:
        return tuple(torch.from_numpy(part).to(device) for part in parts)

    kept_layers, hidden = tensors([layers, _top(scores.hidden, architecture.hidden)])
    heads, kv_heads = (tensors(pair[place] for pair in chosen) for place in (0, 1))
    return Kept(kept_layers, hidden, heads, kv_heads, tensors(mlp))


def _top(values: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """The indices of the ``count`` highest of ``values`` (n,), ascending; the earlier of equal ones."""
    return np.sort(np.argsort(-values, kind="stable")[:count])


def _best_groups(
    scores: NDArray[np.float32], kv_heads: int, members: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The heads and key/value heads that stay, from ``scores`` (kv_heads, group).

    ``kv_heads`` groups stay, each with ``members`` heads. The choice has the highest sum of scores: the best members
    of each group, and the groups whose best members have the highest sum.
    """
    best = np.stack([_top(one, members) for one in scores])
    groups = _top(np.take_along_axis(scores, best, axis=1).sum(axis=1), kv_heads)
    heads = (groups[:, None] * scores.shape[1] + best[groups]).ravel()
    return heads, groups
