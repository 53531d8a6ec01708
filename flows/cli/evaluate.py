"""`orchestrion evaluate`."""

from flows.cli.app import app
from flows.cli.options import (
    DEFAULT_HOME,
    ConfigFileOption,
    DatasetOption,
    HomeOption,
    JsonOption,
    ModelOption,
    ModelPresetOption,
    QuietOption,
    SetOption,
    VerboseOption,
    prepare,
    print_result,
)
from flows.cli.registry import find_model
from flows.cli.run_flow import build_config, early_config, run_flow


@app.command(epilog="Example: orchestrion evaluate --model sample-music_transformer_tiny@champion")
def evaluate(
    model: ModelOption = "",
    dataset: DatasetOption = "",
    preset: ModelPresetOption = "",
    overrides: SetOption = None,
    config_file: ConfigFileOption = None,
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
    quiet: QuietOption = False,
) -> None:
    """Score a model on held-out music and make it the champion if it is the best so far."""
    config = early_config("evaluate", preset, overrides or [], config_file)
    where = prepare(home, verbose, quiet)
    config = config or build_config(find_model(where, model).preset, overrides or [], config_file)
    result = run_flow(where, "evaluate", config.evaluate, model, dataset)
    print_result(
        result, as_json, ("model_version", "dataset_version", "promoted", "metrics", "report", "run_id", "seconds")
    )
