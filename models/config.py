"""Settings of models, schedules, optimizers and sampling; importable without torch."""

import itertools
import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from models.settings import Settings, check_settings, setting


class HeadedConfig:
    """Base of the configs of models whose attention has several heads."""

    __slots__ = ()
    d_model: int
    n_heads: int

    @property
    def d_head(self) -> int:
        """Numbers per head: `d_model / n_heads`."""
        return self.d_model // self.n_heads

    def check_heads(self) -> None:
        """Check all settings, and that the heads divide the width."""
        check_settings(self)
        if self.d_model % self.n_heads:
            raise ValueError(f"d_model={self.d_model} is not a multiple of n_heads={self.n_heads}")

    def check_training(self, seq_len: int, n_parts: int) -> None:
        """Raise ValueError where the model cannot train on windows of `seq_len` tokens, a batch in `n_parts` parts."""

    @property
    def replacement_word(self) -> int | None:
        """Id of a word of the encoding that replaces tokens in training, or None."""
        return None

    @property
    def n_given(self) -> int:
        """Tokens at the beginning of a row that are given, and so never targets."""
        return 1


@dataclass(frozen=True, kw_only=True, slots=True)
class DecoderConfig(HeadedConfig):
    """Sizes and parts of a `Decoder`; the defaults with 416 tokens have 1,095,200 parameters."""

    has_latents: ClassVar[bool] = False
    name: Literal["decoder"] = "decoder"
    d_model: int = setting(128, "Width of the residual stream.", ge=1)
    n_heads: int = setting(8, "Attention heads; they divide `d_model`.", ge=1)
    n_layers: int = setting(3, "Layers.", ge=1)
    d_ff: int = setting(512, "Width between the two maps of the feed-forward part, gated or not.", ge=1)
    dropout: float = setting(0.1, "Dropout of embeddings and of what each layer adds.", ge=0, lt=1)
    attention_dropout: float = setting(0.0, "Dropout of attention weights.", ge=0, lt=1)
    feed_forward: Literal["plain", "gated"] = setting("plain", "`gated` multiplies with a second linear map.")
    activation: Literal["relu", "gelu", "silu"] = setting("relu", "Activation of the feed-forward part.")
    bias: bool = setting(True, "Biases in the linear maps and norms of the layers and in the last norm.")
    norm: Literal["layer", "rms"] = setting(
        "layer",
        "Norm before attention, before feed-forward and at the end: `layer` subtracts the mean, `rms` does not.",
    )
    norm_eps: float = setting(1e-6, "Added to the variance in norms.", gt=0)
    qk_norm: bool = setting(False, "Normalise queries and keys in each head.")
    relative_positions: Literal["none", "per_head", "shared", "rotary"] = setting(
        "per_head",
        "`per_head` and `shared` learn a vector for each distance, for each head or for all heads of a layer; `rotary`"
        " turns queries and keys.",
    )
    max_relative_distance: int = setting(
        1024, "Tokens; further ones share the vector of the furthest. For learned vectors only.", ge=1
    )
    absolute_positions: Literal["none", "sinusoidal", "learned"] = setting(
        "none", "`learned` limits a piece to `max_positions` tokens."
    )
    max_positions: int = setting(1024, "Tokens with learned absolute positions.", ge=1)
    embedding_scale: bool = setting(True, "Multiply the embeddings of tokens by the root of `d_model`.")
    head: Literal["biased", "unbiased", "tied"] = setting(
        "biased", "The last linear map, with or without a bias; `tied` uses the embeddings of tokens."
    )
    initialisation: Literal["music_transformer", "gpt", "rga", "scaled"] = setting(
        "music_transformer",
        "`gpt`: all matrices normal with 0.02. `rga`: as `gpt`, but uniform queries, keys, values and distances."
        " `scaled`: by the width of the input, and smaller, by the root of their number, for maps that add to the"
        " residual stream.",
    )

    def __post_init__(self) -> None:
        self.check_heads()
        if self.relative_positions == "rotary" and self.d_head % 2:
            raise ValueError(
                f"relative_positions='rotary' needs an even d_model / n_heads, not {self.d_model} / {self.n_heads}"
            )

    def check_training(self, seq_len: int, n_parts: int) -> None:
        """Raise ValueError where windows are longer than the learned positions."""
        if self.absolute_positions == "learned" and seq_len > self.max_positions:
            raise ValueError(f"seq_len={seq_len} is above model.max_positions={self.max_positions}")


