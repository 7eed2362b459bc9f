"""The sizes of the transformers that whole-model estimates are made for.

Weights are counted matrix by matrix; embeddings, biases and positions are not among them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from quantizers.errors import UsageError, unknown_choice


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """A weight matrix of a layer: *rows* outputs of *columns* inputs."""

    name: str
    rows: int
    columns: int

    @property
    def weights(self) -> int:
        """rows * columns."""
        return self.rows * self.columns


@dataclass(frozen=True, kw_only=True)
class Geometry(ABC):
    """A stack of equal transformer layers.

    Attributes:
        name: the model's name.
        layers: transformer layers.
        hidden: width of the residual stream.
        ffn: width inside the feed-forward network.
        source: where the sizes were taken from.
    """

    name: str
    layers: int
    hidden: int
    ffn: int
    source: str

    _JOINED: ClassVar[tuple[tuple[str, ...], ...]] = (("q", "k", "v"), ("gate", "up"))
    """Matrices that multiply the same vector, and so can be one."""

    @property
    @abstractmethod
    def attention_matrices(self) -> tuple[Matrix, ...]:
        """The projections of one layer's attention."""

    @property
    @abstractmethod
    def feed_forward_matrices(self) -> tuple[Matrix, ...]:
        """The matrices of one layer's feed-forward network."""

    @property
    def products(self) -> tuple[Matrix, ...]:
        """The matrices of one layer, those that multiply the same vector as one: ``q+k+v``, ``gate+up``."""
        matrices = (*self.attention_matrices, *self.feed_forward_matrices)
        joined: dict[tuple[str, ...], list[Matrix]] = {}
        for matrix in matrices:
            names = next((names for names in self._JOINED if matrix.name in names), (matrix.name,))
            joined.setdefault(names, []).append(matrix)
        return tuple(
            Matrix(
                name="+".join(matrix.name for matrix in parts),
                rows=sum(matrix.rows for matrix in parts),
                columns=parts[0].columns,
            )
            for parts in joined.values()
        )

    @property
    def layer_weights(self) -> int:
        """Matrix weights of all layers: what every token multiplies, the output head left out."""
        matrices = (*self.attention_matrices, *self.feed_forward_matrices)
        return self.layers * sum(matrix.weights for matrix in matrices)


@dataclass(frozen=True, kw_only=True)
class Decoder(Geometry):
    """A decoder with rotary grouped-query attention.

    Attributes:
        query_heads, kv_heads: attention heads; each of the latter serves equally many of the former.
        head_dim: width of a head.
        vocabulary: tokens; the output head has vocabulary * hidden weights.
        gated: SwiGLU with three matrices; else two.
    """

    query_heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    gated: bool = True

    @property
    def attention_matrices(self) -> tuple[Matrix, ...]:
        """The projections q, k, v and o."""
        queries, keys = self.query_heads * self.head_dim, self.kv_heads * self.head_dim
        return (
            Matrix(name="q", rows=queries, columns=self.hidden),
            Matrix(name="k", rows=keys, columns=self.hidden),
            Matrix(name="v", rows=keys, columns=self.hidden),
            Matrix(name="o", rows=self.hidden, columns=queries),
        )

    @property
    def feed_forward_matrices(self) -> tuple[Matrix, ...]:
        """Gate (where gated), up and down."""
        return _feed_forward(self.hidden, self.ffn, gated=self.gated)

    @property
    def head_weights(self) -> int:
        """Weights of the output head, vocabulary * hidden."""
        return self.vocabulary * self.hidden

    @property
    def non_embedding_parameters(self) -> int:
        """Matrix weights and norms: two a layer and a final one, each of *hidden* gains.

        For SwiGLU with RMS norms and no biases: layers * (3 * hidden * ffn + q + k + v + o +
        2 * hidden) + hidden.

        Raises:
            UsageError: the feed-forward network is not gated; such models have biases, not counted here.
        """
        if not self.gated:
            msg = f"the parameters of {self.name} besides its matrices are not modelled"
            raise UsageError(msg, given=self.name)
        return self.layer_weights + (2 * self.layers + 1) * self.hidden

    @property
    def cached_values(self) -> int:
        """Keys and values that a token leaves in the KV cache, over all layers."""
        return 2 * self.layers * self.kv_heads * self.head_dim


@dataclass(frozen=True, kw_only=True)
class LatentDecoder(Geometry):
    """A decoder with multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1).

    Attributes:
        heads: attention heads.
        query_rank, kv_rank: widths of the latent vectors.
        nope_dim, rope_dim: parts of a query and key head without and with rotary position.
        value_dim: width of a value head.
        vocabulary: tokens.
    """

    heads: int
    query_rank: int
    kv_rank: int
    nope_dim: int
    rope_dim: int
    value_dim: int
    vocabulary: int

    _JOINED: ClassVar[tuple[tuple[str, ...], ...]] = (("q_down", "kv_down"), ("gate", "up"))

    @property
    def attention_matrices(self) -> tuple[Matrix, ...]:
        """Queries and keys with values, down to their latent vectors and up again; the output."""
        return (
            Matrix(name="q_down", rows=self.query_rank, columns=self.hidden),
            Matrix(name="q_up", rows=self.heads * (self.nope_dim + self.rope_dim), columns=self.query_rank),
            Matrix(name="kv_down", rows=self.kv_rank + self.rope_dim, columns=self.hidden),
            Matrix(name="kv_up", rows=self.heads * (self.nope_dim + self.value_dim), columns=self.kv_rank),
            Matrix(name="o", rows=self.hidden, columns=self.heads * self.value_dim),
        )

    @property
    def feed_forward_matrices(self) -> tuple[Matrix, ...]:
        """Gate, up and down."""
        return _feed_forward(self.hidden, self.ffn, gated=True)

    @property
    def head_weights(self) -> int:
        """Weights of the output head, vocabulary * hidden."""
        return self.vocabulary * self.hidden

    @property
    def cached_values(self) -> int:
        """Latent values and rotary keys that a token leaves in the cache, over all layers."""
        return self.layers * (self.kv_rank + self.rope_dim)


