"""Parameters, metrics and files of a dataset version for the tracker."""

from tasks.dataset.card import dataset_card
from tasks.dataset.versions import DatasetVersion
from tasks.tracking.mlflow_tracker import Run


def log_dataset(run: Run, dataset: DatasetVersion) -> None:
    """Send a new dataset version to the tracker."""
    counts = dataset.manifest["counts"]
    run.log_params(dataset.manifest["config"], "dataset")
    figures = {key: value for key, value in counts.items() if key.startswith("n_")}
    run.log_metrics({f"dataset/{key}": value for key, value in figures.items()})
    run.use_dataset(dataset, "built")
    run.log_file(dataset.manifest_path)
    run.log_file(dataset.ledger)
    for path in (dataset.report, dataset.report.with_suffix(".png"), dataset.scatter, dataset.vocabulary):
        if path.exists():
            run.log_file(path)
    run.describe(dataset_card(dataset))
