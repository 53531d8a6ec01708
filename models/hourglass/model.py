"""Hourglass: a transformer whose middle layers work on shortened sequences (Nawrot et al. 2021).

Shape letters: see layers.py. T and J count vectors of whichever scale is meant; G is the place within a group that
becomes one vector.
"""

from collections.abc import Sequence
from typing import Literal, overload

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.config import HourglassConfig
from models.dropout import Dropout
from models.hourglass.cache import HourglassCache, Scale, cached_scales, fresh_scales, visible
from models.hourglass.losses import HiddenLevel, hidden_counts, hidden_levels, hidden_loss
from models.layers import LayerCache, RelativeAttention, TokenModel, check_room, padding_before_token, sinusoids


class CrossScaleAttention(nn.Module):
    """Attention to the keys of another scale, without relative positions."""

    def __init__(self, config: HourglassConfig) -> None:
        super().__init__()
        self.n_heads, self.d_head = config.n_heads, config.d_head
        self.to_q = nn.Linear(config.d_model, config.d_model)
        self.to_out = nn.Linear(config.d_model, config.d_model)

    def forward(self, x_BTD: Tensor, k_BHKJ: Tensor, v_BHJK: Tensor, bias_B1TJ: Tensor) -> Tensor:
        """Return y_BTD: x_BTD attends to keys and values of the other scale, where `bias_B1TJ` allows it."""
        q_BHTK = self.to_q(x_BTD).unflatten(-1, (self.n_heads, self.d_head)).transpose(1, 2) * self.d_head**-0.5
        scores_BHTJ = q_BHTK @ k_BHKJ
        scores_BHTJ.add_(bias_B1TJ.to(scores_BHTJ.dtype))
        return self.to_out((scores_BHTJ.softmax(-1) @ v_BHJK).transpose(1, 2).flatten(2))


class HourglassBlock(nn.Module):
    """One layer: transform, drop out, add, normalise; first attention, then feed-forward."""

    def __init__(self, config: HourglassConfig, attention: nn.Module) -> None:
        super().__init__()
        self.attention = attention
        self.attention_norm = nn.LayerNorm(config.d_model, eps=config.norm_eps)
        self.to_hidden = nn.Linear(config.d_model, config.d_ff)
        self.to_out = nn.Linear(config.d_ff, config.d_model)
        self.feed_forward_norm = nn.LayerNorm(config.d_model, eps=config.norm_eps)
        self.dropout = Dropout(config.dropout)

    def forward(self, x_BTD: Tensor, *context: Tensor | LayerCache | None) -> Tensor:
        """Return `x_BTD` one layer on; `context` goes to the attention."""
        x_BTD = self.attention_norm(x_BTD + self.dropout(self.attention(x_BTD, *context)))
        hidden_BTF = self.dropout(functional.relu(self.to_hidden(x_BTD)))
        return self.feed_forward_norm(x_BTD + self.dropout(self.to_out(hidden_BTF)))


def build_attention(config: HourglassConfig) -> RelativeAttention:
    """Build the relative self-attention of one block; all heads share the table."""
    return RelativeAttention(config.d_model, config.n_heads, config.max_relative_distance, shared=True)


class Stack(nn.Module):
    """Layers of one scale and a norm; `first_layer` is the place of their keys in the scale's cache."""

    def __init__(self, config: HourglassConfig, n_layers: int, first_layer: int = 0) -> None:
        super().__init__()
        self.first_layer = first_layer
        self.blocks = nn.ModuleList(HourglassBlock(config, build_attention(config)) for _ in range(n_layers))
        self.norm = nn.LayerNorm(config.d_model, eps=config.norm_eps)

    def forward(self, x_BTD: Tensor, scales: list[Scale], hidden: list[Tensor]) -> Tensor:
        """Return `x_BTD` some layers on; a stack works at the first of `scales` and adds no hidden state."""
        for i, block in enumerate(self.blocks, start=self.first_layer):
            x_BTD = block(x_BTD, scales[0].bias_B1TJ, scales[0].layer(i))
        return self.norm(x_BTD)


