"""Settings of models, schedules, optimizers and sampling; importable without torch."""

import math
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal, get_args, get_origin


@dataclass(frozen=True, kw_only=True, slots=True)
class DecoderConfig:
    """Sizes and parts of a `Decoder`; the defaults with 416 tokens have 1,095,200 parameters.

    Args:
        d_ff: width between the two maps of the feed-forward part, gated or not.
        dropout: of embeddings and of what each layer adds; `attention_dropout` is that of the attention weights.
        feed_forward: "gated" multiplies the activation with a second linear map.
        bias: whether the linear maps and norms inside the layers, and the last norm, have one.
        norm: in front of attention and feed-forward and at the end: "layer" subtracts the mean, "rms" does not.
        qk_norm: normalise queries and keys in each head.
        relative_positions: "per_head" and "shared" learn a vector for each distance, for each head or for all heads
            of a layer; "rotary" turns queries and keys.
        max_relative_distance: tokens; further ones share the vector of the furthest. For learned vectors only.
        absolute_positions: "learned" limits a piece to `max_positions` tokens.
        embedding_scale: multiply the embeddings of tokens by the root of `d_model`.
        head: the last linear map, with or without a bias, or "tied": the embeddings of tokens once more.
        initialisation: "music_transformer", "gpt" (all matrices normal with 0.02), "rga" (as "gpt", but uniform
            queries, keys, values and distances) or "scaled" (by the width of the input, and smaller for maps that add
            to the residual stream, by the root of their number).
    """

    has_latents: ClassVar[bool] = False
    name: Literal["decoder"] = "decoder"
    d_model: int = 128
    n_heads: int = 8
    n_layers: int = 3
    d_ff: int = 512
    dropout: float = 0.1
    attention_dropout: float = 0.0
    feed_forward: Literal["plain", "gated"] = "plain"
    activation: Literal["relu", "gelu", "silu"] = "relu"
    bias: bool = True
    norm: Literal["layer", "rms"] = "layer"
    norm_eps: float = 1e-6
    qk_norm: bool = False
    relative_positions: Literal["none", "per_head", "shared", "rotary"] = "per_head"
    max_relative_distance: int = 1024
    absolute_positions: Literal["none", "sinusoidal", "learned"] = "none"
    max_positions: int = 1024
    embedding_scale: bool = True
    head: Literal["biased", "unbiased", "tied"] = "biased"
    initialisation: Literal["music_transformer", "gpt", "rga", "scaled"] = "music_transformer"

    def __post_init__(self) -> None:
        for field in ("d_model", "n_heads", "n_layers", "d_ff", "max_relative_distance", "max_positions"):
            if not getattr(self, field) >= 1:
                raise ValueError(f"{field}={getattr(self, field)} is below 1")
        if self.d_model % self.n_heads:
            raise ValueError(f"d_model={self.d_model} is not a multiple of n_heads={self.n_heads}")
        for field in ("dropout", "attention_dropout"):
            if not 0 <= getattr(self, field) < 1:
                raise ValueError(f"{field}={getattr(self, field)} is outside 0 to below 1")
        if not self.norm_eps > 0:
            raise ValueError(f"norm_eps={self.norm_eps} is not above 0")
        check_choices(self)
        if self.relative_positions == "rotary" and self.d_head % 2:
            raise ValueError(
                f"relative_positions='rotary' needs an even d_model / n_heads, not {self.d_model} / {self.n_heads}"
            )

    @property
    def d_head(self) -> int:
        """Numbers per head: `d_model / n_heads`."""
        return self.d_model // self.n_heads


