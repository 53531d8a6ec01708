"""The plan of a training run: what it says, and that it writes nothing."""

from dataclasses import replace
from pathlib import Path

from tasks.dataset.versions import DatasetVersion
from tasks.storage.home import Home
from tasks.training.job import run_dir_of
from tasks.training.plan import plan_training
from tests.samples import short_training


def test_a_new_run_is_described_and_nothing_is_written(dataset: DatasetVersion, tmp_path: Path) -> None:
    home, config = Home.at(tmp_path / "home"), replace(short_training(), keep_last_n=1)
    plan = plan_training(home, config, dataset)
    assert plan["run_dir"] == str(run_dir_of(home, config, dataset))
    assert (plan["status"], plan["step"], plan["n_steps"]) == ("new", 0, config.n_steps)
    assert plan["n_tokens"] == config.n_steps * config.batch_size * config.seq_len
    assert plan["disk_bytes"] == plan["n_parameters"] * 4 * 3 * 4  # last, best by loss, best by accuracy and one more
    assert plan["cpu_seconds"] > 0
    assert not home.root.exists()
