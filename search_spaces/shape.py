"""A teacher's geometry, and what any architecture cut from it costs: parameters, FLOPs, cache - in closed form."""

from __future__ import annotations

from dataclasses import dataclass

from search_spaces.architecture import Architecture
from search_spaces.errors import InputError


@dataclass(frozen=True)
class ModelShape:
    """The sizes of a GPT-2 style teacher: learned positions, biases everywhere, LayerNorm, a two-matrix MLP.

    ``head_dim`` never changes under pruning: whole heads go. ``tied`` says whether the output projection is the
    token embedding. ``positions`` is the longest sequence, in tokens.
    """

    family: str
    layers: int
    hidden: int
    heads: int
    head_dim: int
    mlp: int
    vocab: int
    positions: int
    tied: bool

    @property
    def full(self) -> Architecture:
        """The teacher itself as an architecture."""
        return Architecture.uniform(self.layers, self.hidden, self.heads, self.mlp)

    def parameters(self, architecture: Architecture) -> int:
        """Exact number of parameters of the built model; tied weights count once."""
        return self.embedding_parameters(architecture) + self.non_embedding_parameters(architecture)

    def embedding_parameters(self, architecture: Architecture) -> int:
        """Parameters of token embedding, position embedding and, when it is not tied, the output projection."""
        rows = self.vocab * (1 if self.tied else 2) + self.positions
        return rows * architecture.hidden

    def non_embedding_parameters(self, architecture: Architecture) -> int:
        """Parameters of all layers and the final LayerNorm."""
        layers = zip(architecture.heads, architecture.mlp, strict=True)
        return sum(self._layer(architecture.hidden, heads, mlp) for heads, mlp in layers) + 2 * architecture.hidden

    def _layer(self, hidden: int, heads: int, mlp: int) -> int:
        inner = heads * self.head_dim
        attention = hidden * 3 * inner + 3 * inner + inner * hidden + hidden
        feed_forward = hidden * mlp + mlp + mlp * hidden + hidden
        return attention + feed_forward + 4 * hidden  # two LayerNorms, weight and bias

    def flops_per_token(self, architecture: Architecture, context: int) -> int:
        """Forward FLOPs of one token in a sequence of ``context`` tokens (a multiply-add is two).

        Matrix products only: projections, the output projection, and attention over the whole context without
        the causal half taken off - what ``torch.utils.flop_counter`` counts for one pass, divided by its tokens.
        """
        hidden, total = architecture.hidden, 2 * self.vocab * architecture.hidden
        for heads, mlp in zip(architecture.heads, architecture.mlp, strict=True):
            inner = heads * self.head_dim
            total += 2 * (4 * hidden * inner + 2 * hidden * mlp) + 4 * context * inner
        return total

    def kv_cache_bytes(self, architecture: Architecture, dtype_bytes: int = 2) -> int:
        """Bytes that one token adds to the key/value cache, all layers, at ``dtype_bytes`` a number."""
        return 2 * sum(architecture.heads) * self.head_dim * dtype_bytes

    def is_stock(self, architecture: Architecture) -> bool:
        """Whether a plain ``AutoModelForCausalLM.from_pretrained`` can hold it.

        transformers' GPT-2 has one size for all layers and derives head_dim as hidden / heads.
        """
        return architecture.is_uniform and architecture.hidden == self.head_dim * architecture.heads[0]

    def check(self, architecture: Architecture) -> None:
        """Raise InputError when ``architecture`` cannot be cut from this teacher."""
        limits = {
            "depth": (architecture.depth, self.layers),
            "hidden": (architecture.hidden, self.hidden),
            "heads": (max(architecture.heads), self.heads),
            "mlp": (max(architecture.mlp), self.mlp),
        }
        for name, (size, limit) in limits.items():
            if size > limit:
                raise InputError(f"architecture {architecture.key}: {name} {size} exceeds the teacher's {limit}")
