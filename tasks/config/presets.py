"""Presets: whole-run configs as functions, by name.

Each published system stands as it was described, with its schedule and its sizes, and has a twin that learns something
audible in minutes on two cores. Where the originals' defects were part of their settings, ours differ:
windows are taken from anywhere in a piece, and all scores are held out.
"""

from collections.abc import Callable
from dataclasses import replace

from models.config import (
    ConstantSchedule,
    DecoderConfig,
    HourglassConfig,
    NoamSchedule,
    OneCycleSchedule,
    OptimizerConfig,
    SamplingConfig,
    VaeConfig,
    WarmupCosineSchedule,
)
from tasks.config.augmentations import NO_AUGMENTATION
from tasks.config.dataset import AugmentConfig, DatasetConfig, WindowConfig
from tasks.config.evaluation import EvaluateConfig
from tasks.config.generation import GenerateConfig
from tasks.config.pipeline import PipelineConfig
from tasks.config.training import TrainConfig
from tasks.errors import ConfigError
from tasks.music.tokenizers.mmm.vocabulary import MmmConfig
from tasks.music.tokenizers.optimus.int_tokenizer import OptimusIntConfig
from tasks.music.tokenizers.optimus.text_tokenizer import OptimusTxtConfig
from tasks.music.tokenizers.remi.vocabulary import RemiConfig

# Encodings in beats do not know how fast the music is played, so that stretching it would only make copies.
TRANSPOSED = AugmentConfig(stretches=(1.0,))


def tiny(
    config: PipelineConfig, preset: str, model: object, n_steps: int, max_lr: float, **train: object
) -> PipelineConfig:
    """Return a config with a small model, trained for minutes with settings that suit small models on small data.

    Args:
        n_steps: as many as take minutes on two cores.
        max_lr: highest learning rate.
        train: other settings of the training.
    """
    settings: dict[str, object] = {
        "preset": preset,
        "model": model,
        "schedule": WarmupCosineSchedule(max_lr=max_lr, warmup_steps=100),
        "optimizer": OptimizerConfig(name="adamw", betas=(0.9, 0.95), weight_decay=0.01),
        "n_steps": n_steps,
        "batch_size": 8,
        "seq_len": 256,
        "validation_windows": 32,
        "eval_interval": 200,
        "checkpoint_interval": 200,
    }
    return PipelineConfig(
        dataset=config.dataset,
        train=TrainConfig(**(settings | train)),  # type: ignore[arg-type]
        evaluate=EvaluateConfig(seq_len=256, batch_size=16),
        generate=GenerateConfig(sampling=SamplingConfig(temperature=0.9, top_p=0.95, max_tokens=1024)),
    )


# S004, Music Transformer


def music_transformer() -> PipelineConfig:
    """S004 as published: 3 layers of 128, 1,095,200 parameters, Noam schedule."""
    return PipelineConfig(train=TrainConfig(preset="music_transformer"))


def music_transformer_large() -> PipelineConfig:
    """S004's large model: 6 layers of 256, 6,525,344 parameters."""
    model = DecoderConfig(d_model=256, n_layers=6, d_ff=1024)
    return PipelineConfig(train=TrainConfig(preset="music_transformer_large", model=model))


def music_transformer_tiny() -> PipelineConfig:
    """A Music Transformer that learns something audible in minutes on two cores."""
    model = DecoderConfig(d_model=128, n_heads=4, n_layers=2, d_ff=256, dropout=0.0, max_relative_distance=256)
    config = tiny(music_transformer(), "music_transformer_tiny", model, n_steps=2000, max_lr=6e-3)
    # So small a model forgets notes that it began more than a window ago; without a limit they ring to the end.
    return replace(config, generate=replace(config.generate, max_note_seconds=5.0))


def music_transformer_large_tiny() -> PipelineConfig:
    """The large Music Transformer's twin: deeper and narrower than that of the other."""
    model = DecoderConfig(d_model=96, n_heads=4, n_layers=4, d_ff=256, dropout=0.0, max_relative_distance=256)
    config = tiny(music_transformer_large(), "music_transformer_large_tiny", model, n_steps=1400, max_lr=4e-3)
    return replace(config, generate=replace(config.generate, max_note_seconds=5.0))


# S000, GPT with relative global attention

RGA = DecoderConfig(
    d_model=512,
    n_heads=8,
    n_layers=6,
    d_ff=512,
    attention_dropout=0.1,
    activation="gelu",
    norm_eps=1e-5,
    relative_positions="shared",
    absolute_positions="learned",
    embedding_scale=False,
    head="unbiased",
    initialisation="rga",
)
RGA_TINY = replace(
    RGA, d_model=128, n_heads=4, n_layers=3, d_ff=128, dropout=0.0, attention_dropout=0.0, max_relative_distance=256,
    max_positions=256,
)  # fmt: skip


