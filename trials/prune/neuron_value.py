"""The value of each MLP neuron, comparable between layers: neurons are spread over the layers by it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from search_spaces.allocation import NeuronValues
from trials.prune.importance import ImportanceScores
from trials.teacher.streams import Streams


def neuron_values(scores: ImportanceScores, streams: Streams) -> NeuronValues:
    """Of every neuron what its layer loses more when it goes, as a share of the stream behind the layer.

    ``scores`` are a search's: those of neurons are what a layer has lost when one has gone as well as all that go
    before it, the others refitted (`trials.prune.neuron_order`), so what each adds is the difference to the one before. The
    share of the stream makes layers comparable, whose streams differ in size. docs/results.md, "Sizes by layer", has
    what students gain.
    """
    lost = np.diff(np.sort(scores.mlp, axis=1), axis=1, prepend=0)
    return NeuronValues.of(scores.layers.tolist(), (lost / squares(streams)[:, None]).tolist())


def squares(streams: Streams) -> NDArray[np.float64]:
    """Of the stream s behind each layer 1 / E |s|^-2, the harmonic mean over all tokens of its square; (L,).

    What reads the stream divides each token by its own size. Of the plain mean a few tokens may have nearly all: the
    massive activations (arXiv 2402.17762) of the first token of a window make it 130 times as large in the middle of
    SmolLM2, where no neuron would be worth anything.
    """
    layers = range(1, len(streams.inputs))
    return np.array([1 / float(streams.before(one).square().sum(dim=1).reciprocal().mean()) for one in layers])