class AttentionResampling(nn.Module):
    """One layer between two scales: adds to each vector of the one what it finds in those of the other."""

    def __init__(self, config: HourglassConfig) -> None:
        super().__init__()
        self.n_heads = config.n_heads
        self.to_kv = nn.Linear(config.d_model, 2 * config.d_model)
        self.block = HourglassBlock(config, CrossScaleAttention(config))
        self.norm = nn.LayerNorm(config.d_model, eps=config.norm_eps)

    def forward(self, x_BTD: Tensor, context_BJD: Tensor, bias_B1TJ: Tensor, cache: LayerCache | None) -> Tensor:
        """Return x_BTD plus its attention to `context_BJD`; `cache` keeps the keys and values of the context."""
        k_BHKJ, v_BHJK = self.keys_and_values(context_BJD, cache)
        if not x_BTD.shape[1]:  # nothing new at this scale; only the keys had to be kept
            return x_BTD
        return x_BTD + self.norm(self.block(x_BTD, k_BHKJ, v_BHJK, bias_B1TJ))

    def keys_and_values(self, context_BJD: Tensor, cache: LayerCache | None) -> tuple[Tensor, Tensor]:
        """Return keys and values of `context_BJD`, and with a cache of all that came before it too."""
        k_BJHK, v_BJHK = self.to_kv(context_BJD).unflatten(-1, (2, self.n_heads, -1)).unbind(2)
        k_BHKJ, v_BHJK = k_BJHK.permute(0, 2, 3, 1), v_BJHK.transpose(1, 2)
        return (k_BHKJ, v_BHJK) if cache is None else cache.append(k_BHKJ, v_BHJK)


class Shorten(nn.Module):
    """Groups of vectors to one vector each: their mean, or a learned map."""

    def __init__(self, factor: int, config: HourglassConfig) -> None:
        super().__init__()
        is_linear = config.resampling == "linear"
        self.project = nn.Linear(factor * config.d_model, config.d_model) if is_linear else None

    def forward(self, groups_BTGD: Tensor) -> Tensor:
        """Return one vector for each group of G vectors: their mean or a linear map of them, shape BTD."""
        return groups_BTGD.mean(dim=2) if self.project is None else self.project(groups_BTGD.flatten(2))


class Lengthen(nn.Module):
    """Each vector to `factor` vectors: equal ones, or a learned map."""

    def __init__(self, factor: int, config: HourglassConfig) -> None:
        super().__init__()
        self.factor = factor
        is_linear = config.resampling == "linear"
        self.project = nn.Linear(config.d_model, factor * config.d_model) if is_linear else None

    def forward(self, short_BTD: Tensor) -> Tensor:
        """Return `factor` vectors for each vector: copies or a linear map of it, shape B(T * factor)D."""
        if self.project is None:
            return short_BTD.repeat_interleave(self.factor, dim=1)
        return self.project(short_BTD).unflatten(-1, (self.factor, short_BTD.shape[-1])).flatten(1, 2)