@dataclass(frozen=True, kw_only=True, slots=True)
class HourglassConfig:
    """Sizes of an `Hourglass`; the defaults with 348 tokens have 33,795,676 parameters.

    Args:
        depths: layers from the full scale to the shortest and back to the full: (2, 1, 2) is the published [2, 1, 2]
            and (1, 2, 3, 4, 5) is [1, [2, 3, 4], 5]. One number is a plain stack without any shortening.
        shorten_factor: neighbours that become one vector; one number for all levels, or one for each, outermost first.
        resampling: "naive" takes the mean of a group and repeats it afterwards; "linear" learns both.
        attention_resampling: whether attention between the two scales follows on each of these.
        max_relative_distance: counted at each scale in its own vectors; further ones share the furthest one's vector.
        hidden_loss: what is added to the cross entropy, times `hidden_loss_weight`; see hourglass/losses.py.
        hidden_upsampled: whether states behind the way up are among the hidden ones. After "naive" resampling the
            members of a group are equal there.
    """

    has_latents: ClassVar[bool] = False
    name: Literal["hourglass"] = "hourglass"
    d_model: int = 768
    n_heads: int = 12
    d_ff: int = 1536
    depths: tuple[int, ...] = (2, 1, 2)
    shorten_factor: int | tuple[int, ...] = 2
    resampling: Literal["naive", "linear"] = "naive"
    attention_resampling: bool = True
    dropout: float = 0.1
    max_relative_distance: int = 512
    norm_eps: float = 1e-5
    hidden_loss: Literal["none", "cosine", "exp_cosine"] = "none"
    hidden_loss_weight: float = 0.1
    hidden_upsampled: bool = False

    def __post_init__(self) -> None:
        for field in ("d_model", "n_heads", "d_ff", "max_relative_distance"):
            if not getattr(self, field) >= 1:
                raise ValueError(f"{field}={getattr(self, field)} is below 1")
        if self.d_model % self.n_heads:
            raise ValueError(f"d_model={self.d_model} is not a multiple of n_heads={self.n_heads}")
        if len(self.depths) % 2 == 0 or min(self.depths) < 1:
            raise ValueError(f"depths={self.depths} is not an odd number of depths of 1 or more")
        if len(self.factors) != self.n_levels or min(self.factors, default=2) < 2:
            raise ValueError(
                f"shorten_factor={self.shorten_factor} is not a factor of 2 or more for each of {self.n_levels} levels"
            )
        check_choices(self)
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout} is outside 0 to below 1")
        if not self.norm_eps > 0:
            raise ValueError(f"norm_eps={self.norm_eps} is not above 0")
        if not self.hidden_loss_weight >= 0:
            raise ValueError(f"hidden_loss_weight={self.hidden_loss_weight} is below 0")
        if self.hidden_loss != "none" and not self.n_levels:
            raise ValueError(f"hidden_loss={self.hidden_loss!r}, but depths={self.depths} shortens nothing")

    @property
    def d_head(self) -> int:
        """Numbers per head: `d_model / n_heads`."""
        return self.d_model // self.n_heads

    @property
    def n_layers(self) -> int:
        """Layers of all levels together."""
        return sum(self.depths)

    @property
    def n_levels(self) -> int:
        """How often the sequence is shortened, 0 for a plain transformer."""
        return len(self.depths) // 2

    @property
    def factors(self) -> tuple[int, ...]:
        """One shorten factor for each level, outermost first."""
        if isinstance(self.shorten_factor, int):
            return (self.shorten_factor,) * self.n_levels
        return self.shorten_factor


BottleneckKind = Literal[
    "variational_cnn", "cnn", "variational_linear_2d", "linear_2d", "variational_linear_1d", "linear_1d", "none"
]