@dataclass(frozen=True, kw_only=True, slots=True)
class HourglassConfig(HeadedConfig):
    """Sizes of an `Hourglass`; the defaults with 348 tokens have 33,795,676 parameters."""

    has_latents: ClassVar[bool] = False
    name: Literal["hourglass"] = "hourglass"
    d_model: int = setting(768, "Width of the residual stream.", ge=1)
    n_heads: int = setting(12, "Attention heads; they divide `d_model`.", ge=1)
    d_ff: int = setting(1536, "Width between the two maps of the feed-forward part.", ge=1)
    depths: tuple[int, ...] = setting(
        (2, 1, 2),
        "Layers from the full scale to the shortest and back to the full: (2, 1, 2) is the published [2, 1, 2], and"
        " (1, 2, 3, 4, 5) is [1, [2, 3, 4], 5]. One number is a plain stack without any shortening.",
        each={"ge": 1},
    )
    shorten_factor: int | tuple[int, ...] = setting(
        2, "Neighbours that become one vector; one number for all levels, or one for each, outermost first."
    )
    resampling: Literal["naive", "linear"] = setting(
        "naive", "`naive` takes the mean of a group and repeats it afterwards; `linear` learns both."
    )
    attention_resampling: bool = setting(True, "Attention between the two scales follows each resampling.")
    dropout: float = setting(0.1, "Dropout of embeddings and of what each layer adds.", ge=0, lt=1)
    max_relative_distance: int = setting(
        512, "Counted at each scale in its own vectors; further ones share the vector of the furthest.", ge=1
    )
    norm_eps: float = setting(1e-5, "Added to the variance in norms.", gt=0)
    hidden_loss: Literal["none", "cosine", "exp_cosine"] = setting(
        "none", "Loss added to the cross entropy, times `hidden_loss_weight`; see models/hourglass/losses.py."
    )
    hidden_loss_weight: float = setting(0.1, "Weight of `hidden_loss`.", ge=0)
    hidden_upsampled: bool = setting(
        False,
        "States behind the way up are among the hidden ones. After `naive` resampling the members of a group are"
        " equal there.",
    )

    def __post_init__(self) -> None:
        self.check_heads()
        if len(self.depths) % 2 == 0:
            raise ValueError(f"depths={self.depths} is not an odd number of depths")
        if len(self.factors) != self.n_levels or min(self.factors, default=2) < 2:
            raise ValueError(
                f"shorten_factor={self.shorten_factor} is not a factor of 2 or more for each of {self.n_levels} levels"
            )
        if self.hidden_loss != "none" and not self.n_levels:
            raise ValueError(f"hidden_loss={self.hidden_loss!r}, but depths={self.depths} shortens nothing")

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
class VaeConfig(HeadedConfig):
    """Sizes of a `Vae` and the terms of its loss; the defaults with 320 tokens have 1,747,338 parameters."""

    has_latents: ClassVar[bool] = True
    name: Literal["vae"] = "vae"
    family: Literal["encoder_decoder", "encoder"] = setting(
        "encoder_decoder",
        "`encoder_decoder`: a causal decoder looks at what the latent stands for. `encoder`: a second encoder makes"
        " all tokens of it at once.",
    )
    block: int = setting(
        512, "Tokens of a row besides its first one; shorter rows are filled up, as the latent has a fixed shape.", ge=1
    )
    d_model: int = setting(128, "Width of the residual stream.", ge=1)
    n_heads: int = setting(4, "Attention heads; they divide `d_model`.", ge=1)
    n_layers: int = setting(2, "Layers of each of the two stacks.", ge=1)
    dropout: float = setting(0.0, "Dropout of embeddings and of what each layer adds.", ge=0, lt=1)
    bias: bool = setting(False, "Biases in norms and linear layers of the stacks.")
    tied_embeddings: bool = setting(True, "Encoder, decoder and head share one table.")
    bottleneck: BottleneckKind = setting("variational_cnn", "Kind of bottleneck; see models/vae/bottlenecks.py.")
    channels: tuple[int, ...] = setting(
        (128, 256),
        "Sizes of the bottleneck's stages; the last one is the latent's. Each halves the length in a `cnn`.",
        each={"ge": 1},
    )
    kl_start: float = setting(0.0, "Weight of the divergence from the prior at the first step.", ge=0)
    kl_end: float = setting(0.1, "The same from step `kl_steps` on; it moves in a line in between.", ge=0)
    kl_steps: int = setting(25_000, "Steps from `kl_start` to `kl_end`.", ge=0)
    kl_reduction: Literal["per_token", "sum"] = setting(
        "per_token",
        "`per_token` weighs the divergence against the loss of each token; `sum`, as published, against the mean loss"
        " of a token, so that it weighs more with longer rows and larger batches.",
    )
    free_bits: float = setting(
        1.0, "Divergence of a piece, for each of its tokens, that costs nothing; keeps the latent in use.", ge=0
    )
    token_dropout: float = setting(
        0.0, "Probability of a token to be replaced, in training alone and in no target.", ge=0, lt=1
    )
    token_dropout_by: int | Literal["all"] = setting(
        4, "An id, such as that of [TDR]; or `all`: any id other than padding, drawn for each token."
    )
    token_dropout_in: Literal["decoder", "encoder", "both"] = setting("decoder", "Whose input loses tokens.")
    row_mode: Literal["whole", "modeling", "generation"] = setting(
        "whole",
        "`whole`: the encoder reads all that the decoder writes. `modeling`: all but the last token, as published."
        " `generation`: as `modeling`, and the decoder never reads the start token; its first target is the second"
        " token.",
    )

    def __post_init__(self) -> None:
        self.check_heads()
        if self.token_dropout_by != "all" and self.token_dropout_by < 0:
            raise ValueError(f"token_dropout_by={self.token_dropout_by} is below 0")
        if self.bottleneck != "none" and not self.channels:
            raise ValueError(f"channels={self.channels} are not one or more sizes")
        if self.bottleneck.endswith("cnn") and self.block % 2 ** len(self.channels):
            raise ValueError(
                f"block={self.block} is not a multiple of {2 ** len(self.channels)},"
                f" which {len(self.channels)} stages that halve the length need"
            )
        if self.family == "encoder" and self.token_dropout and self.token_dropout_in != "encoder":
            raise ValueError(
                f"token_dropout_in={self.token_dropout_in!r}: family='encoder' has no decoder that reads tokens"
            )
        if self.family == "encoder" and self.row_mode != "whole":
            raise ValueError(f"row_mode={self.row_mode!r}: family='encoder' has no decoder that reads tokens")

    def check_training(self, seq_len: int, n_parts: int) -> None:
        """Raise ValueError where windows are no blocks, or the divergence is summed over a batch in parts."""
        if seq_len != self.block:
            raise ValueError(f"seq_len={seq_len}, but model.block={self.block}: latents are of whole blocks")
        if self.kl_reduction == "sum" and n_parts > 1:
            raise ValueError(
                "model.kl_reduction='sum' is over a whole batch: it needs n_workers=1 and grad_accumulation_steps=1"
            )

    @property
    def replacement_word(self) -> int | None:
        """Id of a word of the encoding that replaces tokens in training, or None."""
        return self.token_dropout_by if self.token_dropout and self.token_dropout_by != "all" else None

    @property
    def n_given(self) -> int:
        """Tokens at the beginning of a row that are given; in the mode `generation` the decoder reads the last only."""
        return 2 if self.row_mode == "generation" else 1

    def kl_weight(self, step: int) -> float:
        """Return the weight of the divergence at a step."""
        share_done = min(step / self.kl_steps, 1.0) if self.kl_steps else 1.0
        return self.kl_start + (self.kl_end - self.kl_start) * share_done