@dataclass(frozen=True, kw_only=True)
class VisionEncoder(Geometry):
    """A vision transformer with full attention and two feed-forward matrices.

    Attributes:
        heads: attention heads.
        head_dim: width of a head.
    """

    heads: int
    head_dim: int

    @property
    def attention_matrices(self) -> tuple[Matrix, ...]:
        """The projections q, k, v and o."""
        width = self.heads * self.head_dim
        inward = tuple(Matrix(name=name, rows=width, columns=self.hidden) for name in "qkv")
        return (*inward, Matrix(name="o", rows=self.hidden, columns=width))

    @property
    def feed_forward_matrices(self) -> tuple[Matrix, ...]:
        """Up and down."""
        return _feed_forward(self.hidden, self.ffn, gated=False)


def _feed_forward(hidden: int, ffn: int, *, gated: bool) -> tuple[Matrix, ...]:
    inward = tuple(
        Matrix(name=name, rows=ffn, columns=hidden) for name in (["gate", "up"] if gated else ["up"])
    )
    return (*inward, Matrix(name="down", rows=hidden, columns=ffn))


def _decoder(
    name: str, sizes: tuple[int, ...], heads: tuple[int, int, int], source: str, *, gated: bool = True
) -> Decoder:
    layers, hidden, ffn, vocabulary = sizes
    query_heads, kv_heads, head_dim = heads
    return Decoder(
        name=name, layers=layers, hidden=hidden, ffn=ffn, vocabulary=vocabulary, query_heads=query_heads,
        kv_heads=kv_heads, head_dim=head_dim, source=source, gated=gated,
    )  # fmt: skip


_MINICPM = "arXiv 2404.06395 and the configuration released with the model"
_MINICPM4 = "arXiv 2506.07900 and the configuration released with the model"
_LLAMA = "arXiv 2307.09288 and the configuration released with the model"

GEOMETRIES: dict[str, Geometry] = {
    geometry.name: geometry
    for geometry in (
        _decoder("MiniCPM-1.2B", (52, 1536, 3840, 73440), (24, 8, 64), _MINICPM),
        _decoder("MiniCPM-2.4B", (40, 2304, 5760, 122753), (36, 36, 64), _MINICPM),
        LatentDecoder(
            name="MiniCPM3-4B", layers=62, hidden=2560, ffn=6400, heads=40, query_rank=768, kv_rank=256,
            nope_dim=64, rope_dim=32, value_dim=64, vocabulary=73448,
            source="the configuration released with the model",
        ),
        _decoder("MiniCPM4-8B", (32, 4096, 16384, 73448), (32, 2, 128), _MINICPM4),
        _decoder("MiniCPM4-0.5B", (24, 1024, 4096, 73448), (16, 2, 64), "arXiv 2506.07900; unconfirmed"),
        _decoder("Llama-2-7B", (32, 4096, 11008, 32000), (32, 32, 128), _LLAMA),
        _decoder("Llama-3-8B", (32, 4096, 14336, 128256), (32, 8, 128), "arXiv 2407.21783, table 3"),
        _decoder(
            "Phi-2", (32, 2560, 10240, 51200), (32, 32, 80), "the configuration released with the model",
            gated=False,
        ),
        _decoder(
            "BitNet-3B", (26, 3200, 8640, 32002), (32, 32, 100),
            "the reproduction of arXiv 2402.17764 by 1bitLLM; unconfirmed",
        ),
        _decoder(
            "SmolLM2-135M", (30, 576, 1536, 49152), (9, 3, 64), "the configuration released with the model"
        ),
        VisionEncoder(
            name="SigLIP-So400m/14", layers=27, hidden=1152, ffn=4304, heads=16, head_dim=72,
            source="arXiv 2303.15343 and the configuration released with the model",
        ),
        VisionEncoder(
            name="EVA-CLIP-g/14", layers=39, hidden=1408, ffn=6144, heads=16, head_dim=88,
            source="arXiv 2211.07636; without its last layer, as BLIP-2 uses it",
        ),
    )
}  # fmt: skip
"""The geometries by name."""


def find_geometry(name: str) -> Geometry:
    """The geometry called *name*.

    Raises:
        UsageError: there is none; the message lists those there are.
    """
    if name not in GEOMETRIES:
        raise unknown_choice("model", name, GEOMETRIES)
    return GEOMETRIES[name]
