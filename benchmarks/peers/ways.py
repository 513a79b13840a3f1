"""All ways to cut one teacher, each with its sizes for a number of parameters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

from torch import Tensor
from transformers import PreTrainedModel

from benchmarks.peers.flap import adaptive, flap, flap_parameters, flap_scores
from benchmarks.peers.inputs import LayerInputs, inputs_of
from benchmarks.peers.short_gpt import short_gpt
from benchmarks.peers.sizes import fewer_layers, fewer_neurons, name_of, nearest
from benchmarks.peers.slice_gpt import slice_gpt, sliced_parameters
from benchmarks.peers.wanda import wanda_sp
from search_spaces.architecture import Architecture
from search_spaces.shape import ModelShape
from trials.families.lookup import family_of
from trials.families.shapes import shape_of
from trials.prune.importance import ImportanceScores
from trials.prune.prune import prune


@dataclass(frozen=True, eq=False)
class Way:
    """A way to cut the teacher: its name, its sizes as a text, and how to make the student."""

    name: str
    sizes: str
    make: Callable[[], PreTrainedModel]


class Peers:
    """The published ways for one teacher. All read the same calibration ``windows`` (n, T) of token ids.

    ``scores`` are Minitron's, from the same windows.
    """

    def __init__(self, teacher: PreTrainedModel, windows: Tensor, scores: ImportanceScores) -> None:
        self.teacher, self.windows, self.scores = teacher, windows, scores
        self.shape: ModelShape = shape_of(teacher.config)

    @cached_property
    def inputs(self) -> Sequence[LayerInputs]:
        """What Wanda-sp and FLAP know of the calibration text."""
        return inputs_of(self.teacher, family_of(self.teacher.config), self.windows)

    @cached_property
    def fluctuations(self) -> ImportanceScores:
        """FLAP's scores."""
        return flap_scores(self.teacher, self.scores, self.inputs)

    def minitron(self, name: str, architecture: Architecture) -> Way:
        """Slices of ``architecture`` by Minitron's scores (arXiv 2407.14679)."""
        return Way(name, name_of(architecture), lambda: prune(self.teacher, self.scores, architecture))

    def ways(self, ours: Architecture) -> list[Way]:
        """All ways for a Llama-style teacher, with the non-embedding parameters of ``ours`` as near as they can be.

        Biases and adapters that a way adds are counted.
        """
        shape, teacher, scores = self.shape, self.teacher, self.scores
        target = shape.non_embedding_parameters(ours)
        neurons = fewer_neurons(shape, target, shape.non_embedding_parameters)
        biased = fewer_neurons(shape, target, partial(flap_parameters, shape))
        spread, layers = adaptive(shape, self.fluctuations, target), fewer_layers(shape, target)
        width = nearest(shape.hidden, target, partial(sliced_parameters, shape))
        return [
            self.minitron("Minitron, as ours", ours),
            self.minitron("Minitron, neurons", neurons),
            Way("Wanda-sp", name_of(neurons), lambda: wanda_sp(teacher, scores, self.inputs, neurons)),
            self._flap("FLAP, uniform neurons", biased),
            self._flap("FLAP, its own spread", spread),
            Way("ShortGPT", name_of(layers), lambda: short_gpt(teacher, scores, layers)),
            Way("SliceGPT", f"{width} directions", lambda: slice_gpt(teacher, self.windows, width)),
        ]

    def _flap(self, name: str, architecture: Architecture) -> Way:
        make = partial(flap, self.teacher, self.fluctuations, self.inputs, architecture)
        return Way(name, f"{name_of(architecture)} + bias", make)