@dataclass(frozen=True, kw_only=True, slots=True)
class VaeConfig:
    """Sizes of a `Vae` and the terms of its loss; the defaults with 320 tokens have 1,747,338 parameters.

    Args:
        family: "encoder_decoder": a causal decoder looks at what the latent stands for. "encoder": a second encoder
            makes all tokens of it at once.
        block: tokens of a row besides its first one; shorter rows are filled up, for the latent has a fixed shape.
        bias: whether norms and linear layers of the stacks have biases.
        tied_embeddings: whether encoder, decoder and head share one table.
        bottleneck: see bottlenecks.py.
        channels: sizes of its stages; the last one is the latent's. Each halves the length in a "cnn".
        kl_start, kl_end, kl_steps: weight of the divergence from the prior, in a line from the first to the second
            over so many steps, then constant.
        kl_reduction: "per_token" weighs it against the loss of each token; "sum", as published, against the mean loss
            of a token, so that it weighs more with longer rows and larger batches.
        free_bits: divergence of a piece, for each of its tokens, that costs nothing; keeps the latent in use.
        token_dropout: probability of a token to be replaced, in training alone and in no target.
        token_dropout_by: an id, such as that of [TDR]; or "all": any other than padding, drawn for each.
        token_dropout_in: whose input that is done to.
    """

    has_latents: ClassVar[bool] = True
    name: Literal["vae"] = "vae"
    family: Literal["encoder_decoder", "encoder"] = "encoder_decoder"
    block: int = 512
    d_model: int = 128
    n_heads: int = 4
    n_layers: int = 2  # of each of the two stacks
    dropout: float = 0.0
    bias: bool = False
    tied_embeddings: bool = True
    bottleneck: BottleneckKind = "variational_cnn"
    channels: tuple[int, ...] = (128, 256)
    kl_start: float = 0.0
    kl_end: float = 0.1
    kl_steps: int = 25_000
    kl_reduction: Literal["per_token", "sum"] = "per_token"
    free_bits: float = 1.0
    token_dropout: float = 0.0
    token_dropout_by: int | Literal["all"] = 4
    token_dropout_in: Literal["decoder", "encoder", "both"] = "decoder"

    def __post_init__(self) -> None:
        for field in ("block", "d_model", "n_heads", "n_layers"):
            if not getattr(self, field) >= 1:
                raise ValueError(f"{field}={getattr(self, field)} is below 1")
        if self.d_model % self.n_heads:
            raise ValueError(f"d_model={self.d_model} is not a multiple of n_heads={self.n_heads}")
        an_id = () if self.token_dropout_by == "all" else ("token_dropout_by",)
        for field in ("kl_start", "kl_end", "kl_steps", "free_bits", *an_id):
            if not 0 <= getattr(self, field) < math.inf:
                raise ValueError(f"{field}={getattr(self, field)} is not a number of 0 or more")
        for field in ("dropout", "token_dropout"):
            if not 0 <= getattr(self, field) < 1:
                raise ValueError(f"{field}={getattr(self, field)} is outside 0 to below 1")
        for field, known in (
            ("family", ("encoder_decoder", "encoder")),
            ("bottleneck", get_args(BottleneckKind)),
            ("kl_reduction", ("per_token", "sum")),
            ("token_dropout_in", ("decoder", "encoder", "both")),
        ):
            if getattr(self, field) not in known:
                raise ValueError(f"{field}={getattr(self, field)!r} is not one of {', '.join(known)}")
        if self.bottleneck != "none" and (not self.channels or min(self.channels) < 1):
            raise ValueError(f"channels={self.channels} are not one or more sizes of 1 or more")
        if self.bottleneck.endswith("cnn") and self.block % 2 ** len(self.channels):
            raise ValueError(
                f"block={self.block} is not a multiple of {2 ** len(self.channels)},"
                f" which {len(self.channels)} stages that halve the length need"
            )
        if self.family == "encoder" and self.token_dropout and self.token_dropout_in != "encoder":
            raise ValueError(
                f"token_dropout_in={self.token_dropout_in!r}: family='encoder' has no decoder that reads tokens"
            )

    @property
    def d_head(self) -> int:
        """Numbers per head: `d_model / n_heads`."""
        return self.d_model // self.n_heads

    def kl_weight(self, step: int) -> float:
        """Return the weight of the divergence at a step."""
        share_done = min(step / self.kl_steps, 1.0) if self.kl_steps else 1.0
        return self.kl_start + (self.kl_end - self.kl_start) * share_done


@dataclass(frozen=True, kw_only=True, slots=True)
class NoamSchedule:
    """Rise over `warmup_steps`, then fall with the root of the step. Source: Vaswani et al. 2017, section 5.3.

    With `warmup_steps` of 0 or less there is only the fall, as if 4000 steps had passed.
    """

    name: Literal["noam"] = "noam"
    warmup_steps: int = 2000
    scale: float = 1.0

    def __post_init__(self) -> None:
        if not self.scale > 0:
            raise ValueError(f"scale={self.scale} is not above 0")


