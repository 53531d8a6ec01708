"""The commands of the composer: a piece made block by block in a stored session."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from flows.cli.options import DEFAULT_HOME, HomeOption, JsonOption, ModelOption, print_list
from flows.cli.registry import find_model, tracker_of
from flows.services import environment
from tasks.errors import ConfigError, plural
from tasks.storage.files import json_text
from tasks.storage.home import Home

app = typer.Typer(
    help="Make a piece block by block: a model proposes, you listen, accept, ask again or undo.",
    no_args_is_help=True,
    epilog="Example: orchestrion compose start tune --prompt theme.mid && orchestrion compose propose tune",
)

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="Name of the session.")]
SeedOption = Annotated[int, typer.Option("--seed", min=0, help="The same seed and steps give the same piece.")]
PromptOption = Annotated[str, typer.Option("--prompt", help="A MIDI file to go on from.")]
PrimeOption = Annotated[
    str,
    typer.Option(
        "--prime", help="Without --prompt, begin with: start (nothing), dataset (an excerpt), random (notes)."
    ),
]
PrimeTokensOption = Annotated[
    int | None,
    typer.Option(
        "--prime-tokens", min=8, help="How much of such a beginning, or of --prompt; 256 of the former, all of a file."
    ),
]
MaxNoteOption = Annotated[
    float | None,
    typer.Option("--max-note-seconds", help="A note ends after so long, 0: never; by default as the preset generates."),
]
MinNewOption = Annotated[
    int | None,
    typer.Option(
        "--min-new-tokens", help="Of a block, before which the piece does not end; 64 and at least a note, 0: it may."
    ),
]
BlockTokensOption = Annotated[
    int | None, typer.Option("--block-tokens", help="Length of a block, at least; up to the next note boundary.")
]
BlockNotesOption = Annotated[int | None, typer.Option("--block-notes", help="Length of a block in notes instead.")]
ContextOption = Annotated[
    int | None, typer.Option("--context-tokens", help="How far back the model looks, 0: as far as it can.")
]
TemperatureOption = Annotated[float | None, typer.Option("--temperature", help="Above 1 is wilder, below 1 tamer.")]
TopKOption = Annotated[int | None, typer.Option("--top-k", help="Draw from the likeliest so many tokens.")]
TopPOption = Annotated[float | None, typer.Option("--top-p", help="Draw from the likeliest with this probability.")]
OutOption = Annotated[
    Path | None, typer.Option("-o", "--out", help="MIDI file to write; by default piece.mid in the session's folder.")
]

_STEPS = ("seed", "propose", "accept", "undo", "save")


@app.command(epilog="Example: orchestrion compose start tune --seed 7 --prompt theme.mid --block-notes 64")
def start(
    name: NameArgument,
    model: ModelOption = "",
    seed: SeedOption = 0,
    prompt: PromptOption = "",
    prime: PrimeOption = "start",
    prime_tokens: PrimeTokensOption = None,
    block_tokens: BlockTokensOption = None,
    block_notes: BlockNotesOption = None,
    context_tokens: ContextOption = None,
    temperature: TemperatureOption = None,
    top_k: TopKOption = None,
    top_p: TopPOption = None,
    max_note_seconds: MaxNoteOption = None,
    min_new_tokens: MinNewOption = None,
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
) -> None:
    """Begin a session: choose a model, and what the piece begins with."""
    config = _config(
        None, seed=seed, block_tokens=block_tokens, block_notes=block_notes, context_tokens=context_tokens,
        temperature=temperature, top_k=top_k, top_p=top_p, max_note_seconds=max_note_seconds,
        min_new_tokens=min_new_tokens,
    )  # fmt: skip
    with _locked(home, name, "start", create=True) as session:
        begun = _start(session, model, config, prime, prompt, prime_tokens, max_note_seconds is None)
        _print_state(session.describe(begun), as_json)


@app.command(epilog="Example: orchestrion compose propose tune --temperature 1.1")
def propose(
    name: NameArgument,
    block_tokens: BlockTokensOption = None,
    block_notes: BlockNotesOption = None,
    temperature: TemperatureOption = None,
    top_k: TopKOption = None,
    top_p: TopPOption = None,
    max_note_seconds: MaxNoteOption = None,
    min_new_tokens: MinNewOption = None,
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
) -> None:
    """Let the model write the next block, or another in its place, as MIDI to listen to; options are for it only."""
    given = {
        "block_tokens": block_tokens, "block_notes": block_notes, "temperature": temperature, "top_k": top_k,
        "top_p": top_p, "max_note_seconds": max_note_seconds, "min_new_tokens": min_new_tokens,
    }  # fmt: skip
    with _locked(home, name, "propose") as session:
        proposed = session.propose(_config(session.read().config, **given))
        _print_state(session.describe(proposed), as_json)


@app.command(epilog="Example: orchestrion compose grow tune --blocks 300")
def grow(
    name: NameArgument,
    blocks: Annotated[int, typer.Option("--blocks", min=1, help="How many blocks to add.")] = 10,
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
) -> None:
    """Let the model add block after block, all accepted; Ctrl-C stops, and what is there is kept."""
    with _locked(home, name, "grow") as session:
        primer = session.read().primer

        def tell(grown: Any) -> None:
            n_notes = primer.n_notes + sum(block.n_notes for block in grown.blocks)
            typer.echo(
                f"block {grown.blocks[-1].number}: {plural(len(grown.ids), 'token')}, {plural(n_notes, 'note')}",
                err=as_json,
            )

        _print_state(session.describe(session.grow(blocks, tell)), as_json)


@app.command(epilog="Example: orchestrion compose accept tune")
def accept(name: NameArgument, home: HomeOption = DEFAULT_HOME, as_json: JsonOption = False) -> None:
    """Make the proposal part of the piece."""
    with _locked(home, name, "accept") as session:
        _print_state(session.describe(session.accept()), as_json)


@app.command(epilog="Example: orchestrion compose undo tune")
def undo(name: NameArgument, home: HomeOption = DEFAULT_HOME, as_json: JsonOption = False) -> None:
    """Take the last accepted block away again; any number of times."""
    with _locked(home, name, "undo") as session:
        _print_state(session.describe(session.undo()), as_json)


@app.command(epilog="Example: orchestrion compose save tune -o tune.mid")
def save(
    name: NameArgument, out: OutOption = None, home: HomeOption = DEFAULT_HOME, as_json: JsonOption = False
) -> None:
    """Write the accepted piece as MIDI, and beside it where it comes from as JSON."""
    with _locked(home, name, "save") as session:
        _print_saved(session.save(out), as_json)


@app.command(epilog="Example: orchestrion compose show tune")
def show(name: NameArgument, home: HomeOption = DEFAULT_HOME, as_json: JsonOption = False) -> None:
    """Show a session: its piece, its blocks, what is proposed."""
    from tasks.composer.sessions import SessionFolder

    session = SessionFolder(Home.at(home), name)
    _print_state(session.describe(session.read()), as_json)


@app.command("list", epilog="Example: orchestrion compose list --json")
def list_all(home: HomeOption = DEFAULT_HOME, as_json: JsonOption = False) -> None:
    """List the sessions; one that cannot be read is listed with what is wrong."""
    from tasks.composer.sessions import SessionFolder, list_sessions
    from tasks.errors import OrchestrionError

    where = Home.at(home)
    rows: list[dict[str, Any]] = []
    for name in list_sessions(where):
        try:
            session = SessionFolder(where, name).read()
        except OrchestrionError as error:
            rows.append({"session": name, "problem": str(error)})
        else:
            pending = session.proposal is not None
            facts = {"model_version": session.model.reference, "n_blocks": len(session.blocks), "pending": pending}
            rows.append({"session": name, **facts, "n_tokens": len(session.ids), "problem": ""})
    columns = ("session", "model_version", "n_blocks", "n_tokens", "pending", "problem")
    rows = rows if as_json else [dict.fromkeys(columns, "-") | row for row in rows]
    print_list(rows, columns, as_json, "sessions")


@app.command(epilog='Example: orchestrion compose run tune "seed propose propose accept accept undo save"')
def run(
    name: NameArgument,
    script: Annotated[
        str,
        typer.Argument(
            metavar="STEPS",
            help="seed (start the session), propose, accept (proposes first where nothing waits), undo, save.",
        ),
    ],
    model: ModelOption = "",
    seed: SeedOption = 0,
    prompt: PromptOption = "",
    prime: PrimeOption = "start",
    prime_tokens: PrimeTokensOption = None,
    block_tokens: BlockTokensOption = None,
    block_notes: BlockNotesOption = None,
    context_tokens: ContextOption = None,
    temperature: TemperatureOption = None,
    top_k: TopKOption = None,
    top_p: TopPOption = None,
    max_note_seconds: MaxNoteOption = None,
    min_new_tokens: MinNewOption = None,
    out: OutOption = None,
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
) -> None:
    """Take several steps in one process; options are those of start, and count for seed."""
    steps = script.split()
    unknown = [step for step in steps if step not in _STEPS]
    if unknown or not steps:
        raise ConfigError(f"unknown step {' '.join(unknown[:1])!r}; known: {', '.join(_STEPS)}")
    config = _config(
        None, seed=seed, block_tokens=block_tokens, block_notes=block_notes, context_tokens=context_tokens,
        temperature=temperature, top_k=top_k, top_p=top_p, max_note_seconds=max_note_seconds,
        min_new_tokens=min_new_tokens,
    )  # fmt: skip
    saved = None
    with _locked(home, name, "run", create="seed" in steps) as session:
        for step in steps:
            if step == "seed":
                _start(session, model, config, prime, prompt, prime_tokens, max_note_seconds is None)
            elif step == "save":
                saved = session.save(out)
            else:
                if step == "accept" and session.read().proposal is None:
                    session.propose()
                getattr(session, step)()
        if saved and steps[-1] == "save":
            _print_saved(saved, as_json)
        else:
            _print_state(session.describe(session.read()), as_json)


@contextmanager
def _locked(home: str, name: str, command: str, create: bool = False) -> Iterator[Any]:
    from tasks.composer.sessions import locked_session
    from tasks.runtime.progress import Progress

    environment.configure_logging(0)
    environment.set_defaults(environment.SAMPLING)  # before torch, which asks once how threads wait for each other
    held = locked_session(Home.at(home), name, f"orchestrion compose {command} {name}", create)
    with Progress(f"compose {command}"), held as session:
        yield session


def _config(base: Any, **given: Any) -> Any:
    """Return `base`, or the default settings, with what was given on the command line."""
    import dataclasses

    from tasks.composer.blocks import ComposerConfig

    changes = {key: value for key, value in given.items() if value is not None}
    if "block_tokens" in changes and "block_notes" not in changes:
        changes["block_notes"] = 0  # of a session with blocks in notes, this one in tokens
    try:
        return dataclasses.replace(base or ComposerConfig(), **changes)
    except ValueError as error:
        raise ConfigError(str(error)) from None


def _start(
    session: Any, reference: str, config: Any, prime: str, prompt: str, prime_tokens: int | None, as_preset: bool
) -> Any:
    """Begin a session; `as_preset`: with the longest note that batches by the model's preset have."""
    import dataclasses

    from tasks.config.presets import PRESETS, build_preset
    from tasks.storage.user_paths import check_there

    if prime not in ("start", "dataset", "random"):
        raise ConfigError(f"--prime {prime}: known are start, dataset, random")
    if prompt and prime != "start":
        raise ConfigError(f"--prompt {prompt} and --prime {prime} are two beginnings; give one of them")
    if prompt:
        check_there(Path(prompt), "prompt")
    model = find_model(session.home, reference)
    tracker = tracker_of(session.home)
    assert tracker is not None  # `find_model` would have said so
    if as_preset and model.preset in PRESETS:
        config = dataclasses.replace(config, max_note_seconds=build_preset(model.preset).generate.max_note_seconds)
    return session.start(model, tracker.fetch(model), config, "midi" if prompt else prime, prompt, prime_tokens)


