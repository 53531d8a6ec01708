"""The commands of the composer: a piece made block by block in a stored session."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from flows.cli.options import DEFAULT_HOME, HomeOption, JsonOption, ModelOption, grouped, print_facts, print_list
from flows.cli.registry import find_model, tracker_of
from flows.services import environment
from tasks.errors import ConfigError, OrchestrionError, plural
from tasks.storage.home import Home

app = typer.Typer(
    help="Make a piece block by block: a model proposes, you listen, accept, ask again or undo.",
    no_args_is_help=True,
    epilog="Example: orchestrion compose start tune --prompt theme.mid && orchestrion compose propose tune",
)

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="Name of the session.")]
OutOption = Annotated[
    Path | None, typer.Option("-o", "--out", help="MIDI file to write; by default piece.mid in the session's folder.")
]

_STEPS = ("seed", "propose", "accept", "undo", "save")
_PRIMES = ("start", "dataset", "random")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class SessionOptions:
    """Options of every command on a session."""

    home: HomeOption = DEFAULT_HOME
    as_json: JsonOption = False

    @contextmanager
    def locked(self, name: str, command: str, create: bool = False) -> Iterator[Any]:
        """Hold a session for a command that writes to it; see `locked_session`."""
        from tasks.composer.sessions import locked_session
        from tasks.runtime.progress import Progress

        environment.configure_logging(0)
        environment.set_defaults()  # before torch, which asks once how threads wait for each other
        held = locked_session(Home.at(self.home), name, f"orchestrion compose {command} {name}", create)
        with Progress(f"compose {command}"), held as session:
            yield session

    def show(self, state: dict[str, Any]) -> None:
        """Print the state of a session."""
        print_facts(state, self.as_json, _state_lines)

    def step(self, name: str, command: str) -> None:
        """Take one step without options, and print the state after it."""
        with self.locked(name, command) as session:
            self.show(session.describe(getattr(session, command)()))


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class BlockOptions:
    """Options of how a block is made; each is a setting of `ComposerConfig` of the same name."""

    device: Annotated[
        str | None, typer.Option("--device", help="auto, cpu or cuda; auto is a GPU where this machine has one.")
    ] = None
    block_tokens: Annotated[
        int | None,
        typer.Option("--block-tokens", help="Least tokens of a block; it ends at a note boundary."),
    ] = None
    block_notes: Annotated[int | None, typer.Option("--block-notes", help="Length of a block in notes instead.")] = None
    temperature: Annotated[float | None, typer.Option("--temperature", help="Above 1 is wilder, below 1 tamer.")] = None
    top_k: Annotated[int | None, typer.Option("--top-k", help="Draw from this many of the likeliest tokens.")] = None
    top_p: Annotated[
        float | None, typer.Option("--top-p", help="Draw from the likeliest tokens with this probability.")
    ] = None
    max_note_seconds: Annotated[
        float | None,
        typer.Option("--max-note-seconds", help="Longest note, 0: any; by default that of the model's preset."),
    ] = None
    min_new_tokens: Annotated[
        int | None,
        typer.Option(
            "--min-new-tokens", help="Tokens of a block before the piece may end; 64 and at least a note, 0: none."
        ),
    ] = None

    def config(self, base: Any = None, **more: Any) -> Any:
        """Return `base`, or the default settings, with the given options."""
        from tasks.composer.blocks import ComposerConfig

        given = {key: value for key, value in (dataclasses.asdict(self) | more).items() if value is not None}
        if "block_tokens" in given:
            given.setdefault("block_notes", 0)  # in a session with blocks in notes, this one is in tokens
        try:
            return dataclasses.replace(base or ComposerConfig(), **given)
        except ValueError as error:
            raise ConfigError(str(error)) from None


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class BeginOptions:
    """Options of what a piece begins with."""

    model: ModelOption = ""
    seed: Annotated[int, typer.Option("--seed", min=0, help="The same seed and steps give the same piece.")] = 0
    prompt: Annotated[str, typer.Option("--prompt", help="A MIDI file to continue.")] = ""
    prime: Annotated[
        str,
        typer.Option(
            "--prime", help="Beginning without --prompt: start (nothing), dataset (an excerpt) or random (notes)."
        ),
    ] = "start"
    prime_tokens: Annotated[
        int | None,
        typer.Option("--prime-tokens", min=8, help="Tokens of the beginning; by default 256, or all of --prompt."),
    ] = None
    context_tokens: Annotated[
        int | None, typer.Option("--context-tokens", help="Tokens that the model looks back on, 0: as many as it can.")
    ] = None

    def config(self, block: BlockOptions) -> Any:
        """Return the settings of a session."""
        return block.config(seed=self.seed, context_tokens=self.context_tokens)

    def start(self, session: Any, config: Any, as_preset: bool) -> Any:
        """Begin a session; `as_preset`: with the longest note that batches by the model's preset have."""
        from tasks.config.presets import PRESETS, build_preset
        from tasks.storage.user_paths import check_there

        if self.prime not in _PRIMES:
            raise ConfigError(f"--prime {self.prime}: known are {', '.join(_PRIMES)}")
        if self.prompt and self.prime != "start":
            raise ConfigError(f"--prompt {self.prompt} and --prime {self.prime} are two beginnings; give one of them")
        if self.prompt:
            check_there(Path(self.prompt), "prompt")
        model = find_model(session.home, self.model)
        checkpoint = tracker_of(session.home).fetch(model)
        if as_preset and model.preset in PRESETS:
            longest = build_preset(model.preset).generate.max_note_seconds
            config = dataclasses.replace(config, max_note_seconds=longest)
        kind = "midi" if self.prompt else self.prime
        return session.start(model, checkpoint, config, kind, self.prompt, self.prime_tokens)


