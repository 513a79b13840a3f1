"""A teacher's sizes, and closed-form costs of architectures cut from it: parameters, FLOPs, key/value cache."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from search_spaces.architecture import Architecture
from search_spaces.errors import InputError

Width = Literal["square", "divisible", "any"]
"""How the width must fit the heads: hidden == head_dim * heads, hidden % heads == 0, or in any way."""


@dataclass(frozen=True)
class ModelShape:
    """The sizes of a teacher and the parts of its layers. The defaults are GPT-2's.

    - ``head_dim`` never changes under pruning, because pruning removes whole heads.
    - ``positions`` is the longest sequence in tokens; ``learned_positions`` says whether positions have embeddings.
    - ``tied`` says whether the output projection is the token embedding.
    - ``group`` heads share one key/value head.
    - ``mlp_matrices`` is 2, or 3 for an MLP with a gate.
    - ``norm_vectors`` is 2 for LayerNorm (weight and bias) and 1 for RMSNorm (weight).
    - ``head_norms`` is the number of vectors of head_dim that normalise queries and keys.
    - ``qkv_bias``, ``output_bias`` and ``mlp_bias`` say whether query/key/value, attention output and MLP have biases.
    - ``stock`` is what transformers' own class requires of a uniform shape (`Width`).
    - ``windowed`` says whether a layer attends to its last tokens only.
    - ``unserved`` names what llama.cpp does not compute of such a model, whatever its sizes; empty if nothing.
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
    group: int = 1
    learned_positions: bool = True
    mlp_matrices: int = 2
    norm_vectors: int = 2
    head_norms: int = 0
    qkv_bias: bool = True
    output_bias: bool = True
    mlp_bias: bool = True
    stock: Width = "square"
    windowed: bool = False
    unserved: str = ""

    @property
    def kv_heads(self) -> int:
        """Key/value heads of a layer."""
        return self.heads // self.group

    @property
    def full(self) -> Architecture:
        """The teacher itself as an architecture."""
        return Architecture.uniform(self.layers, self.hidden, self.heads, self.mlp, self.kv_heads)

    def parameters(self, architecture: Architecture) -> int:
        """Exact number of parameters of the model. Tied weights count once."""
        return self.embedding_parameters(architecture) + self.non_embedding_parameters(architecture)

    def embedding_parameters(self, architecture: Architecture) -> int:
        """Parameters of the token embedding, the position embedding and an output projection that is not tied."""
        rows = self.vocab * (1 if self.tied else 2) + (self.positions if self.learned_positions else 0)
        return rows * architecture.hidden

    def non_embedding_parameters(self, architecture: Architecture) -> int:
        """Parameters of all layers and the final norm."""
        layers = zip(architecture.heads, architecture.kv_heads, architecture.mlp, strict=True)
        final_norm = self.norm_vectors * architecture.hidden
        return sum(self._layer(architecture.hidden, *sizes) for sizes in layers) + final_norm

    def _layer(self, hidden: int, heads: int, kv_heads: int, mlp: int) -> int:
        inner, shared = heads * self.head_dim, kv_heads * self.head_dim
        attention = 2 * hidden * (inner + shared) + self.head_norms * self.head_dim
        feed_forward = self.mlp_matrices * hidden * mlp
        biases = self.qkv_bias * (inner + 2 * shared) + self.output_bias * hidden
        biases += self.mlp_bias * ((self.mlp_matrices - 1) * mlp + hidden)
        return attention + feed_forward + biases + 2 * self.norm_vectors * hidden

    def flops_per_token(self, architecture: Architecture, context: int) -> int:
        """Forward FLOPs of one token in a sequence of ``context`` tokens. A multiply-add counts as two.

        Counts matrix products only, as ``torch.utils.flop_counter`` does: all projections, the output projection, and
        attention over the whole context, including the half that the causal mask hides.
        """
        hidden, total = architecture.hidden, 2 * self.vocab * architecture.hidden
        for heads, kv_heads, mlp in zip(architecture.heads, architecture.kv_heads, architecture.mlp, strict=True):
            inner, shared = heads * self.head_dim, kv_heads * self.head_dim
            total += 2 * hidden * (2 * inner + 2 * shared + self.mlp_matrices * mlp) + 4 * context * inner
        return total

    def kv_cache_bytes(self, architecture: Architecture, dtype_bytes: int = 2) -> int:
        """Bytes that one token adds to the key/value cache of all layers, at ``dtype_bytes`` a number."""
        return 2 * sum(architecture.kv_heads) * self.head_dim * dtype_bytes

    def memory_bytes(self, architecture: Architecture, dtype_bytes: int = 2) -> int:
        """Bytes of the weights and of a key/value cache of `positions` tokens, at ``dtype_bytes`` a number."""
        return dtype_bytes * self.parameters(architecture) + self.positions * self.kv_cache_bytes(
            architecture, dtype_bytes
        )

    def is_stock(self, architecture: Architecture) -> bool:
        """Whether transformers' own class can load it. That class has the same sizes in all layers."""
        return architecture.is_uniform and self.has_width(self.stock, architecture.hidden, architecture.heads[0])

    def has_width(self, width: Width, hidden: int, heads: int) -> bool:
        """Whether ``hidden`` fits ``heads`` as ``width`` says."""
        rules = {"square": hidden == self.head_dim * heads, "divisible": hidden % heads == 0, "any": True}
        return rules[width]

    def whole_layers(self, architecture: Architecture) -> tuple[int, ...] | None:
        """The teacher's layers of which ``architecture`` is a slice; None if scores choose them, or more is done."""
        full, depth = self.full, architecture.depth
        named = architecture.kept_layers or (tuple(range(depth)) if depth == self.layers else None)
        sizes = full.heads[:depth], full.mlp[:depth], full.kv_heads[:depth]
        whole = Architecture(depth, full.hidden, *sizes, architecture.kept_layers)
        return named if architecture == whole else None

    def check(self, architecture: Architecture) -> None:
        """Raise InputError when ``architecture`` cannot be cut from this teacher."""
        groups = [heads // kv for heads, kv in zip(architecture.heads, architecture.kv_heads, strict=True)]
        limits = {
            "depth": (architecture.depth, self.layers),
            "hidden": (architecture.hidden, self.hidden),
            "heads": (max(architecture.heads), self.heads),
            "kv_heads": (max(architecture.kv_heads), self.kv_heads),
            "heads per key/value head": (max(groups), self.group),
            "mlp": (max(architecture.mlp), self.mlp),
        }
        for name, (size, limit) in limits.items():
            if size > limit:
                raise InputError(f"architecture {architecture.key}: {name} {size} exceeds the teacher's {limit}")
        self._check_layers(architecture)

    def _check_layers(self, architecture: Architecture) -> None:
        kept = architecture.kept_layers
        if kept and kept[-1] >= self.layers:
            raise InputError(
                f"architecture {architecture.key}: layer {kept[-1]} is none of the teacher's {self.layers}; "
                "the first is 0"
            )
        if kept and architecture.depth == self.layers:
            raise InputError(f"architecture {architecture.key}: every layer stays; leave kept_layers out")
