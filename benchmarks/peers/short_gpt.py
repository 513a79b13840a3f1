"""ShortGPT (arXiv 2403.03853): whole layers go, those of the lowest Block Importance first."""

from __future__ import annotations

from transformers import PreTrainedModel

from search_spaces.architecture import Architecture
from trials.prune.importance import ImportanceScores
from trials.prune.prune import prune


def short_gpt(teacher: PreTrainedModel, scores: ImportanceScores, architecture: Architecture) -> PreTrainedModel:
    """``teacher`` cut to ``architecture``, which has fewer layers.

    All layers are scored once, on the whole teacher. With X_i the stream before layer i at a token, the score is

        BI_i = 1 - E[ X_i . X_{i+1} / (|X_i| |X_{i+1}|) ]

    It is ``scores.layers`` of `trials.prune.importance.compute_importance`.
    """
    return prune(teacher, scores, architecture)
