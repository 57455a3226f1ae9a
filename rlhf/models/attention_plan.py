"""Which token of a packed batch attends to which: index tensors for the attention function, built once a batch.

The batch is a row of T tokens cut into segments. A segment's tokens attend causally to each other and to all tokens of
the segment's prefix, which is a stretch earlier in the row (the prompt that a group of completions shares), or nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Self

import torch

# queries of one piece: long segments are cut, so that the keys after a piece are never multiplied
QUERIES_PER_PIECE = 256
# attention scores of one head of one piece, which bounds memory at any length
SCORES_PER_PIECE = 1 << 20
# pieces are padded to one shape while that wastes less than this share, or fewer scores than one more bucket costs
MAX_PADDING = 0.25
CHEAP_SCORES = 1 << 15


@dataclass(frozen=True)
class Segment:
    """`length` tokens from `start`, behind the `prefix_length` tokens from `prefix_start`."""

    start: int
    length: int
    prefix_start: int = 0
    prefix_length: int = 0


@dataclass(frozen=True)
class Bucket:
    """Pieces of similar length, padded to C queries and L keys: R pieces.

    `query_RC` and `key_RL` are positions in the packed row; padded queries hold T, padded keys 0. Query i of piece r
    sees key j where j <= offset_R[r] + i: as own keys are the last, this hides a valid query's padded keys too.
    `seen_by_all`: this many first keys need no mask, unless there is a window.
    """

    query_RC: torch.Tensor
    key_RL: torch.Tensor
    offset_R: torch.Tensor
    seen_by_all: int


@dataclass(frozen=True)
class AttentionPlan:
    """For the padded batched products, `buckets` and `slot_T`: the place of each token in the concatenated, flattened
    queries of all buckets. For varlen kernels: segments in order of the row, their cumulative lengths of queries and
    keys, int32 (S + 1), and the keys' positions one behind another."""

    length: int
    buckets: tuple[Bucket, ...]
    slot_T: torch.Tensor
    cumulative_queries: torch.Tensor
    cumulative_keys: torch.Tensor
    key_index: torch.Tensor
    longest_query: int
    longest_key: int

    def to(self, device: torch.device | str) -> Self:
        """A copy with its tensors on `device`."""
        moved = {name: tensor.to(device) for name, tensor in _tensors(self).items()}
        buckets = tuple(
            replace(bucket, **{name: tensor.to(device) for name, tensor in _tensors(bucket).items()})
            for bucket in self.buckets
        )
        return replace(self, buckets=buckets, **moved)


@dataclass(frozen=True)
class _Piece:
    segment: Segment
    first: int
    queries: int

    @property
    def offset(self) -> int:
        return self.segment.prefix_length + self.first

    @property
    def keys(self) -> int:
        return self.offset + self.queries


def attention_plan(segments: Sequence[Segment], length: int) -> AttentionPlan:
    """The plan of a row of `length` tokens that `segments` cover in order, without gaps.

    Raises ValueError where they do not cover it.
    """
    position = 0
    for segment in segments:
        if segment.start != position or segment.length < 1:
            raise ValueError(f"segments must cover the row in order: {segment} where one should start at {position}")
        position += segment.length
    if position != length:
        raise ValueError(f"segments cover {position} of {length} tokens")
    buckets = tuple(_bucket(pieces, length) for pieces in _group(_pieces(segments)))
    queries = torch.cat([bucket.query_RC.flatten() for bucket in buckets])
    slots = torch.nonzero(queries < length).squeeze(1)
    slot_T = torch.empty(length, dtype=torch.long)
    slot_T[queries[slots]] = slots
    keys = [_key_positions(s, s.length) for s in segments]
    return AttentionPlan(
        length=length,
        buckets=buckets,
        slot_T=slot_T,
        cumulative_queries=_cumulative([s.length for s in segments]),
        cumulative_keys=_cumulative([len(k) for k in keys]),
        key_index=torch.cat(keys),
        longest_query=max(s.length for s in segments),
        longest_key=max(len(k) for k in keys),
    )


def _pieces(segments: Sequence[Segment]) -> list[_Piece]:
    pieces = []
    for segment in segments:
        first = 0
        while first < segment.length:
            room = SCORES_PER_PIECE // (segment.prefix_length + first + QUERIES_PER_PIECE)
            queries = min(segment.length - first, QUERIES_PER_PIECE, max(1, room))
            pieces.append(_Piece(segment, first, queries))
            first += queries
    return pieces


def _group(pieces: list[_Piece]) -> list[list[_Piece]]:
    """Pieces of similar shape together, longest first."""
    groups: list[list[_Piece]] = []
    padded_keys = padded_queries = scores = 0
    for piece in sorted(pieces, key=lambda p: (-p.keys, -p.queries, p.segment.start + p.first)):
        if groups:
            queries = max(padded_queries, piece.queries)
            wanted = scores + piece.queries * piece.keys
            padded = (len(groups[-1]) + 1) * queries * padded_keys
            if padded - wanted <= max(MAX_PADDING * padded, CHEAP_SCORES):
                groups[-1].append(piece)
                padded_queries, scores = queries, wanted
                continue
        groups.append([piece])
        padded_keys, padded_queries, scores = piece.keys, piece.queries, piece.queries * piece.keys
    return groups


def _bucket(pieces: list[_Piece], length: int) -> Bucket:
    queries, keys = max(p.queries for p in pieces), max(p.keys for p in pieces)
    query_RC = torch.full((len(pieces), queries), length)
    key_RL = torch.zeros(len(pieces), keys, dtype=torch.long)
    for row, piece in enumerate(pieces):
        start = piece.segment.start + piece.first
        query_RC[row, : piece.queries] = torch.arange(start, start + piece.queries)
        key_RL[row, : piece.keys] = _key_positions(piece.segment, piece.first + piece.queries)
    offsets = [piece.offset for piece in pieces]
    return Bucket(query_RC, key_RL, torch.tensor(offsets), min(offsets) + 1)


def _key_positions(segment: Segment, own: int) -> torch.Tensor:
    prefix = torch.arange(segment.prefix_start, segment.prefix_start + segment.prefix_length)
    return torch.cat([prefix, torch.arange(segment.start, segment.start + own)])


def _cumulative(lengths: list[int]) -> torch.Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)


def _tensors(record: AttentionPlan | Bucket) -> dict[str, torch.Tensor]:
    values = {field.name: getattr(record, field.name) for field in fields(record)}
    return {name: value for name, value in values.items() if isinstance(value, torch.Tensor)}