def rga() -> PipelineConfig:
    """S000 for piano: 6 layers of 512 with relative global attention, 10,785,792 parameters, Noam schedule."""
    return PipelineConfig(
        dataset=DatasetConfig(encoding=OptimusIntConfig(), augment=NO_AUGMENTATION),
        train=TrainConfig(
            preset="rga",
            model=RGA,
            schedule=NoamSchedule(warmup_steps=4000),
            optimizer=OptimizerConfig(max_grad_norm=None),
            batch_size=4,
        ),
    )


def rga_multi() -> PipelineConfig:
    """S000 for several instruments: channel and velocity of each note as well."""
    config = rga()
    dataset = replace(config.dataset, encoding=OptimusIntConfig(instruments=True))
    return replace(config, dataset=dataset, train=replace(config.train, preset="rga_multi"))


def rga_tiny() -> PipelineConfig:
    """The twin of `rga` for minutes on two cores."""
    return tiny(rga(), "rga_tiny", RGA_TINY, n_steps=1800, max_lr=4e-3)


def rga_multi_tiny() -> PipelineConfig:
    """The twin of `rga_multi` for minutes on two cores."""
    return tiny(rga_multi(), "rga_multi_tiny", RGA_TINY, n_steps=1800, max_lr=4e-3)


# S001, character GPT

CHAR_GPT = replace(RGA, d_ff=2048, relative_positions="none", max_positions=512, initialisation="gpt")


def char_gpt() -> PipelineConfig:
    """S001: 6 layers of 512 over readable characters, 19,177,472 parameters and 1,024 for each character."""
    return PipelineConfig(
        dataset=DatasetConfig(encoding=OptimusTxtConfig(), augment=NO_AUGMENTATION),
        train=TrainConfig(
            preset="char_gpt",
            model=CHAR_GPT,
            schedule=ConstantSchedule(rate=6e-4),
            optimizer=OptimizerConfig(name="adamw", betas=(0.9, 0.95), weight_decay=0.1, decay_params="linear"),
            batch_size=48,
            seq_len=512,
        ),
        evaluate=EvaluateConfig(seq_len=512),
        generate=GenerateConfig(sampling=SamplingConfig(top_k=64, max_tokens=2048)),
    )


def char_gpt_tiny() -> PipelineConfig:
    """The twin of `char_gpt` for minutes on two cores."""
    model = replace(
        CHAR_GPT, d_model=128, n_heads=4, n_layers=3, d_ff=512, dropout=0.0, attention_dropout=0.0, max_positions=256
    )
    return tiny(char_gpt(), "char_gpt_tiny", model, n_steps=1200, max_lr=3e-3)


# S002, transformer with a variational bottleneck


def mmm_vae() -> PipelineConfig:
    """S002, encoder and decoder: four bars to a latent and back, 1,747,338 parameters with 320 words."""
    return PipelineConfig(
        dataset=DatasetConfig(encoding=MmmConfig(across_bars="tie"), windows=WindowConfig(bars=4), augment=TRANSPOSED),
        train=TrainConfig(
            preset="mmm_vae",
            model=VaeConfig(token_dropout=0.2),
            schedule=WarmupCosineSchedule(max_lr=1e-4, warmup_steps=1000, total_steps=50_000),
            optimizer=OptimizerConfig(name="adamw", betas=(0.9, 0.95), weight_decay=0.1),
            n_steps=50_000,
            batch_size=128,
            seq_len=512,
            windows="whole",
        ),
        evaluate=EvaluateConfig(seq_len=512),
        generate=GenerateConfig(sampling=SamplingConfig(max_tokens=513)),
    )


def mmm_encoder_vae() -> PipelineConfig:
    """S002, encoder alone: all words of the four bars at once, 1,550,474 parameters with 320 words."""
    config = mmm_vae()
    train = replace(config.train, preset="mmm_encoder_vae", model=VaeConfig(family="encoder"))
    return replace(config, train=train)


VAE_TINY = VaeConfig(block=336, d_model=64, channels=(64, 32), kl_steps=300, token_dropout=0.2)


def mmm_vae_tiny() -> PipelineConfig:
    """The twin of `mmm_vae` for minutes on two cores."""
    config = tiny(
        mmm_vae(), "mmm_vae_tiny", VAE_TINY, n_steps=1000, max_lr=2e-3, seq_len=336, windows="whole",
        validation_windows=64,
    )  # fmt: skip
    return replace(config, generate=replace(config.generate, sampling=SamplingConfig(temperature=0.9, max_tokens=337)))


def mmm_encoder_vae_tiny() -> PipelineConfig:
    """The twin of `mmm_encoder_vae` for minutes on two cores."""
    config = mmm_vae_tiny()
    model = replace(VAE_TINY, family="encoder", token_dropout=0.0)
    return replace(config, train=replace(config.train, preset="mmm_encoder_vae_tiny", model=model))


