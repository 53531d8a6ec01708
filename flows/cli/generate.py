"""`orchestrion generate`."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from flows.cli import options
from flows.cli.app import app
from flows.cli.blocks import BlockOptions
from flows.cli.registry import check_controls, find_model
from flows.cli.run_flow import build_config, complain, run_flow
from flows.services import environment
from tasks.errors import ConfigError, HomeError, Interrupted, OrchestrionError
from tasks.generation.batch_files import check_copy_target, copy_batch
from tasks.storage.files import json_text
from tasks.storage.home import Home

BATCH_FACTS = ("batch", "model_version", "n_pieces", "flags", "batch_dir", "gallery", "reused", "seconds")


TEXT = "text:"
NO_PATHS = ("split:", TEXT)  # how a prompt begins that is no path


@app.command(epilog="Example: orchestrion generate --model mine-music_transformer@champion -n 16 --prompt theme.mid")
@options.grouped
def generate(
    run: options.RunOptions,
    model: options.ModelOption = "",
    n_pieces: Annotated[int | None, typer.Option("-n", "--n-pieces", help="Pieces to compose.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Seed; the same seed gives the same bytes.")] = None,
    prompt: Annotated[
        str,
        typer.Option("--prompt", help="Music to continue: a MIDI file, a folder, or split:test of the dataset."),
    ] = "",
    text_prompt: Annotated[
        str,
        typer.Option(
            "--text-prompt",
            help="Characters to continue, for models of optimus_txt; \\n is a new line. --prompt takes .txt files.",
        ),
    ] = "",
    prompt_length: Annotated[
        int | None,
        typer.Option("--prompt-length", help="Tokens of the prompt, <start> included: generate.prompt_tokens."),
    ] = None,
    continue_length: Annotated[
        int | None,
        typer.Option(
            "--continue-length",
            help="Most tokens after the prompt; with --prompt-length they make generate.sampling.max_tokens.",
        ),
    ] = None,
    variation: Annotated[
        float | None,
        typer.Option("--variation", help="Share of the prompt's bars to rewrite, different ones in each piece; 0-1."),
    ] = None,
    best_of: Annotated[int | None, typer.Option("--best-of", help="Attempts at each piece; the best is kept.")] = None,
    reject_copies: Annotated[
        bool,
        typer.Option("--reject-copies", help="Rewrite pieces that share more with the training music than people do."),
    ] = False,
    request: Annotated[
        Path | None, typer.Option("--request", help="A TOML or JSON file that describes several batches.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--out",
            help="Folder for a copy of the batch and its results.json: new, empty or with a copy of the same batch; "
            "with --blocks, a MIDI file.",
        ),
    ] = None,
    preset: options.ModelPresetOption = "",
    fresh: options.FreshOption = False,
    blocks: BlockOptions = BlockOptions(),
) -> None:
    """Compose a batch of pieces with a page to review them; the same command continues after Ctrl-C."""
    environment.set_defaults()  # before torch, which asks once how threads wait for each other
    of_batches = {"-n": n_pieces, "--text-prompt": text_prompt, "--request": request, "--fresh": fresh}
    blocks.check(out, of_batches | {"--continue-length": continue_length})
    if text_prompt:
        if prompt:
            raise ConfigError("--prompt and --text-prompt both name what is continued; give one")
        prompt = TEXT + text_prompt.replace("\\n", "\n")
    given = {
        "n_pieces": n_pieces, "seed": seed, "prompt": _absolute_prompt(prompt) or None, "variation": variation,
        "best_of": best_of, "reject_copies": reject_copies or None, "prompt_tokens": prompt_length,
        "sampling.max_tokens": _max_tokens(prompt, prompt_length, continue_length),
    }  # fmt: skip
    settings = [f"generate.{key}={json.dumps(value)}" for key, value in given.items() if value is not None]
    if request is not None:
        if settings or run.overrides or model or preset or run.config_file or out:
            raise ConfigError(
                f"--request {request.name} holds all settings; leave out --model, --preset, --out and settings"
            )
        _generate_all(request, run.prepare(), fresh, run.as_json)
        return
    config = run.early_config("generate", preset, settings)
    _check_prompt(prompt)
    if out and not blocks.blocks:
        check_copy_target(out)
    where = run.prepare()
    found = find_model(where, model)
    config = config or run.config(found.preset, settings)
    _check_prompt(config.generate.prompt)
    if prompt_length and not config.generate.prompt:
        raise ConfigError(f"--prompt-length {prompt_length} is of a prompt; name one with --prompt")
    check_controls(where, found, config.generate)
    if blocks.blocks:
        base = build_config(preset or found.preset, ()).generate
        blocks.grow(where, found, config.generate, base, prompt_length, out, run.as_json)
        return
    result = run_flow(where, "generate", config.generate, model, fresh=fresh)
    if out:
        folder = Path(result["batch_dir"])
        copy_batch(folder, folder.with_name(f"{folder.name}.results.json"), out)
        result |= {"out": str(out.absolute())}
    more = [*["asked_notes"] * bool(result["asked_notes"]), *["out"] * bool(out)]
    options.print_result(result, run.as_json, (*BATCH_FACTS, *more))


def _generate_all(request: Path, where: Home, fresh: bool, as_json: bool) -> None:
    """Compose all batches of a request file, after all its settings, models and prompts are validated.

    A job that fails does not stop the others. All failures are reported at the end; the last decides the exit code.
    """
    from flows.cli.requests import read_request

    models = dict[str, Any]()

    def settings_of(model: str) -> Any:
        models[model] = models.get(model) or find_model(where, model)
        return build_config(models[model].preset, ()).generate

    jobs = read_request(request, settings_of)
    for job in jobs:
        _check_prompt(job.config.prompt)
        try:
            check_controls(where, models[job.model], job.config)
        except OrchestrionError as error:
            error.put_before(f"{request.name}: {job.name}")
            raise
    results, failed = [], list[OrchestrionError]()
    try:
        for job in jobs:
            try:
                result = run_flow(where, "generate", job.config, job.model, fresh=fresh)
            except OrchestrionError as error:
                error.put_before(f"{request.name}: {job.name}")
                if isinstance(error, (HomeError, Interrupted)):  # of all jobs
                    raise
                failed.append(error)
                continue
            results.append({"name": job.name} | result)
            if not as_json:
                options.print_result(results[-1], as_json, ("name", *BATCH_FACTS))
    finally:
        if as_json:
            typer.echo(json_text({"jobs": results}))
        for error in failed:
            complain(str(error))
    if failed:
        raise typer.Exit(failed[-1].exit_code)


def _max_tokens(prompt: str, prompt_length: int | None, continue_length: int | None) -> int | None:
    """Return the most tokens of a piece, its prompt included, or None where the settings decide."""
    if continue_length is None:
        return None
    if continue_length < 1:
        raise ConfigError(f"--continue-length={continue_length} is below 1")
    if prompt and prompt_length is None:
        raise ConfigError("--continue-length counts tokens after --prompt-length; give both")
    return (prompt_length or 1) + continue_length


def _absolute_prompt(prompt: str) -> str:
    from tasks.storage.user_paths import as_text, path_of

    return prompt if not prompt or prompt.startswith(NO_PATHS) else as_text(path_of(prompt).absolute())


def _check_prompt(prompt: str) -> None:
    from tasks.storage.user_paths import check_there, path_of

    if prompt and not prompt.startswith(NO_PATHS):
        check_there(path_of(prompt), "prompt")
