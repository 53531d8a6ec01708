"""`orchestrion evaluate`."""

from flows.cli import options
from flows.cli.app import app
from flows.cli.registry import find_model
from flows.cli.run_flow import run_flow


@app.command(epilog="Example: orchestrion evaluate --model sample-music_transformer_tiny@champion")
@options.grouped
def evaluate(
    run: options.RunOptions,
    model: options.ModelOption = "",
    dataset: options.DatasetOption = "",
    preset: options.ModelPresetOption = "",
) -> None:
    """Score a model on held-out music and make it the champion if it is the best so far."""
    config = run.early_config("evaluate", preset)
    where = run.prepare()
    config = config or run.config(find_model(where, model).preset)
    result = run_flow(where, "evaluate", config.evaluate, model, dataset)
    facts = ("model_version", "dataset_version", "promoted", "metrics", "report", "run_id", "seconds")
    options.print_result(result, run.as_json, facts)