# S003, Hourglass


def hourglass() -> PipelineConfig:
    """S003: depths [2, 1, 2] of 768, the middle at half length; 33,795,676 parameters with 348 ids."""
    return PipelineConfig(
        dataset=DatasetConfig(encoding=RemiConfig(), augment=TRANSPOSED),
        train=TrainConfig(
            preset="hourglass",
            model=HourglassConfig(),
            schedule=OneCycleSchedule(),
            optimizer=OptimizerConfig(betas=(0.95, 0.999), max_grad_norm=0.5),
            n_steps=8000,  # of 30 windows, which the original gathered from ten steps of 3
            batch_size=30,
            grad_accumulation_steps=10,
            seq_len=512,
        ),
        evaluate=EvaluateConfig(seq_len=512),
    )


def hourglass_flat() -> PipelineConfig:
    """S003's baseline: 12 layers of 768 at full length, 58,047,324 parameters with 348 ids."""
    config = hourglass()
    model = HourglassConfig(depths=(12,), max_relative_distance=1024)
    train = replace(config.train, preset="hourglass_flat", model=model, seq_len=1024)
    return replace(config, train=train, evaluate=EvaluateConfig())


HOURGLASS_TINY = HourglassConfig(
    d_model=128, n_heads=4, d_ff=256, depths=(1, 3, 1), shorten_factor=4, dropout=0.0, max_relative_distance=256
)


def hourglass_tiny() -> PipelineConfig:
    """The twin of `hourglass` for minutes on two cores: the middle has more layers and a quarter of the length."""
    return tiny(hourglass(), "hourglass_tiny", HOURGLASS_TINY, n_steps=900, max_lr=3e-3)


def hourglass_flat_tiny() -> PipelineConfig:
    """The twin of `hourglass_flat`, of as many layers as `hourglass_tiny` but all at full length."""
    model = replace(HOURGLASS_TINY, depths=(5,), shorten_factor=2)
    return tiny(hourglass_flat(), "hourglass_flat_tiny", model, n_steps=900, max_lr=3e-3)


# Our own

MODERN = DecoderConfig(
    feed_forward="gated",
    activation="silu",
    bias=False,
    norm="rms",
    qk_norm=True,
    relative_positions="rotary",
    head="unbiased",
    initialisation="scaled",
)


def orchestrion_small() -> PipelineConfig:
    """Our own decoder: the best known settings for this size and data; see docs/decisions/0054-orchestrion-small.md."""
    return PipelineConfig(
        train=TrainConfig(
            preset="orchestrion_small",
            model=replace(MODERN, d_model=512, n_heads=8, n_layers=8, d_ff=1408),
            schedule=WarmupCosineSchedule(max_lr=1e-3, warmup_steps=500),
            optimizer=OptimizerConfig(name="adamw", betas=(0.9, 0.95), weight_decay=0.1),
        ),
    )


def orchestrion_small_tiny() -> PipelineConfig:
    """The twin of `orchestrion_small` for minutes on two cores."""
    model = replace(MODERN, d_model=128, n_heads=4, n_layers=2, d_ff=256, dropout=0.0)
    config = tiny(orchestrion_small(), "orchestrion_small_tiny", model, n_steps=1900, max_lr=6e-3)
    return replace(config, generate=replace(config.generate, max_note_seconds=5.0))


SYSTEMS: dict[Callable[[], PipelineConfig], str] = {
    music_transformer: "S004",
    music_transformer_large: "S004",
    music_transformer_tiny: "S004",
    music_transformer_large_tiny: "S004",
    rga: "S000",
    rga_multi: "S000",
    rga_tiny: "S000",
    rga_multi_tiny: "S000",
    char_gpt: "S001",
    char_gpt_tiny: "S001",
    mmm_vae: "S002",
    mmm_encoder_vae: "S002",
    mmm_vae_tiny: "S002",
    mmm_encoder_vae_tiny: "S002",
    hourglass: "S003",
    hourglass_flat: "S003",
    hourglass_tiny: "S003",
    hourglass_flat_tiny: "S003",
    orchestrion_small: "own",
    orchestrion_small_tiny: "own",
}
PRESETS = {preset.__name__: preset for preset in SYSTEMS}


def system_of(name: str) -> str:
    """Return the published system that a preset stands for, or "own"."""
    return SYSTEMS[PRESETS[name]]


def build_preset(name: str) -> PipelineConfig:
    """Return the named preset's whole-run config.

    Raises:
        ConfigError: no preset has that name; the message lists them.
    """
    if name not in PRESETS:
        raise ConfigError(f"unknown preset {name!r}; known: {', '.join(PRESETS)}")
    return PRESETS[name]()
