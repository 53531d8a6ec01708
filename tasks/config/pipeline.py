"""Settings of the whole run."""

from dataclasses import dataclass, field

from tasks.config.dataset import DatasetConfig
from tasks.config.evaluation import EvaluateConfig
from tasks.config.generation import GenerateConfig
from tasks.config.training import TrainConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class PipelineConfig:
    """The whole run: rebuild, train, evaluate, generate."""

    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    generate: GenerateConfig = field(default_factory=GenerateConfig)
