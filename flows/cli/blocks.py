"""Options of `generate` for one long piece that grows by blocks, in place of a batch."""

import dataclasses
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from flows.cli.compose import report_block, saved_lines
from flows.cli.options import print_facts
from flows.cli.registry import tracker_of
from tasks.errors import ConfigError
from tasks.storage.file_names import MIDI_SUFFIXES
from tasks.storage.home import Home
from tasks.storage.user_paths import check_output

SETTINGS = (
    "seed", "device", "prompt", "max_note_seconds", "sampling.temperature", "sampling.top_k", "sampling.top_p",
    "sampling.greedy",
)  # fmt: skip
BLOCK_TOKENS = 1024


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class BlockOptions:
    """The number and size of blocks; without `blocks`, a batch is written."""

    blocks: Annotated[
        int | None,
        typer.Option("--blocks", min=1, help="Write one piece of so many blocks; Ctrl-C keeps whole blocks, as MIDI."),
    ] = None
    block_tokens: Annotated[
        int | None,
        typer.Option(
            "--block-tokens",
            min=1,
            help="Tokens of a block, --prime-tokens included, and those up to a note boundary; by default 1024.",
        ),
    ] = None
    prime_tokens: Annotated[
        int | None,
        typer.Option(
            "--prime-tokens",
            min=1,
            help="Tokens before it that begin a block; by default the model looks back on 2048 as far as it can.",
        ),
    ] = None

    def check(self, out: Path | None, of_batches: dict[str, Any]) -> None:
        """Raise ConfigError where an option does not belong to what is written.

        Args:
            out: the file of the piece.
            of_batches: the values of options that blocks do not have.
        """
        if self.blocks is None:
            if self.block_tokens or self.prime_tokens:
                raise ConfigError(
                    "--block-tokens and --prime-tokens are of a piece of blocks; say how many by --blocks"
                )
            return
        if given := [name for name, value in of_batches.items() if value]:
            raise ConfigError(
                f"{given[0]} is of a batch of pieces, but --blocks writes one long piece; give one of them"
            )
        if out:
            check_output(out)
            if out.suffix.lower() not in MIDI_SUFFIXES:
                raise ConfigError(f"--out {out} is not named as one of {' '.join(MIDI_SUFFIXES)}")

    def grow(
        self,
        home: Home,
        model: Any,
        config: Any,
        preset: Any,
        prompt_tokens: int | None,
        out: Path | None,
        as_json: bool,
    ) -> None:
        """Let a model write the blocks that are not there yet, and write the piece as MIDI, also after an interrupt.

        Args:
            config, preset: settings of a batch, as they are and as the preset has them.
            prompt_tokens: of a prompt's beginning; None: all of it.
        """
        from tasks.composer.sessions import locked_session, name_of_request, on_its_device
        from tasks.runtime.progress import Progress

        composer = on_its_device(self._composer_config(config, preset, prompt_tokens))
        if config.prompt.startswith(("split:", "text:")):
            raise ConfigError(f"--prompt {config.prompt}: --blocks continues a MIDI file")
        name = name_of_request(model, composer, config.prompt, prompt_tokens)
        held = locked_session(home, name, f"orchestrion generate --blocks ({name})", create=True)
        assert self.blocks is not None
        with Progress("generate"), held as session:
            if not session.state_path.exists():
                kind, checkpoint = "midi" if config.prompt else "start", tracker_of(home).fetch(model)
                session.start(model, checkpoint, composer, kind, config.prompt, prompt_tokens)
            n_there = len(session.read().blocks)
            if n_there > self.blocks:
                raise ConfigError(f"--blocks {self.blocks}: session {name} has {n_there} already")
            try:
                session.grow(self.blocks - n_there, partial(report_block, err=as_json))
            finally:
                if session.read().blocks:
                    print_facts(session.save(out), as_json, saved_lines)

    def _composer_config(self, config: Any, preset: Any, prompt_tokens: int | None) -> Any:
        from tasks.composer.blocks import ComposerConfig
        from tasks.config.serialization import to_json
        from tasks.training.resume import changed_settings

        used = {*SETTINGS, *(("prompt_tokens",) if prompt_tokens else ())}
        if unused := changed_settings(to_json(preset), to_json(config)).keys() - used:
            listed = ", ".join(f"generate.{name}" for name in SETTINGS)
            raise ConfigError(f"--blocks has no use for generate.{min(unused)}; it takes {listed}")
        n_tokens, n_primed = self.block_tokens or BLOCK_TOKENS, self.prime_tokens or 0
        if n_primed >= n_tokens:
            raise ConfigError(f"--prime-tokens {n_primed} is not below --block-tokens {n_tokens}")
        sampling = config.sampling
        context = {"context_tokens": n_tokens, "kept_tokens": n_primed} if n_primed else {}
        return ComposerConfig(
            seed=config.seed,
            device=config.device,
            block_tokens=n_tokens - n_primed,
            max_note_seconds=config.max_note_seconds,
            temperature=sampling.temperature,
            top_k=sampling.top_k,
            top_p=sampling.top_p,
            greedy=sampling.greedy,
            **context,
        )