class Level(nn.Module):
    """Layers of one scale around everything that happens at shorter ones.

    A group ends where its shortened vector stands: vector i of the shorter scale knows the vectors up to
    `i * factor`, and is used from there on. So nothing knows of later tokens.
    """

    def __init__(self, config: HourglassConfig, index: int = 0) -> None:
        super().__init__()
        depth_before, depth_after = config.depths[index], config.depths[-1 - index]
        self.factor = config.factors[index]
        self.keeps_upsampled = config.hidden_upsampled
        self.before = Stack(config, depth_before)
        self.shorten = Shorten(self.factor, config)
        self.resample_down = AttentionResampling(config) if config.attention_resampling else None
        is_last = index + 1 == config.n_levels
        self.inner = Stack(config, config.depths[index + 1]) if is_last else Level(config, index + 1)
        self.lengthen = Lengthen(self.factor, config)
        self.resample_up = AttentionResampling(config) if config.attention_resampling else None
        self.after = Stack(config, depth_after, first_layer=depth_before)
        self.down_layer = depth_before + depth_after  # in the cache of this scale; the way up has the next one's last

    def forward(self, x_BTD: Tensor, scales: list[Scale], hidden: list[Tensor]) -> Tensor:
        """Return `x_BTD` one level on; `scales` begin with its own, and hidden states are appended to `hidden`."""
        scale, shorter = scales[:2]
        x_BTD = self.before(x_BTD, scales, hidden)
        short_BTD = self.shorten(self.groups(x_BTD, scale, shorter))
        if self.resample_down is not None:
            time_J = torch.arange(scale.n_keys, device=x_BTD.device)
            bias_B1TJ = visible(shorter.position_BT * self.factor, time_J, x_BTD.dtype)
            short_BTD = self.resample_down(short_BTD, x_BTD, bias_B1TJ, scale.layer(self.down_layer))
        hidden.append(short_BTD)
        if short_BTD.shape[1]:
            short_BTD = self.inner(short_BTD, scales[1:], hidden)
        upsampled_BTD = self.spread(short_BTD, scale, shorter)
        if self.keeps_upsampled:
            hidden.append(upsampled_BTD)
        x_BTD = x_BTD + upsampled_BTD
        if self.resample_up is not None:
            time_J = torch.arange(shorter.n_keys, device=x_BTD.device) * self.factor
            bias_B1TJ = visible(scale.position_BT, time_J, x_BTD.dtype)
            x_BTD = self.resample_up(x_BTD, short_BTD, bias_B1TJ, shorter.layer(-1))
        return self.after(x_BTD, scales, hidden)

    def groups(self, x_BTD: Tensor, scale: Scale, shorter: Scale) -> Tensor:
        """Return the `factor` vectors up to the place of each new shortened one; zeros come before the first."""
        memory, n_before = shorter.handover, self.factor - 1
        if memory is None or scale.plan is None:
            source_BTD = functional.pad(x_BTD, (0, 0, n_before, 0))
            grouped_BTD = source_BTD[:, : shorter.n_new * self.factor]
        else:
            # Of a row that starts afresh, the memory is that of its last piece.
            tail_BGD = memory.tail_BGD.masked_fill((scale.length_B == 0)[:, None, None], 0)
            source_BTD = torch.cat((tail_BGD, x_BTD), dim=1)
            first_B = shorter.length_B * self.factor - scale.length_B
            grouped_BTD = take(source_BTD, first_B, shorter.n_new * self.factor)
        if memory is not None:
            memory.tail_BGD.copy_(take(source_BTD, scale.n_real_B, n_before))
        return grouped_BTD.unflatten(1, (shorter.n_new, self.factor))

    def spread(self, short_BTD: Tensor, scale: Scale, shorter: Scale) -> Tensor:
        """Return for each new vector of `scale` its part of the latest shortened vector, lengthened."""
        memory = shorter.handover
        if memory is None:
            return self.lengthen(short_BTD)[:, : scale.n_new]
        source_BTD = torch.cat((memory.last_B1D, short_BTD), dim=1)
        memory.last_B1D.copy_(take(source_BTD, shorter.n_real_B, 1))
        first_B = scale.length_B - shorter.length_B * self.factor + self.factor
        return take(self.lengthen(source_BTD), first_B, scale.n_new)


def take(x_BTD: Tensor, first_B: Tensor, n: int) -> Tensor:
    """Return `n` vectors of each row from `first_B` on; after the end, the last one again."""
    index_BT = (first_B[:, None] + torch.arange(n, device=x_BTD.device)).clamp_max(x_BTD.shape[1] - 1)
    return x_BTD.gather(1, index_BT[..., None].expand(-1, -1, x_BTD.shape[2]))


