"""The cache of a decoder with latents for the rows that it writes. Shape letters: see vae/layers.py."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(slots=True, eq=False)
class LatentCache:
    """The latents of rows as the decoder needs them, and what it knows of the `length_B` tokens of each row so far.

    A row keeps its latent until `start_row` gives it that of another piece.

    Attributes:
        latent_BX: keys and values of each decoder layer, (B, L, 2, H, J, K); or logits, (B, J, V).
        tokens_BX: keys and values of the tokens, (B, L, 2, H, J, K); nothing where all are written at once.
        piece_B: whose latents these are.
        max_length: tokens that a row may hold.
        read: pieces to their `latent_BX`.
    """

    latent_BX: Tensor
    tokens_BX: Tensor
    piece_B: Tensor
    length_B: Tensor
    max_length: int
    read: Callable[[Sequence[int]], Tensor]

    @property
    def batch_size(self) -> int:
        """Number of rows."""
        return len(self.length_B)

    def rows(self, start: int, end: int) -> "LatentCache":
        """Return rows `start` to `end` (excluded) as a cache that shares its memory with this one."""
        row = slice(start, end)
        return LatentCache(
            self.latent_BX[row], self.tokens_BX[row], self.piece_B[row], self.length_B[row], self.max_length, self.read
        )

    def start_row(self, row: int, piece: int) -> None:
        """Empty a row and give it the latent of a piece."""
        if int(self.piece_B[row]) != piece:
            self.latent_BX[row] = self.read([piece])[0]
            self.piece_B[row] = piece
        self.length_B[row] = 0

    def copy_row(self, source: int, target: int) -> None:
        """Overwrite row `target` with row `source`."""
        for tensor in (self.latent_BX, self.tokens_BX, self.piece_B, self.length_B):
            tensor[target] = tensor[source]
