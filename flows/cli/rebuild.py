"""`orchestrion rebuild`."""

import json
from collections.abc import Sequence

from flows.cli.app import app
from flows.cli.options import (
    DEFAULT_HOME,
    DEFAULT_PRESET,
    AugmentOption,
    ConfigFileOption,
    EncodingOption,
    HomeOption,
    JsonOption,
    LicenceOption,
    NameOption,
    PresetOption,
    QuietOption,
    SetOption,
    SourceOption,
    VerboseOption,
    prepare,
    print_result,
)
from flows.cli.run_flow import build_config, run_flow


@app.command(epilog="Example: orchestrion rebuild --source ~/midi --name mine")
def rebuild(
    source: SourceOption = None,
    name: NameOption = "",
    licence: LicenceOption = None,
    encoding: EncodingOption = "",
    augment: AugmentOption = "",
    preset: PresetOption = DEFAULT_PRESET,
    overrides: SetOption = None,
    config_file: ConfigFileOption = None,
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
    quiet: QuietOption = False,
) -> None:
    """Turn sources of MIDI into a dataset version; what has not changed is not built again."""
    given = dataset_overrides(source, name, licence, encoding, augment)
    config = build_config(preset, given + (overrides or []), config_file)
    check_sources(config.dataset.sources)
    result = run_flow(prepare(home, verbose, quiet), "rebuild_dataset", config.dataset)
    counts = ("n_files", "n_accepted", "n_duplicate", "n_rejected", "n_notes", "n_tokens")
    print_result(result, as_json, ("dataset", "dataset_version", *counts, "ledger", "report", "reused", "seconds"))


def dataset_overrides(
    sources: Sequence[str] | None,
    name: str,
    licences: Sequence[str] | None,
    encoding: str = "",
    augment: str = "",
) -> list[str]:
    """Return the settings, as `a.b=value`, that the options of `rebuild` represent."""
    from tasks.ingest.sources.spec import absolute_source

    given = []
    if encoding:
        given.append(f"dataset.encoding.name={json.dumps(encoding)}")
    if augment:
        from tasks.config.augmentations import augmentation
        from tasks.config.serialization import to_json

        given.append(f"dataset.augment={json.dumps(to_json(augmentation(augment)))}")
    if sources:
        given.append(f"dataset.sources={json.dumps([absolute_source(source) for source in sources])}")
    if name:
        given.append(f"dataset.name={json.dumps(name)}")
    if licences:
        given.append(f"dataset.licences={json.dumps(licences)}")
    return given


def check_sources(sources: Sequence[str]) -> None:
    """Raise as `check_source` does for the first source that cannot be one; nothing is opened."""
    from tasks.ingest.sources.spec import check_source

    for source in sources:
        check_source(source)
