"""The value of each MLP neuron, comparable between layers. `search_spaces.allocation` spreads neurons by it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from search_spaces.allocation import NeuronValues
from trials.prune.importance import ImportanceScores
from trials.teacher.streams import Streams


def neuron_values(scores: ImportanceScores, streams: Streams) -> NeuronValues:
    """For each neuron, the loss that its removal adds to its layer, divided by the square of the layer's output stream.

    ``scores.mlp`` must be those of `trials.prune.neuron_order`: the accumulated loss of a layer at each removal. The
    added loss of a neuron is the difference to the removal before it. The division makes layers comparable, because
    their streams differ in size. docs/lab/sizes-by-layer.md shows what students gain from it.
    """
    lost = np.diff(np.sort(scores.mlp, axis=1), axis=1, prepend=0)
    return NeuronValues.of(scores.layers.tolist(), (lost / squares(streams)[:, None]).tolist())


def squares(streams: Streams) -> NDArray[np.float64]:
    """The harmonic mean over tokens of the squared norm of the stream s after each layer, 1 / E |s|^-2; (L,).

    The harmonic mean fits, because the norms that read the stream divide each token by its own size. A few tokens can
    dominate the plain mean: massive activations (arXiv 2402.17762) at the first token of a window make it 130 times
    larger in the middle layers of SmolLM2, whose neurons would then seem worthless.
    """
    layers = range(1, len(streams.inputs))
    return np.array([1 / float(streams.before(one).square().sum(dim=1).reciprocal().mean()) for one in layers])
