"""Whole-run configs as functions, by name; `orchestrion presets` lists them."""

from collections.abc import Callable

from models.config import DecoderConfig, OptimizerConfig, SamplingConfig, WarmupCosineSchedule
from tasks.config import EvaluateConfig, GenerateConfig, PipelineConfig, TrainConfig
from tasks.errors import ConfigError


def music_transformer() -> PipelineConfig:
    """S004 as published: 3 layers of 128, 1,095,200 parameters, Noam schedule."""
    return PipelineConfig(train=TrainConfig(preset="music_transformer"))


def music_transformer_large() -> PipelineConfig:
    """S004's large model: 6 layers of 256, 6,525,344 parameters."""
    model = DecoderConfig(d_model=256, n_layers=6, d_ff=1024)
    return PipelineConfig(train=TrainConfig(preset="music_transformer_large", model=model))


def music_transformer_tiny() -> PipelineConfig:
    """A Music Transformer that learns something audible in about two minutes on two cores."""
    return PipelineConfig(
        train=TrainConfig(
            preset="music_transformer_tiny",
            model=DecoderConfig(d_model=128, n_heads=4, n_layers=2, d_ff=256, dropout=0.0, max_relative_distance=256),
            schedule=WarmupCosineSchedule(peak=6e-3, warmup_steps=100),
            optimizer=OptimizerConfig(name="adamw", betas=(0.9, 0.95), weight_decay=0.01),
            n_steps=2000,
            batch_size=8,
            window_tokens=256,
            validation_windows=32,
            evaluate_every=200,
            checkpoint_every=200,
        ),
        evaluate=EvaluateConfig(window_tokens=256, batch_size=16),
        # So small a model forgets notes that it began more than a window ago; without a limit they ring to the end.
        generate=GenerateConfig(
            sampling=SamplingConfig(temperature=0.9, top_p=0.95, max_tokens=1024), max_note_seconds=5.0
        ),
    )


PRESETS: dict[str, Callable[[], PipelineConfig]] = {
    preset.__name__: preset for preset in (music_transformer, music_transformer_large, music_transformer_tiny)
}

SYSTEMS = {"music_transformer": "S004", "music_transformer_large": "S004", "music_transformer_tiny": "S004"}


def build_preset(name: str) -> PipelineConfig:
    """Return the named preset's whole-run config.

    Raises:
        ConfigError: no preset has that name; the message lists them.
    """
    if name not in PRESETS:
        raise ConfigError(f"unknown preset {name!r}; known: {', '.join(PRESETS)}")
    return PRESETS[name]()
