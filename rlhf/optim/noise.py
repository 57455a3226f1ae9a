"""Random bits for the elements of a buffer: a function of seed, step, tensor and the place in the whole tensor."""

from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf.optim.hashing import mix, random_bits_range, stretch_key, tensor_key
from rlhf.optim.layout import Pieces


@dataclass(slots=True)
class Noise:
    """`noise(field, offset, numel)` are int32 bits for elements from `offset` on of what begins at element `shift` of a
    buffer with the layout. Fields ("param", names of moments) have bits of their own."""

    seed: int
    step: int
    layout: Pieces
    device: torch.device
    shift: int = 0

    def __call__(self, field: str, offset: int, numel: int) -> Tensor:
        first, stop = self.shift + offset, self.shift + offset + numel
        # padding between the tensors of a flat partition keeps zeros: nothing reads it
        bits_N = torch.zeros(numel, dtype=torch.int32, device=self.device)
        for index, start, last in self.layout.parts(first, stop):
            piece = self.layout.pieces[index]
            key, place = mix(piece.key, tensor_key(field)), piece.start + start - piece.offset
            stretch_N = random_bits_range(self.seed, self.step, key, place, last - start, self.device)
            if last - start == numel:
                return stretch_N
            bits_N[start - first : last - first] = stretch_N
        return bits_N

    def stretch(self, field: str, offset: int, numel: int) -> Tensor | None:
        """What `hashing.stretch_bits` makes the bits from in a graph; None where the elements are not a stretch of one
        tensor."""
        first = self.shift + offset
        for index, start, last in self.layout.parts(first, first + numel):
            if last - start == numel:
                piece = self.layout.pieces[index]
                key, place = mix(piece.key, tensor_key(field)), piece.start + start - piece.offset
                return stretch_key(self.seed, self.step, key, place, numel)
        return None
