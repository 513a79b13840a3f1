"""The teacher cut down to an architecture: the most important parts stay, in order, and make up for the others."""

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
from trials.families.shapes import shape_of
from trials.prune.importance import ImportanceScores
from trials.prune.refit import refit
from trials.prune.rotate import rotated, rotation_to
from trials.teacher.streams import Streams


@torch.no_grad()
def prune(
    teacher: PreTrainedModel, scores: ImportanceScores, architecture: Architecture, streams: Streams | None = None
) -> PreTrainedModel:
    """A student of ``architecture`` made of slices of ``teacher``, which shares no memory with it.

    Layers, hidden channels (one choice for the whole network), heads and MLP neurons stay by their ``scores``;
    of equal ones the earlier stays. Without ``streams`` all weights are the teacher's own. With them, and unless
    nothing is cut, the principal components of the stream stay instead of its channels (`trials.prune.rotate`), and the
    output projections are fitted to it (`trials.prune.refit`). Dtype and device are the teacher's. The student is in eval
    mode and its parameters want gradients.

    Raises InputError when ``architecture`` exceeds the teacher.
    """
    family = family_of(teacher.config)
    shape = shape_of(teacher.config)
    shape.check(architecture)
    if streams is None or architecture == shape.full:
        kept = choose(scores, architecture, shape.group, teacher.device)
        student = student_from(teacher.config, architecture, family.cut(teacher, kept))
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
    student = student_from(teacher.config, wide, family.cut(teacher, kept))
    if wide != architecture:
        rotation = rotation_to(student, family, streams.directions, architecture.hidden)
        student = student_from(teacher.config, architecture, rotated(student, family, rotation))
    refit(student, family, kept.layers.tolist(), streams, rotation)
    return student


def student_from(config: PretrainedConfig, architecture: Architecture, state: Mapping[str, Tensor]) -> PreTrainedModel:
    """A student in eval mode whose parameters are the tensors of ``state`` themselves, not copies.

    ``config`` is the teacher's; ``state`` is by parameter name, as `Family.cut` or a safetensors file gives it:
    tied weights once or twice. Raises ValueError when a tensor is missing, unknown or of another size.
    """
    student = family_of(config).build(config, architecture)
    try:
        missing, unknown = student.load_state_dict(dict(state), strict=False, assign=True)
    except RuntimeError as error:
        raise ValueError(f"weights do not fit architecture {architecture.key}: {error}") from error
    student.tie_weights(missing_keys=set(missing))
    tensors = [*student.named_parameters(), *student.named_buffers()]
    if empty := [name for name, tensor in tensors if tensor.is_meta]:
        raise ValueError(f"weights for architecture {architecture.key} lack {empty[0]}")
    if unknown:
        raise ValueError(f"weights for architecture {architecture.key} have {unknown[0]}, which it does not")
    student.config.dtype = student.dtype
    return student.to(student.device).eval()  # buffers go where the weights are


def choose(
    scores: ImportanceScores, architecture: Architecture, group: int = 1, device: torch.device | None = None
) -> Kept:
    """The parts that stay: for each axis the highest scores, as ascending indices on ``device``.

    ``group`` heads of the teacher share one key/value head, and groups stay whole: see `_best_groups`.
    """
    layers = _top(scores.layers, architecture.depth)
    sizes = zip(layers.tolist(), architecture.heads, architecture.kv_heads, strict=True)
    chosen = [_best_groups(scores.heads[layer].reshape(-1, group), kv, heads // kv) for layer, heads, kv in sizes]
    mlp = (_top(scores.mlp[layer], size) for layer, size in zip(layers.tolist(), architecture.mlp, strict=True))

    def tensors(parts: Iterable[NDArray[np.int64]]) -> tuple[Tensor, ...]:
        return tuple(torch.from_numpy(part).to(device) for part in parts)

    kept_layers, hidden = tensors([layers, _top(scores.hidden, architecture.hidden)])
    heads, kv_heads = (tensors(pair[place] for pair in chosen) for place in (0, 1))
    return Kept(kept_layers, hidden, heads, kv_heads, tensors(mlp))


def _top(values: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """The places of the highest of ``values`` (n,), ascending; of equal ones the earlier."""
    return np.sort(np.argsort(-values, kind="stable")[:count])


def _best_groups(
    scores: NDArray[np.float32], kv_heads: int, members: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Heads and key/value heads that stay of ``scores`` (kv_heads, group): ``members`` heads in each kept group.

    The choice with the highest sum of kept scores: the best members of each group, and the groups whose best
    members have most.
    """
    best = np.stack([_top(one, members) for one in scores])
    groups = _top(np.take_along_axis(scores, best, axis=1).sum(axis=1), kv_heads)
    heads = (groups[:, None] * scores.shape[1] + best[groups]).ravel()
    return heads, groups