@dataclass(frozen=True, kw_only=True, slots=True)
class WarmupCosineSchedule:
    """Rise in a line to `max_lr`, then fall along half a cosine to `max_lr * min_lr_ratio`.

    Args:
        total_steps: step that reaches the floor; 0: the last step of the run.
    """

    name: Literal["warmup_cosine"] = "warmup_cosine"
    max_lr: float = 1e-3
    warmup_steps: int = 200
    total_steps: int = 0
    min_lr_ratio: float = 0.1

    def __post_init__(self) -> None:
        if not self.max_lr > 0:
            raise ValueError(f"max_lr={self.max_lr} is not above 0")
        if not self.warmup_steps >= 0:
            raise ValueError(f"warmup_steps={self.warmup_steps} is below 0")
        if not self.total_steps >= 0:
            raise ValueError(f"total_steps={self.total_steps} is below 0")
        if not 0 <= self.min_lr_ratio <= 1:
            raise ValueError(f"min_lr_ratio={self.min_lr_ratio} is outside 0-1")


@dataclass(frozen=True, kw_only=True, slots=True)
class ConstantSchedule:
    """The same learning rate at every step."""

    name: Literal["constant"] = "constant"
    rate: float = 6e-4

    def __post_init__(self) -> None:
        if not self.rate > 0:
            raise ValueError(f"rate={self.rate} is not above 0")