def _print_saved(saved: dict[str, Any], as_json: bool) -> None:
    if as_json:
        typer.echo(json_text(saved))
    else:
        typer.echo(
            f"{saved['path']}: {plural(saved['n_notes'], 'note')}, {saved['seconds']:g} s,"
            f" {plural(len(saved['blocks']), 'block')}"
        )


def _print_state(state: dict[str, Any], as_json: bool) -> None:
    if as_json:
        typer.echo(json_text(state))
        return
    primer, pending, statistics = state["primer"], state["pending"], state["statistics"]
    begins = " ".join(filter(None, (primer["kind"], primer["name"])))
    lines = {
        "session": state["session"],
        "model": f"{state['model_version']} ({state['encoding']})",
        "piece": f"{state['n_notes']} notes, {state['seconds']:g} s, {state['n_tokens']} tokens"
        + (", ended" if state["ended"] else ""),
        "begins with": f"{begins}: {primer['n_notes']} notes",
    }
    if primer["dropped"]:
        reasons = ", ".join(f"{reason} {n}" for reason, n in primer["dropped"].items())
        found = f"of {primer['n_file_notes']} notes in the file"
        lines["not held"] = f"{found}, {state['encoding']} leaves out or changes: {reasons}"
    for block in state["blocks"]:
        lines[f"block {block['number']}"] = _block_line(block)
    if pending:
        ends = ", ends the piece" if pending["ends"] else ""
        lines["proposed"] = f"{_block_line(pending)}, to {pending['seconds']:g} s{ends}"
        lines["listen to"] = f"{pending['midi']} or, alone, {pending['block_midi']}"
    shown = ("notes_per_second", "polyphony", "pitch_min", "pitch_max", "scale_consistency")
    lines["statistics"] = ", ".join(f"{key} {statistics[key]:.4g}" for key in shown)
    for label, text in lines.items():
        typer.echo(f"{label:>12}  {text}")


def _block_line(block: dict[str, Any]) -> str:
    return f"{block['n_notes']} notes, {block['n_tokens']} tokens (proposal {block['proposal']})"
