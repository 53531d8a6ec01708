"""Settings of the whole run."""

from dataclasses import dataclass

from models.settings import setting
from tasks.config.dataset import DatasetConfig
from tasks.config.evaluation import EvaluateConfig
from tasks.config.generation import GenerateConfig
from tasks.config.training import TrainConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class PipelineConfig:
    """The whole run: rebuild, train, evaluate, generate."""

    dataset: DatasetConfig = setting(DatasetConfig, "The dataset version.")
    train: TrainConfig = setting(TrainConfig, "The training run.")
    evaluate: EvaluateConfig = setting(EvaluateConfig, "The evaluation.")
    generate: GenerateConfig = setting(GenerateConfig, "The batch of pieces.")
