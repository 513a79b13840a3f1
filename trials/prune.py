"""The teacher cut down to an architecture: the most important parts stay, in their original order."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from search_spaces.architecture import Architecture
from trials.families import Kept, family_of
from trials.importance import ImportanceScores


@torch.no_grad()
def prune(teacher: PreTrainedModel, scores: ImportanceScores, architecture: Architecture) -> PreTrainedModel:
    """A student of ``architecture`` made of slices of ``teacher``, which shares no memory with it.

    Layers, hidden channels (one choice for the whole network), heads and MLP neurons stay by their ``scores``;
    of equal ones the earlier stays. Dtype and device are the teacher's. The student is in eval mode and its
    parameters want gradients.

    Raises InputError when ``architecture`` exceeds the teacher.
    """
    family = family_of(teacher.config)
    family.shape(teacher.config).check(architecture)
    state = family.cut(teacher, choose(scores, architecture, teacher.device))
    student = student_from(teacher.config, architecture, state)
    student.generation_config = copy.deepcopy(teacher.generation_config)
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
    return student.eval()


def choose(scores: ImportanceScores, architecture: Architecture, device: torch.device | None = None) -> Kept:
    """The parts that stay: for each axis the highest scores, as ascending indices on ``device``."""

    def top(values: NDArray[np.float32], count: int) -> Tensor:
        best = np.argsort(-values, kind="stable")[:count]
        return torch.from_numpy(np.sort(best)).to(device)

    layers = top(scores.layers, architecture.depth)
    places = list(zip(layers.tolist(), architecture.heads, architecture.mlp, strict=True))
    return Kept(
        layers=layers,
        hidden=top(scores.hidden, architecture.hidden),
        heads=tuple(top(scores.heads[layer], heads) for layer, heads, _ in places),
        mlp=tuple(top(scores.mlp[layer], mlp) for layer, _, mlp in places),
    )