@dataclass(frozen=True, kw_only=True, slots=True)
class NoamSchedule(Settings):
    """Rise over `warmup_steps`, then fall with the root of the step. Source: Vaswani et al. 2017, section 5.3."""

    name: Literal["noam"] = "noam"
    warmup_steps: int = setting(
        2000, "Steps of the rise; 0 or less: there is only the fall, as if 4000 steps had passed."
    )
    scale: float = setting(1.0, "Factor of the whole curve.", gt=0)


@dataclass(frozen=True, kw_only=True, slots=True)
class WarmupCosineSchedule(Settings):
    """Rise in a line to `max_lr`, then fall along half a cosine to `max_lr * min_lr_ratio`."""

    name: Literal["warmup_cosine"] = "warmup_cosine"
    max_lr: float = setting(1e-3, "Highest learning rate.", gt=0)
    warmup_steps: int = setting(200, "Steps of the rise.", ge=0)
    total_steps: int = setting(0, "Step that reaches the lowest rate; 0: the last step of the run.", ge=0)
    min_lr_ratio: float = setting(0.1, "Lowest learning rate over the highest.", ge=0, le=1)


@dataclass(frozen=True, kw_only=True, slots=True)
class ConstantSchedule(Settings):
    """The same learning rate at every step."""

    name: Literal["constant"] = "constant"
    rate: float = setting(6e-4, "The learning rate.", gt=0)