@dataclass(frozen=True, kw_only=True, slots=True)
class OneCycleSchedule:
    """Along half cosines up to `max_lr` and down again; Smith and Topin 2018, with the numbers that torch has for it.

    Args:
        total_steps: length of the cycle; 0: the run's.
        rising_share: of the steps, until the peak is reached.
        first_divisor: the first rate is `max_lr` divided by it.
        last_divisor: the last rate is the first one divided by it.
        betas: Adam's first beta falls from the first of the two to the second and rises again; None: it stays.
    """

    name: Literal["one_cycle"] = "one_cycle"
    max_lr: float = 3e-4
    total_steps: int = 0
    rising_share: float = 0.2
    first_divisor: float = 25.0
    last_divisor: float = 1e4
    betas: tuple[float, float] | None = (0.95, 0.85)

    def __post_init__(self) -> None:
        if not self.max_lr > 0:
            raise ValueError(f"max_lr={self.max_lr} is not above 0")
        if not self.total_steps >= 0:
            raise ValueError(f"total_steps={self.total_steps} is below 0")
        if not 0 < self.rising_share < 1:
            raise ValueError(f"rising_share={self.rising_share} is outside above 0 to below 1")
        for field in ("first_divisor", "last_divisor"):
            if not getattr(self, field) >= 1:
                raise ValueError(f"{field}={getattr(self, field)} is below 1")
        if self.betas is not None and not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas={self.betas} are not two numbers from 0 to below 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimizerConfig:
    """Settings of Adam, or of AdamW, which decays some of the weights.

    Args:
        decay_params: by AdamW: all "matrices", so no biases and norms, or those of "linear" maps alone.
        max_grad_norm: longest gradient, taken over all parameters; None: never shortened.
    """

    name: Literal["adam", "adamw"] = "adam"
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-8
    weight_decay: float = 0.0
    decay_params: Literal["matrices", "linear"] = "matrices"
    max_grad_norm: float | None = 1.0

    def __post_init__(self) -> None:
        check_choices(self)
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas={self.betas} are not two numbers from 0 to below 1")
        if not self.eps > 0:
            raise ValueError(f"eps={self.eps} is not above 0")
        if not self.weight_decay >= 0:
            raise ValueError(f"weight_decay={self.weight_decay} is below 0")
        if self.max_grad_norm is not None and not self.max_grad_norm > 0:
            raise ValueError(f"max_grad_norm={self.max_grad_norm} is not above 0; None turns clipping off")


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingConfig:
    """How ids are drawn: take penalties off, divide by the temperature, keep the likeliest by `top_k`, `top_p` and
    `min_p`, draw.

    Args:
        temperature: above 0; below 1 favours likely ids.
        final_temperature: that of a piece of `max_tokens`, to which it goes evenly from `temperature` at its first id;
            None: the same all along.
        top_k: ids to keep; None: all.
        top_p: keep the smallest set of likeliest ids with at least this probability, above 0 to 1; None: all.
        min_p: keep ids with at least this share of the likeliest one's probability, above 0 to 1; None: all. Source:
            Nguyen et al. 2024.
        presence_penalty, frequency_penalty: what is taken off the logit of an id that is among the last
            `penalty_tokens` of its piece: once, and for each time that it is there. 0 or more.
        greedy: always take the likeliest id; temperatures and what is kept have no effect.
        beams: keep so many beginnings and return the likeliest pieces; nothing is drawn then. 0: no beam search.
        max_tokens: longest piece, its prompt included.
        min_new_tokens: a piece does not end before so many are drawn behind its prompt, unless nothing else is allowed.
        context_tokens: most tokens that the model looks back on, 2 or more; None: the model's own limit, or all.
        kept_tokens: a context that is full starts anew with at most so many of its last tokens, from the beginning of
            a note on where the grammar tells it; fewer than `context_tokens`. None: half of the context.
    """

    temperature: float = 1.0
    final_temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    penalty_tokens: int = 64
    greedy: bool = False
    beams: int = 0
    max_tokens: int = 1024
    min_new_tokens: int = 0
    context_tokens: int | None = None
    kept_tokens: int | None = None

    def __post_init__(self) -> None:
        check_temperature(self.temperature)
        if self.final_temperature is not None:
            check_temperature(self.final_temperature, " as final_temperature")
        check_top_k(self.top_k)
        for name in ("presence_penalty", "frequency_penalty"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}={getattr(self, name)} is not a number from 0 on")
        if not self.penalty_tokens >= 1:
            raise ValueError(f"penalty_tokens={self.penalty_tokens} is below 1")
        for name in ("top_p", "min_p"):
            share = getattr(self, name)
            if share is not None and not 0 < share <= 1:
                raise ValueError(f"{name}={share} is outside above 0 to 1")
        if not 0 <= self.beams <= 1024:
            raise ValueError(f"beams={self.beams} is outside 0-1024")
        if not self.max_tokens >= 1:
            raise ValueError(f"max_tokens={self.max_tokens} is below 1")
        if not 0 <= self.min_new_tokens < self.max_tokens:
            raise ValueError(f"min_new_tokens={self.min_new_tokens} is not 0 to below max_tokens={self.max_tokens}")
        if self.min_new_tokens and self.beams:
            raise ValueError(f"min_new_tokens={self.min_new_tokens} is for drawing, but beams={self.beams} draw none")
        self._check_context()

    def _check_context(self) -> None:
        if self.context_tokens is not None and self.context_tokens < 2:
            raise ValueError(f"context_tokens={self.context_tokens} is below 2")
        if self.kept_tokens is not None and self.kept_tokens < 1:
            raise ValueError(f"kept_tokens={self.kept_tokens} is below 1")
        if self.kept_tokens is not None and self.kept_tokens >= (self.context_tokens or math.inf):
            raise ValueError(f"kept_tokens={self.kept_tokens} is not below context_tokens={self.context_tokens}")


def check_choices(config: Any) -> None:
    """Raise ValueError where a field of type `Literal` of a dataclass holds something else."""
    for field in fields(config):
        value = getattr(config, field.name)
        if get_origin(field.type) is Literal and value not in get_args(field.type):
            raise ValueError(f"{field.name}={value!r} is not one of {', '.join(map(repr, get_args(field.type)))}")


def check_temperature(temperature: float, where: str = "") -> float:
    """Return `temperature` as a float; raise ValueError where it is not finite and above 0."""
    if not (temperature > 0 and math.isfinite(temperature)):
        raise ValueError(f"temperature={temperature}{where} is not a number above 0; for no randomness set greedy")
    return float(temperature)


def check_top_k(top_k: int | None, where: str = "") -> int | None:
    """Return `top_k`, which is None or at least 1; raise ValueError otherwise."""
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k={top_k}{where} is below 1")
    return top_k


ModelConfig = DecoderConfig | HourglassConfig | VaeConfig  # told apart by `name`
ScheduleConfig = NoamSchedule | WarmupCosineSchedule | ConstantSchedule | OneCycleSchedule
