"""The sizes of a model that decide what a step needs in memory."""

from dataclasses import dataclass
from typing import Any

from ltune.models.fast.layer import AttentionHalf, FeedForwardHalf
from ltune.models.fast.room import ROOM


@dataclass(frozen=True)
class Shape:
    """Sizes of a model, per layer and in all; enough to estimate without its weights."""

    layers: int
    hidden: int
    qkv: int  # outputs
    attended: int  # inputs of the output projection
    heads: int
    gate_up: int  # outputs
    ranks: int  # of all low-rank parts of a layer
    vocabulary: int
    normed: bool  # queries and keys are
    quantized: int  # weights of a layer stored in fewer bits
    copied: int  # weights of a layer that are trained in another dtype, so that the products use a copy
    weights: int  # of a layer
    trained: int  # parameters, in all
    size: int  # bytes of an activation
    after: bool = False  # each half ends with a norm
    trained_bytes: int = 0  # of the layers' trained parameters
    produced: int = 0  # bytes of the gradients as the layers' backward computes them
    whole: int = 0  # bytes of a trained weight of the layers themselves; 0: they are frozen
    head: int = 0  # bytes of the head's gradient; 0: it is frozen
    head_copied: bool = False  # it is stored in another dtype than the products'
    embedding: int = 0  # bytes of the embeddings' own gradient; 0: they are frozen
    tied: bool = False  # head and embeddings are one
    movable: int = 0  # bytes of the embeddings, where they can stay in the host's memory
    room: int = 0  # numbers of a layer beside held weights, for what is joined with them (room.py); 0: nothing is
    moments: float = 2.0  # bytes that the optimizer keeps for a byte that is trained
    invertible: bool = False  # its norms are, so that layers that keep everything do without their inputs

    @classmethod
    def of(
        cls, layers: list[tuple[AttentionHalf, FeedForwardHalf]], vocabulary: int, trained: int, head: Any = None, embeddings: Any = None
    ) -> "Shape":
        """Of a model that was read; ``head`` and ``embeddings`` are the weights of these."""
        attention, feed = layers[0]
        parts = _projections(layers[0])
        sizes = [sum(one.sizes) * one.bases[0].in_features for one in parts]
        of_layers = [parameter for halves in layers for half in halves for parameter in half.parameters()]
        everything = [one for halves in layers for one in _projections(halves)]
        own = [base.weight for one in everything for base in one.bases if base.weight.requires_grad]
        tied = head is not None and head is embeddings
        return cls(
            layers=len(layers),
            hidden=feed.gate_up.bases[0].in_features,
            qkv=sum(attention.qkv.sizes),
            attended=attention.out.bases[0].in_features,
            heads=attention.heads,
            gate_up=sum(feed.gate_up.sizes),
            ranks=sum(one.low.a.shape[0] for one in parts),
            vocabulary=vocabulary,
            normed=attention.q_norm is not None,
            quantized=sum(size for one, size in zip(parts, sizes, strict=True) if one.quantized),
            copied=sum(size for one, size in zip(parts, sizes, strict=True) if _copied(one)),
            weights=sum(sizes),
            trained=trained,
            size=feed.gate_up.dtype.itemsize,
            after=feed.after is not None,
            trained_bytes=sum(parameter.nbytes for parameter in of_layers),
            produced=sum(weight.nbytes for weight in own) + sum(_low_rank_gradients(one) for one in everything),
            whole=own[0].element_size() if own else 0,
            head=_gradient(head),
            head_copied=head is not None and head.dtype is not feed.gate_up.dtype,
            embedding=_gradient(embeddings),
            tied=tied,
            room=sum(_room(one) for one in parts),
            invertible=all(half.norm.invertible for halves in layers for half in halves),
            movable=0 if embeddings is None or embeddings.requires_grad or tied else embeddings.nbytes,
        )

    @property
    def trained_in_all(self) -> int:
        """Bytes of all that is trained."""
        return self.trained_bytes + self.head + (0 if self.tied else self.embedding)


def _projections(halves: tuple[AttentionHalf, FeedForwardHalf]) -> tuple[Any, ...]:
    return halves[0].qkv, halves[0].out, halves[1].gate_up, halves[1].down


def _copied(one: Any) -> bool:
    return not one.quantized and one.bases[0].weight.dtype is not one.dtype


def _room(one: Any) -> int:
    """Beside W, and in the filled up A and B."""
    if not one.quantized or not 0 < one.low.ranks <= ROOM:
        return 0
    return ROOM * (2 * (one.bases[0].in_features + sum(one.sizes)) + ROOM)


def _low_rank_gradients(one: Any) -> int:
    """In float32; B's with the zeros of its blocks."""
    return 4 * one.low.a.shape[0] * (one.bases[0].in_features + sum(one.sizes))


def _gradient(weight: Any) -> int:
    return weight.nbytes if weight is not None and weight.requires_grad else 0