@dataclass(frozen=True, kw_only=True, slots=True)
class OneCycleSchedule(Settings):
    """Along half cosines up to `max_lr` and down again; Smith and Topin 2018, with torch's numbers."""

    name: Literal["one_cycle"] = "one_cycle"
    max_lr: float = setting(3e-4, "Highest learning rate.", gt=0)
    total_steps: int = setting(0, "Length of the cycle; 0: that of the run.", ge=0)
    rising_share: float = setting(0.2, "Share of the steps until the highest rate is reached.", gt=0, lt=1)
    first_divisor: float = setting(25.0, "The first rate is `max_lr` divided by it.", ge=1)
    last_divisor: float = setting(1e4, "The last rate is the first one divided by it.", ge=1)
    betas: tuple[float, float] | None = setting(
        (0.95, 0.85),
        "Adam's first beta falls from the first of the two to the second and rises again; none: it stays.",
        each={"ge": 0, "lt": 1},
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimizerConfig:
    """Settings of Adam, or of AdamW, which decays some of the weights."""

    name: Literal["adam", "adamw"] = setting("adam", "The optimizer.")
    betas: tuple[float, float] = setting(
        (0.9, 0.98), "Decay of the two averages of gradients.", each={"ge": 0, "lt": 1}
    )
    eps: float = setting(1e-8, "Added to the root of the second average.", gt=0)
    weight_decay: float = setting(0.0, "Decay of weights at each step, times the learning rate for AdamW.", ge=0)
    decay_params: Literal["matrices", "linear"] = setting(
        "matrices", "What AdamW decays: all `matrices`, so no biases and norms, or those of `linear` maps alone."
    )
    max_grad_norm: float | None = setting(
        1.0, "Longest gradient, taken over all parameters; none: never shortened.", gt=0
    )

    def __post_init__(self) -> None:
        check_settings(self)
        if len(self.betas) != 2:
            raise ValueError(f"betas={self.betas} are not two numbers")


Precision = Literal["float32", "float16", "int8"]


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingConfig:
    """How ids are drawn: subtract penalties, divide by the temperature, keep the likeliest by `top_k`, `top_p` and
    `min_p`, draw.
    """

    temperature: float = setting(1.0, "Above 0; below 1 favours likely ids.")
    final_temperature: float | None = setting(
        None,
        "Temperature at `max_tokens`, approached evenly from `temperature` at the first id; none: the same all along.",
        gt=0,
    )
    temperature_points: tuple[tuple[int, float], ...] = setting(
        (),
        "Pairs of a length in tokens and the temperature there, with straight lines between; they replace both above.",
    )
    top_k: int | None = setting(None, "Ids to keep; none: all.", ge=1)
    top_k_points: tuple[tuple[int, int], ...] = setting(
        (), "Pairs of a length in tokens and the ids to keep there, with straight lines between; they replace `top_k`."
    )
    top_p: float | None = setting(
        None, "Keep the smallest set of likeliest ids with at least this probability; none: all.", gt=0, le=1
    )
    min_p: float | None = setting(
        None,
        "Keep ids with at least this share of the likeliest one's probability (Nguyen et al. 2024); none: all.",
        gt=0,
        le=1,
    )
    presence_penalty: float = setting(
        0.0, "Subtracted once from the logit of an id that is among the last `penalty_tokens` of its piece.", ge=0
    )
    frequency_penalty: float = setting(0.0, "The same for each time that the id is there.", ge=0)
    penalty_tokens: int = setting(64, "Reach of both penalties.", ge=1)
    greedy: bool = setting(False, "Always take the likeliest id; temperatures and limits have no effect.")
    beams: int = setting(
        0, "Beginnings that beam search keeps; it returns the likeliest pieces and draws nothing. 0: no beam search.",
        ge=0, le=1024,
    )  # fmt: skip
    max_tokens: int = setting(1024, "Longest piece, its prompt included.", ge=1)
    min_new_tokens: int = setting(
        0, "Tokens behind the prompt before which a piece does not end, unless nothing else is allowed.", ge=0
    )
    precision: Precision = setting(
        "float16",
        "How a decoder's weights, keys and values are stored while it samples on a CPU; `int8` is of weights alone, the"
        " others have 16 bits. All sums are in float32. On a GPU it is bfloat16 for all but `float32`.",
    )
    threads: int = setting(
        1, "CPU threads of a process that samples; as the shape of a product, their number decides its last bits.",
        ge=1, le=256,
    )  # fmt: skip
    context_tokens: int | None = setting(
        None, "Most tokens that the model looks back on; none: the model's own limit, or all.", ge=2
    )
    kept_tokens: int | None = setting(
        None,
        "A full context starts anew with at most so many of its last tokens, from the beginning of a note on where the"
        " grammar knows it; below `context_tokens`. None: half of the context.",
        ge=1,
    )

    def __post_init__(self) -> None:
        check_temperature(self.temperature)
        check_settings(self)
        for length, temperature in _in_order("temperature_points", self.temperature_points):
            check_temperature(temperature, f" of temperature_points at {length}")
        for length, top_k in _in_order("top_k_points", self.top_k_points):
            check_top_k(top_k, f" of top_k_points at {length}")
        if self.min_new_tokens >= self.max_tokens:
            raise ValueError(f"min_new_tokens={self.min_new_tokens} is not 0 to below max_tokens={self.max_tokens}")
        if self.min_new_tokens and self.beams:
            raise ValueError(f"min_new_tokens={self.min_new_tokens} is for drawing, but beams={self.beams} draw none")
        if self.kept_tokens is not None and self.kept_tokens >= (self.context_tokens or math.inf):
            raise ValueError(f"kept_tokens={self.kept_tokens} is not below context_tokens={self.context_tokens}")


def _in_order(name: str, points: tuple[tuple[int, Any], ...]) -> tuple[tuple[int, Any], ...]:
    lengths = [length for length, _ in points]
    if lengths and (lengths[0] < 0 or any(one >= other for one, other in itertools.pairwise(lengths))):
        raise ValueError(f"{name}: the lengths {', '.join(map(str, lengths))} do not rise from 0 or more")
    return points


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