@app.command(epilog="Example: orchestrion compose start tune --seed 7 --prompt theme.mid --block-notes 64")
@grouped
def start(name: NameArgument, begin: BeginOptions, block: BlockOptions, run: SessionOptions) -> None:
    """Begin a session: choose a model, and what the piece begins with."""
    config = begin.config(block)
    with run.locked(name, "start", create=True) as session:
        run.show(session.describe(begin.start(session, config, block.max_note_seconds is None)))


@app.command(epilog="Example: orchestrion compose propose tune --temperature 1.1")
@grouped
def propose(name: NameArgument, block: BlockOptions, run: SessionOptions) -> None:
    """Let the model write the next block, or another in its place, as MIDI; options are for this block only."""
    with run.locked(name, "propose") as session:
        run.show(session.describe(session.propose(block.config(session.read().config))))


@app.command(epilog="Example: orchestrion compose grow tune --blocks 300")
@grouped
def grow(
    name: NameArgument,
    run: SessionOptions,
    blocks: Annotated[int, typer.Option("--blocks", min=1, help="Blocks to add.")] = 10,
) -> None:
    """Let the model add blocks, all accepted; Ctrl-C stops and keeps them."""
    with run.locked(name, "grow") as session:
        run.show(session.describe(session.grow(blocks, partial(report_block, err=run.as_json))))


def report_block(grown: Any, err: bool) -> None:
    """Print the last block of a session, and the tokens and notes of the piece so far."""
    n_notes = grown.primer.n_notes + sum(block.n_notes for block in grown.blocks)
    counts = f"{plural(len(grown.ids), 'token')}, {plural(n_notes, 'note')}"
    typer.echo(f"block {grown.blocks[-1].number}: {counts}", err=err)


@app.command(epilog="Example: orchestrion compose accept tune")
@grouped
def accept(name: NameArgument, run: SessionOptions) -> None:
    """Make the proposal part of the piece."""
    run.step(name, "accept")


@app.command(epilog="Example: orchestrion compose undo tune")
@grouped
def undo(name: NameArgument, run: SessionOptions) -> None:
    """Remove the last accepted block; any number of times."""
    run.step(name, "undo")


@app.command(epilog="Example: orchestrion compose save tune -o tune.mid")
@grouped
def save(name: NameArgument, run: SessionOptions, out: OutOption = None) -> None:
    """Write the accepted piece as MIDI, and its origin beside it as JSON."""
    with run.locked(name, "save") as session:
        print_facts(session.save(out), run.as_json, saved_lines)


@app.command(epilog="Example: orchestrion compose show tune")
@grouped
def show(name: NameArgument, run: SessionOptions) -> None:
    """Show a session: its piece, its blocks and its proposal."""
    from tasks.composer.sessions import SessionFolder

    session = SessionFolder(Home.at(run.home), name)
    run.show(session.describe(session.read()))


@app.command("list", epilog="Example: orchestrion compose list --json")
@grouped
def list_all(run: SessionOptions) -> None:
    """List the sessions; one that cannot be read is listed with its problem."""
    from tasks.composer.sessions import SessionFolder, list_sessions

    where = Home.at(run.home)
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
    rows = rows if run.as_json else [dict.fromkeys(columns, "-") | row for row in rows]
    print_list(rows, columns, run.as_json, "sessions")


@app.command("run", epilog='Example: orchestrion compose run tune "seed propose propose accept accept undo save"')
@grouped
def run_script(
    name: NameArgument,
    script: Annotated[
        str,
        typer.Argument(
            metavar="STEPS",
            help="seed (start the session), propose, accept (proposes first if there is no proposal), undo, save.",
        ),
    ],
    begin: BeginOptions,
    block: BlockOptions,
    run: SessionOptions,
    out: OutOption = None,
) -> None:
    """Take several steps in one process; options are those of start, and count for seed."""
    steps = script.split()
    unknown = [step for step in steps if step not in _STEPS]
    if unknown or not steps:
        raise ConfigError(f"unknown step {' '.join(unknown[:1])!r}; known: {', '.join(_STEPS)}")
    config, saved = begin.config(block), None
    with run.locked(name, "run", create="seed" in steps) as session:
        for step in steps:
            if step == "seed":
                begin.start(session, config, block.max_note_seconds is None)
            elif step == "save":
                saved = session.save(out)
            else:
                if step == "accept" and session.read().proposal is None:
                    session.propose()
                getattr(session, step)()
        if saved and steps[-1] == "save":
            print_facts(saved, run.as_json, saved_lines)
        else:
            run.show(session.describe(session.read()))


def saved_lines(saved: dict[str, Any]) -> Iterator[str]:
    """Return the line about a saved piece."""
    counts = f"{plural(saved['n_notes'], 'note')}, {saved['seconds']:g} s, {plural(len(saved['blocks']), 'block')}"
    yield f"{saved['path']}: {counts}"


def _state_lines(state: dict[str, Any]) -> Iterator[str]:
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
        yield f"{label:>12}  {text}"


def _block_line(block: dict[str, Any]) -> str:
    return f"{block['n_notes']} notes, {block['n_tokens']} tokens (proposal {block['proposal']})"