class Hourglass(TokenModel):
    """Token ids to logits of the next id.

    Args:
        vocab_size: number of ids, padding included.
        pad_id: allowed only at the end of a row, where it changes no logits but its own.
    """

    def __init__(self, config: HourglassConfig, vocab_size: int, pad_id: int = 0) -> None:
        super().__init__(config, vocab_size, pad_id)
        self.embed = nn.Embedding(vocab_size, config.d_model, padding_idx=pad_id)
        self.dropout = Dropout(config.dropout)
        self.layers = Level(config) if config.n_levels else Stack(config, config.depths[0])
        self.head = nn.Linear(config.d_model, vocab_size)
        for name, parameter in self.layers.named_parameters():
            if parameter.ndim >= 2:
                nn.init.xavier_uniform_(parameter)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    @property
    def has_auxiliary_loss(self) -> bool:
        """Whether the config adds a loss on hidden states to that of the tokens."""
        return self.config.hidden_loss != "none" and self.config.hidden_loss_weight > 0

    @property
    def max_length(self) -> None:
        """Number of tokens that a row can hold; there is no limit."""

    def new_cache(self, batch_size: int, max_length: int) -> HourglassCache:
        """Return an empty cache for `forward`, with room for `max_length` tokens a row."""
        return HourglassCache.empty(self.config, batch_size, max_length, like=self.embed.weight)

    @overload
    def forward(self, tokens_BT: Tensor, cache: HourglassCache | None = None) -> Tensor: ...
    @overload
    def forward(
        self, tokens_BT: Tensor, cache: None = None, *, return_hidden: Literal[True]
    ) -> tuple[Tensor, list[Tensor]]: ...
    def forward(
        self, tokens_BT: Tensor, cache: HourglassCache | None = None, *, return_hidden: bool = False
    ) -> Tensor | tuple[Tensor, list[Tensor]]:
        """Return logits of shape (B, T, V) for the id after each of `tokens_BT`.

        Args:
            tokens_BT: int64 ids, any number of them; padding only at the end of a row.
            cache: what came before `tokens_BT` in each row; the call appends to it in place. Rows may hold different
                numbers of tokens, and padding is not counted, so a row's next token takes its place.
            return_hidden: return also the hidden states that `config.hidden_upsampled` tells of, from the outermost
                level inwards and out again: what enters the layers of each shorter scale, and what comes back up from
                them before it meets the vectors of the longer one.
        Raises:
            ValueError: padding before a token; a cache without room or of another batch size, or with
                `return_hidden`.
        """
        n_real_B = self.count_real(tokens_BT)
        if cache is None:
            scales = fresh_scales(self.config, tokens_BT.shape[1], tokens_BT.device)
        else:
            if return_hidden:
                raise ValueError("hidden states are those of a full pass; with a cache there are none to return")
            check_room(cache.length_B, cache.max_length, tokens_BT)
            scales = cached_scales(self.config, tokens_BT.shape[1], n_real_B, cache)
        x_BTD = self.embed(tokens_BT)
        x_BTD = self.dropout(x_BTD + sinusoids(scales[0].position_BT, self.config.d_model, x_BTD.dtype))
        hidden: list[Tensor] = []
        logits_BTV = self.head(self.layers(x_BTD, scales, hidden))
        if cache is not None:
            cache.advance(scales)
        return (logits_BTV, hidden) if return_hidden else logits_BTV

    def count_real(self, tokens_BT: Tensor) -> Tensor:
        """Return the number of tokens of each row."""
        hidden_BT = tokens_BT == self.pad_id
        if not torch.compiler.is_compiling() and padding_before_token(hidden_BT):
            raise ValueError(f"padding (id {self.pad_id}) may only stand at the end of a row")
        return (~hidden_BT).sum(dim=1)

    def auxiliary_loss(self, hidden: list[Tensor], tokens_BT: Tensor, counts: Sequence[float] | None = None) -> Tensor:
        """Return what is to be added to the mean cross entropy.

        Args:
            hidden, tokens_BT: what `forward` returned for which ids.
            counts: see `hidden_loss`.
        """
        return self.config.hidden_loss_weight * hidden_loss(
            self.config.hidden_loss, hidden, self._hidden_levels(), self.count_real(tokens_BT), counts
        )

    def auxiliary_counts(self, n_real_B: Tensor) -> list[int]:
        """Return what the auxiliary loss of each hidden state is a mean over, for the rows of a whole batch.

        Args:
            n_real_B: tokens that the model reads of each row, padding left out.
        """
        return hidden_counts(self.config.hidden_loss, self._hidden_levels(), n_real_B)

    def _hidden_levels(self) -> list[HiddenLevel]:
        return hidden_levels(self.config.factors, self.config.hidden_upsampled)
