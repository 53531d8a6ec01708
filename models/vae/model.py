"""Transformer with a variational bottleneck: an encoder to a latent, and a causal or parallel decoder.

Sources: Kingma and Welling 2014 for the variational part; Kingma et al. 2016, appendix C.8, for free bits; Bowman et
al. 2016 for the rising weight of the divergence and for the dropping of tokens, which all keep the latent in use.
Shape letters: see layers.py and vae/layers.py; Z represents all axes of a latent.

A row is a start token and up to `block` tokens after it, of which `VaeConfig.row_mode` says what is read and what is
written; see `VaeRows`. Padding is allowed only at the end of a row.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.config import VaeConfig
from models.dropout import Dropout
from models.layers import TokenModel, check_room, padding_before_token
from models.training import LossParts, count_correct, token_loss
from models.vae.bottlenecks import Latent, build_bottleneck, compression_ratio, prior_latents
from models.vae.cache import LatentCache
from models.vae.layers import CausalStack, Encoder, build_table


class VaeRows(NamedTuple):
    """What encoder and decoder read of rows, what the decoder writes, and True where that counts as a target.

    Of a row `<start> a b c <end>`:

    | mode | encoder | decoder | targets |
    |---|---|---|---|
    | whole | a b c end | start a b c | a b c end |
    | modeling | a b c | start a b c | a b c end |
    | generation | a b c | a b c | b c end |
    """

    encoder_BT: Tensor
    decoder_BT: Tensor
    targets_BT: Tensor
    counts_BT: Tensor


class Vae(TokenModel):
    """Rows of token ids to latents and back.

    Args:
        vocab_size: number of ids, padding included.
        pad_id: this id is invisible, so that more of it after a row changes nothing.
    """

    def __init__(self, config: VaeConfig, vocab_size: int, pad_id: int = 0) -> None:
        super().__init__(config, vocab_size, pad_id)
        token = config.token_dropout_by
        if config.token_dropout and token != "all" and not (token < vocab_size and token != pad_id):
            raise ValueError(f"token_dropout_by={token} is neither 'all' nor an id of 0-{vocab_size - 1} but padding")
        is_causal = config.family == "encoder_decoder"
        self.embed = build_table(vocab_size, config.d_model)
        self.positions = build_table(config.block, config.d_model)
        self.encoder = Encoder(config)
        self.bottleneck = build_bottleneck(config.bottleneck, config.d_model, config.block, config.channels)
        self.decoder = CausalStack(config) if is_causal else Encoder(config)
        self.decoder_positions = build_table(config.block, config.d_model) if is_causal else None
        # The tables that are shared have one name each: a file of weights may hold no tensor twice.
        self.decoder_embed = None
        self.head = None
        if not config.tied_embeddings:
            self.decoder_embed = build_table(vocab_size, config.d_model) if is_causal else None
            self.head = build_table(vocab_size, config.d_model)
        self.dropout = Dropout(config.dropout)

    @property
    def n_parameters(self) -> int:
        """Weights, and the fixed averages of the bottleneck, which the published numbers count too."""
        return count(self)

    @property
    def max_length(self) -> int:
        """Most tokens of a row, its start token included."""
        return self.config.block + 1

    @property
    def bottleneck_shape(self) -> tuple[int, ...]:
        """Axes of one row's latent."""
        return self.bottleneck.latent_shape

    def forward(
        self,
        tokens_BT: Tensor,
        cache: LatentCache | None = None,
        *,
        wants_loss: bool = False,
        step: int | None = None,
        mask_BT: Tensor | None = None,
        draw_latents_by: torch.Generator | None = None,
    ) -> Tensor | LossParts:
        """Return logits, or the parts of the loss.

        Args:
            tokens_BT: whole rows, which become latents and then logits of shape (B, T - 1, V) of all tokens but the
                first. With a cache: what follows the tokens in it; the logits have shape (B, T, V) and are those of the
                id after each one.
            wants_loss, step, mask_BT, draw_latents_by: for `loss_parts`; arguments here because a wrapper for several
                workers knows no other call. With a generator latents are drawn by it.
        """
        if cache is not None:
            return self.continue_rows(tokens_BT, cache)
        if wants_loss:
            sample = None if draw_latents_by is None else True
            return self.loss_parts(tokens_BT, step=step, sample=sample, generator=draw_latents_by, mask_BT=mask_BT)
        return self.logits(tokens_BT[:, :-1], self.latent(tokens_BT, sample=self.training))

    def rows(self, tokens_BT: Tensor, mask_BT: Tensor | None = None) -> VaeRows:
        """Return the parts of whole rows; `mask_BT` as for `loss_parts`."""
        n_given, is_token_BT = self.config.n_given, tokens_BT != self.pad_id
        encoder_BT = tokens_BT[:, 1:]
        if self.config.row_mode != "whole":
            encoder_BT = tokens_BT[:, 1:-1].masked_fill(~is_token_BT[:, 2:], self.pad_id)
        counts_BT = is_token_BT if mask_BT is None else is_token_BT & mask_BT
        return VaeRows(encoder_BT, tokens_BT[:, n_given - 1 : -1], tokens_BT[:, n_given:], counts_BT[:, n_given:])

    def encode(self, tokens_BT: Tensor) -> Latent:
        """Return what the encoder makes of rows: mu and logvar, each of shape (B, *bottleneck_shape).

        Args:
            tokens_BT: whole rows; `rows` says which of their tokens are read.
        Raises:
            ValueError: rows longer than the block and the first token.
        """
        if tokens_BT.shape[1] > self.max_length:
            raise ValueError(f"rows of {tokens_BT.shape[1]} tokens, but block={self.config.block} and a start token")
        tokens_BT = self.rows(tokens_BT).encoder_BT
        n_missing = self.config.block - tokens_BT.shape[1]
        hidden_BT = tokens_BT == self.pad_id
        x_BTD = self.dropout(self.embed(tokens_BT) + self.positions.weight[: tokens_BT.shape[1]])
        x_BTD = self.encoder(x_BTD, hidden_BT)
        x_BTD = functional.pad(x_BTD, (0, 0, 0, n_missing))
        return self.bottleneck.posterior(x_BTD, functional.pad(hidden_BT, (0, n_missing), value=True))

    def latent(self, tokens_BT: Tensor, sample: bool = False, generator: torch.Generator | None = None) -> Tensor:
        """Return the latents of rows, of shape (B, *bottleneck_shape): the likeliest, or drawn ones."""
        latent = self.encode(tokens_BT)
        return latent.sample(generator) if sample else latent.mu_BZ

    def prior_latents(self, seed: int, pieces: Sequence[int]) -> Tensor:
        """Return a latent for each piece, drawn from the prior; see `bottlenecks.prior_latents`."""
        return prior_latents(self.bottleneck_shape, seed, pieces).to(self.embed.weight)

    def logits(self, inputs_BT: Tensor, z_BZ: Tensor) -> Tensor:
        """Return logits of shape (B, T, V) of the id after each of `inputs_BT`, by the tokens so far and latents.

        With family="encoder" they depend on the latents alone. A start token that is not read has logits of 0.
        """
        n_unread = self.config.n_given - 1
        return functional.pad(self.decode(inputs_BT[:, n_unread:], z_BZ), (0, 0, n_unread, 0))

    def decode(self, inputs_BT: Tensor, z_BZ: Tensor) -> Tensor:
        """Return `logits` of the tokens that the decoder reads, `VaeRows.decoder_BT`."""
        memory_BJD = self.memory(z_BZ)
        if isinstance(self.decoder, CausalStack):
            # The first place is that of the start token, read or not, so that all tokens are near their own latents.
            position_BT = torch.arange(inputs_BT.shape[1], device=inputs_BT.device)[None] + self.config.n_given - 1
            x_BTD = self.embed_inputs(inputs_BT, position_BT)
            x_BTD = self.decoder(x_BTD, position_BT, self.decoder.look_up(memory_BJD))
        else:
            x_BTD = self.decoder(memory_BJD)[:, : inputs_BT.shape[1]]
        return self.to_logits(x_BTD)

    def memory(self, z_BZ: Tensor) -> Tensor:
        """Return the vectors that latents represent, (B, J, D)."""
        memory_BJD = self.bottleneck.release(z_BZ)
        # Normalised, unlike the original: the decoder then hears them while they are still faint.
        memory_BJD = functional.layer_norm(memory_BJD, memory_BJD.shape[-1:])
        return memory_BJD if isinstance(self.decoder, CausalStack) else memory_BJD + self.positions.weight

    def embed_inputs(self, tokens_BT: Tensor, position_BT: Tensor) -> Tensor:
        """Return the decoder's inputs, shape BTD: token embeddings plus positions, with dropout."""
        assert self.decoder_positions is not None
        table = self.embed if self.decoder_embed is None else self.decoder_embed
        return self.dropout(table(tokens_BT) + self.decoder_positions(position_BT))

    def to_logits(self, x_BTD: Tensor) -> Tensor:
        """Return logits over the vocabulary for each vector, shape BTV."""
        return functional.linear(x_BTD, (self.embed if self.head is None else self.head).weight)

    def loss_parts(
        self,
        tokens_BT: Tensor,
        *,
        step: int | None = None,
        sample: bool | None = None,
        generator: torch.Generator | None = None,
        mask_BT: Tensor | None = None,
    ) -> LossParts:
        """Return the loss of writing rows again from their latents.

        Args:
            tokens_BT: whole rows; all tokens but the given ones and padding are targets.
            step: of the weight of the divergence; None: its last one.
            sample: draw latents rather than take the likeliest; None: in training alone.
            generator: of the latents; None: the global one, which also drops out.
            mask_BT: of the shape of `tokens_BT`; a token counts as a target only where it is True.
        """
        config = self.config
        read_BT = self.drop_tokens(tokens_BT) if config.token_dropout_in != "decoder" else tokens_BT
        written_BT = self.drop_tokens(tokens_BT) if config.token_dropout_in != "encoder" else tokens_BT
        latent = self.encode(read_BT)
        is_drawn = self.training if sample is None else sample
        z_BZ = latent.sample(generator) if is_drawn else latent.mu_BZ
        logits_BTV = self.decode(self.rows(written_BT).decoder_BT, z_BZ)
        _, _, targets_BT, counts_BT = self.rows(tokens_BT, mask_BT)
        kl_B = latent.kl()
        n_tokens_B = (targets_BT != self.pad_id).sum(dim=1)
        cost_B = (kl_B - config.free_bits * math.log(2) * n_tokens_B).clamp_min(0.0)
        nll_sum, n_targets = token_loss(logits_BTV, targets_BT.masked_fill(~counts_BT, self.pad_id), self.pad_id)
        weight: Tensor | float = config.kl_end if step is None else config.kl_weight(step)
        if config.kl_reduction == "sum":
            weight = (n_targets.double() * weight).to(cost_B.dtype)
        return LossParts(
            nll_sum=nll_sum,
            n_targets=n_targets,
            n_correct=count_correct(logits_BTV.detach(), targets_BT, counts_BT),
            auxiliary_sum=weight * cost_B.sum(),
            kl_sum=kl_B.detach().sum(),
        )

    def drop_tokens(self, tokens_BT: Tensor) -> Tensor:
        """Return rows in which tokens are replaced with the probability of `token_dropout`, in training alone."""
        config = self.config
        if not (self.training and config.token_dropout):
            return tokens_BT
        chosen_BT = torch.rand(tokens_BT.shape, device=tokens_BT.device) < config.token_dropout
        chosen_BT &= tokens_BT != self.pad_id
        if config.token_dropout_by != "all":
            return tokens_BT.masked_fill(chosen_BT, config.token_dropout_by)
        other_BT = torch.randint_like(tokens_BT, self.vocab_size - 1)
        return torch.where(chosen_BT, other_BT + (other_BT >= self.pad_id), tokens_BT)

    def new_cache(
        self, batch_size: int, max_length: int, latents_of: Callable[[Sequence[int]], Tensor] | None = None
    ) -> LatentCache:
        """Return a cache whose rows begin with the latents of pieces 0, 1, 2 and so on.

        Args:
            max_length: tokens of a row, a last one included that is never fed back.
            latents_of: pieces to their latents; None: those that the prior has for seed 0.
        Raises:
            ValueError: rows longer than the block and the first token.
        """
        config = self.config
        if max_length > self.max_length:
            raise ValueError(f"a cache for {max_length} tokens, but block={config.block} and a start token")
        latents_of = latents_of or (lambda pieces: self.prior_latents(0, pieces))
        room = min(max_length, config.block)

        def read(pieces: Sequence[int]) -> Tensor:
            memory_BJD = self.memory(latents_of(pieces))
            if isinstance(self.decoder, CausalStack):
                return self.decoder.look_up(memory_BJD)
            return self.to_logits(self.decoder(memory_BJD))

        latent_BX = read(range(batch_size))
        shape_L2HJK = (config.n_layers, 2, config.n_heads, room, config.d_head)
        tokens_BX = latent_BX.new_zeros(batch_size, *(shape_L2HJK if isinstance(self.decoder, CausalStack) else ()))
        number_B = torch.arange(batch_size, device=latent_BX.device)
        return LatentCache(latent_BX, tokens_BX, number_B, torch.zeros_like(number_B), room, read)

    def continue_rows(self, tokens_BT: Tensor, cache: LatentCache) -> Tensor:
        """Return the logits after each of some tokens that follow those in a cache, and add them to it.

        Rows may hold different numbers of tokens; padding at a row's end is not counted.
        """
        hidden_BT = tokens_BT == self.pad_id
        check_room(cache.length_B, cache.max_length, tokens_BT)
        if padding_before_token(hidden_BT):
            raise ValueError("with a cache, padding may only stand at the end of a row")
        row_B1 = torch.arange(len(tokens_BT), device=tokens_BT.device)[:, None]
        position_BT = cache.length_B[:, None] + torch.arange(tokens_BT.shape[1], device=tokens_BT.device)
        n_keys = int(position_BT.max()) + 1
        cache.length_B += (~hidden_BT).sum(dim=1)
        if not isinstance(self.decoder, CausalStack):
            return cache.latent_BX[row_B1, position_BT]
        x_BTD = self.embed_inputs(tokens_BT, position_BT)
        tokens_BX = cache.tokens_BX[..., :n_keys, :]
        logits_BTV = self.to_logits(self.decoder(x_BTD, position_BT, cache.latent_BX, tokens_BX))
        return logits_BTV.masked_fill(position_BT[:, :, None] < self.config.n_given - 1, 0.0)

    def summary(self) -> dict[str, Any]:
        """Return sizes and shapes of the model, as plain JSON values."""
        parts = {
            "encoder": count(self.encoder),
            "bottleneck": count(self.bottleneck),
            "decoder": count(self.decoder),
        }
        return {
            "family": self.config.family,
            "block": self.config.block,
            "vocab_size": self.vocab_size,
            "d_model": self.config.d_model,
            "principal_shape": [self.config.block, self.config.d_model],
            "bottleneck": self.config.bottleneck,
            "bottleneck_shape": list(self.bottleneck_shape),
            "compression_ratio": compression_ratio(self.bottleneck),
            "stages": [list(shape) for shape in self.bottleneck.stage_shapes],
            "parameters": {"tables": self.n_parameters - sum(parts.values()), **parts, "total": self.n_parameters},
        }


def count(module: nn.Module) -> int:
    """Return how many numbers the parameters and buffers of `module` hold."""
    return sum(tensor.numel() for tensor in (*module.parameters(), *module.buffers()))
