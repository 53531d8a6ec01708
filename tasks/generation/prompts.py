"""Prompts from files, folders or a split of the model's dataset, cut to the requested length."""

import hashlib
import logging
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from models.registry import has_latents
from tasks.checkpoints import LoadedModel
from tasks.config.generation import GenerateConfig
from tasks.dataset.encode import grid_of
from tasks.dataset.ledger import paths_of
from tasks.dataset.split import SPLITS
from tasks.errors import BadScore, ConfigError, DatasetError, NotFound, plural
from tasks.evaluation.held_out import dataset_of, pieces_of_rows
from tasks.generation.infill import Canvas, Gap, ids_of, make_canvas
from tasks.ingest.sources.names import is_companion
from tasks.music.excerpt import Extent, beginning
from tasks.music.midi.read_midi import read_midi
from tasks.music.midi.writer import write_midi
from tasks.music.score import Score
from tasks.music.tokenizers.base import TokenArray, TokenBatch
from tasks.music.tokenizers.optimus.lines import HEADER_BEFORE_COUNT
from tasks.music.tokenizers.optimus.text_tokenizer import OptimusTxtTokenizer, notes_in_header
from tasks.music.windows import cut_windows
from tasks.sampling.chain import chain_shape
from tasks.sampling.latents import latents_of
from tasks.sampling.sample_ids import check_prompt_ids, check_request, opening_ids, piece_limit
from tasks.storage.file_names import MIDI_SUFFIXES, is_midi, printable
from tasks.storage.home import Home
from tasks.storage.parquet import read_table
from tasks.storage.user_paths import as_text, check_there, path_of, read_input
from tasks.training.token_dataset import TokenDataset

logger = logging.getLogger(__name__)

LONG_SILENCE_SECONDS = 8.0

SPLIT_MARK = "split:"  # before the name of a split
TEXT_MARK, TEXT_SUFFIX = "text:", ".txt"  # before a text itself, and of a file of text


@dataclass(frozen=True, slots=True)
class Prompt:
    """The beginning that a piece continues."""

    name: str
    sha256: str
    ids: tuple[int, ...]  # <start> included
    n_whole: int = 0  # tokens of all of it; for a model with latents, of its first window
    window: tuple[int, ...] = ()  # the part of it that a latent is made of; empty for other models
    whole: TokenArray | None = field(default=None, repr=False, compare=False)  # all ids of what a piece continues
    path: str = ""  # of its file; of a split's piece, where the sources have it
    n_notes: int = 0  # of the file
    dropped: dict[str, int] = field(default_factory=dict)  # notes that the encoding left out or changed, by reason
    canvas: Canvas | None = None  # of which bars are written again
    lead_seconds: float = 0.0  # of silence before the first note of the file
    asked_notes: int = 0  # by the header of a text; 0: by none

    def n_compared(self, max_tokens: int) -> int:
        """Return the tokens of the file that a piece of `max_tokens` is compared with; 0 without a continuation."""
        return 0 if self.whole is None else max(min(max_tokens, len(self.whole)), len(self.ids))


def read_prompts(loaded: LoadedModel, config: GenerateConfig, home: Home | None = None) -> list[Prompt]:
    """Return the prompts that `config` names, in order of path or piece; without any, one that is only <start>.

    Args:
        home: where the model's dataset is, for prompts that are one of its splits.
    Raises:
        NotFound, BadScore: a path that does not exist, or a file that is not usable MIDI.
        ConfigError: the model or the prompts do not allow what the settings ask for; a prompt is too long, or the part
            of it that is used has no note.
    """
    is_text_file = config.prompt.endswith(TEXT_SUFFIX) and not path_of(config.prompt).is_dir()
    if config.prompt.startswith(TEXT_MARK) or is_text_file:
        check_request(loaded, config, 1)
        return [_text_prompt(loaded, config)]
    given = [
        found for name in (config.prompt, config.prompt_to) if name for found in _contents(name, loaded, config, home)
    ]
    check_request(loaded, config, len(given))
    if config.chain_bars:
        chain_shape(loaded, config)
    if not given:
        return [Prompt("", "", opening_ids(loaded))]
    prompts = []
    for name, path, data in given:
        try:
            score = read_midi(data, name)
        except BadScore as error:
            raise BadScore(error.reason, f"prompt {name}: {error.detail}") from None
        prompt = replace(_encode(loaded, config, name, data, score), path=path)
        check_prompt_ids(loaded, with_room(config, [prompt]), prompt.ids, name)
        limit = piece_limit(config)
        if limit and limit.is_filled_by(loaded.tokenizer.decode(np.array(prompt.ids))):
            raise ConfigError(f"prompt {name}: it already fills the {limit} that pieces may have; take less of it")
        prompts.append(prompt)
    return prompts


def _text_prompt(loaded: LoadedModel, config: GenerateConfig) -> Prompt:
    """Return the prompt of a text in the encoding `optimus_txt`; all of it is used.

    Raises:
        NotFound: the file cannot be read.
        ConfigError: the model has another encoding or lacks characters, or the text does not go on as music.
    """
    tokenizer, text = loaded.tokenizer, config.prompt.removeprefix(TEXT_MARK)
    name = TEXT_MARK.rstrip(":")
    if text == config.prompt:
        name = Path(text).name
        try:
            text = read_input(path_of(text)).decode()
        except UnicodeDecodeError as error:
            raise ConfigError(f"prompt {name} is not UTF-8: {error}") from None
    if not isinstance(tokenizer, OptimusTxtTokenizer):
        raise ConfigError(
            f"prompt {name}: a text is for models of optimus_txt, but this one's encoding is {tokenizer.name}"
        )
    if config.infill_bars or config.variation:
        raise ConfigError(f"prompt {name}: infill_bars and variation are of music in MIDI, not of a text")
    try:
        ids = (tokenizer.start_id, *tokenizer.ids_of_text(text).tolist())
    except ConfigError as error:
        raise ConfigError(f"prompt {name}: {error}") from None
    if tokenizer.config.header == "count" and not HEADER_BEFORE_COUNT.startswith(text[: len(HEADER_BEFORE_COUNT)]):
        raise ConfigError(
            f"prompt {name}: a text for this model begins with {HEADER_BEFORE_COUNT}, for it knows no names; a dataset"
            " with encoding.header=name has them"
        )
    check_prompt_ids(loaded, config, ids, name)
    return Prompt(
        name, hashlib.sha256(text.encode()).hexdigest(), ids, n_whole=len(ids), asked_notes=notes_in_header(text)
    )


def warn_of_losses(prompts: Sequence[Prompt], tokenizer: Any) -> None:
    """Warn in one line each of prompts without a note, with a long silence first, and with notes that are left out."""
    continued = [prompt for prompt in prompts if prompt.name and not prompt.window]
    silent = [
        prompt for prompt in continued if prompt.n_notes and not len(tokenizer.decode(np.array(prompt.ids)).notes.pitch)
    ]
    late = [prompt for prompt in continued if prompt.lead_seconds > LONG_SILENCE_SECONDS]
    lossy = [prompt for prompt in prompts if prompt.dropped]
    if silent:
        logger.warning(
            "%d of %d prompts have no note among the tokens that are taken of them; the first: %s, %d tokens",
            len(silent), len(prompts), silent[0].name, len(silent[0].ids),
        )  # fmt: skip
    if late:
        logger.warning(
            "%d of %s with more than %g s of silence, which the pieces keep; the first: %s, %.1f s",
            len(late), "1 prompt begins" if len(prompts) == 1 else f"{len(prompts)} prompts begin",
            LONG_SILENCE_SECONDS, late[0].name, late[0].lead_seconds,
        )  # fmt: skip
    if lossy:
        dropped = sum((Counter(prompt.dropped) for prompt in lossy), Counter[str]())
        logger.warning(
            "%d of %d prompts hold notes that encoding %s leaves out or changes (%s of %d notes); the first: %s",
            len(lossy), len(prompts), tokenizer.name, _words(dropped), sum(prompt.n_notes for prompt in lossy),
            lossy[0].name,
        )  # fmt: skip


def _words(dropped: Mapping[str, int]) -> str:
    return ", ".join(f"{n} {reason}" for reason, n in sorted(dropped.items()))


def with_room(config: GenerateConfig, prompts: Sequence[Prompt]) -> GenerateConfig:
    """Return settings with room for each prompt whose bars are written again, twice as dense."""
    longest = max((prompt.n_whole for prompt in prompts if prompt.canvas), default=0)
    max_tokens = max(config.sampling.max_tokens, 2 * longest)
    return replace(config, sampling=replace(config.sampling, max_tokens=max_tokens))


def _dropped(tokens: TokenBatch) -> dict[str, int]:
    """Return the notes that an encoding left out or changed, by reason."""
    return {reason: n for reason, counts in tokens.dropped.items() if (n := int(counts.sum()))}


def _encode(loaded: LoadedModel, config: GenerateConfig, name: str, data: bytes, score: Score) -> Prompt:
    file = {"name": name, "sha256": hashlib.sha256(data).hexdigest(), "n_notes": len(score.notes.pitch)}
    if latents_of(loaded.model, config) == "prior":
        ids, tokens, canvas = _first_ids(loaded, config, name, score)
        lead = float(score.notes.onset_seconds.min())
        return Prompt(
            **file, ids=ids, n_whole=len(tokens.ids), whole=None if canvas else tokens.ids, dropped=_dropped(tokens),
            canvas=canvas, lead_seconds=lead,
        )  # fmt: skip
    assert has_latents(loaded.model)
    if config.infill_bars:
        raise ConfigError(f"infill_bars={list(config.infill_bars)}: bars are filled by decoders, not from latents")
    tokenizer, batch = loaded.tokenizer, score.notes
    bars = int(loaded.state["dataset"].get("window_bars", 0))
    if bars:
        batch = cut_windows(batch, bars, bars, grid_of(tokenizer.config))[0].take(np.array([0]))
    tokens = tokenizer.encode(batch)
    window = tuple(tokens.ids[: loaded.model.max_length].tolist())
    return Prompt(**file, ids=opening_ids(loaded), n_whole=len(tokens.ids), window=window, dropped=_dropped(tokens))


def _first_ids(
    loaded: LoadedModel, config: GenerateConfig, name: str, score: Score
) -> tuple[tuple[int, ...], TokenBatch, Canvas | None]:
    """Return the ids of the used part of a prompt, the tokens of all of it, and the canvas of an infilling.

    Where bars are written again, the used part is all before them, or all of it where each piece has other bars.
    """
    tokenizer = loaded.tokenizer
    tokens = tokenizer.encode(score.notes)
    if not int(tokens.n_notes[0]):
        raise ConfigError(
            f"prompt {name}: encoding {tokenizer.name} holds none of its notes ({_words(_dropped(tokens))} dropped)"
        )
    if config.infill_bars or config.variation:
        canvas = make_canvas(loaded, config, name, score)
        if config.variation:
            return ids_of(tokenizer, canvas.whole), tokens, canvas
        (span,) = canvas.spans(config, 0)
        return Gap(canvas.whole, span).prompt_ids(tokenizer), tokens, canvas
    extent = Extent(config.prompt_notes, config.prompt_bars, config.prompt_seconds)
    if not extent:
        ids = tokens.ids[: min(config.prompt_tokens, len(tokens.ids) - 1)]  # a whole short piece: without its <end>
        return tuple(ids.tolist()), tokens, None
    ids = ids_of(tokenizer, beginning(score, extent))
    if len(ids) == 1:
        part = plural(extent.n_bars, "bar") if extent.n_bars else f"{extent.seconds:g} seconds"
        part = "its first notes" if extent.n_notes else f"the first {part}"
        raise ConfigError(f"prompt {name}: {part} hold no note that encoding {tokenizer.name} keeps")
    return ids, tokens, None


def _contents(
    prompt: str, loaded: LoadedModel, config: GenerateConfig, home: Home | None
) -> Iterator[tuple[str, str, bytes]]:
    """Yield (name, path, MIDI) of the file, of the files below the folder, or of the pieces of a split."""
    if prompt.startswith(SPLIT_MARK):
        yield from _pieces_of_split(prompt.removeprefix(SPLIT_MARK), loaded, config, home)
        return
    files = _prompt_files(path_of(prompt))
    if len(files) > config.n_pieces:
        logger.info("prompt %s: the first %d of %d files, one for each piece", prompt, config.n_pieces, len(files))
    for name, path in files[: config.n_pieces]:
        try:
            if path.exists() and not path.is_file():
                raise NotFound(f"prompt {name} is no regular file but a folder, device or pipe ({path})")
            yield name, as_text(path), path.read_bytes()
        except OSError as error:
            raise NotFound(f"prompt {name}: {error.strerror} ({path})") from None


def _prompt_files(prompt: Path) -> list[tuple[str, Path]]:
    """Return (name, path) of the prompt, or of the MIDI files below it, in order of name."""
    check_there(prompt, "prompt")
    if prompt.is_file():
        if not is_midi(os.fsencode(prompt.name)):
            raise DatasetError(f"prompt {prompt} is neither a folder nor a {' '.join(MIDI_SUFFIXES)} file")
        if _is_companion(prompt, prompt.name):
            raise DatasetError(f"prompt {prompt} is no song but a file that macOS adds beside one (AppleDouble)")
        return [(printable(prompt.name), prompt)]
    named = [path for path in prompt.rglob("*") if is_midi(os.fsencode(path.name))]
    files = [path for path in named if not _is_companion(path, path.relative_to(prompt))]
    if len(files) < len(named):
        logger.info("prompt %s: %d files of macOS beside the songs are left out", prompt, len(named) - len(files))
    if not files:
        raise DatasetError(f"prompt {prompt} holds no MIDI file ({', '.join(MIDI_SUFFIXES)})")
    return sorted((printable(str(path.relative_to(prompt))), path) for path in files)


def _is_companion(path: Path, name: str | Path) -> bool:
    """Return whether a file is AppleDouble, by its name or first bytes; an unreadable one is reported as a prompt."""
    begin = b""
    with suppress(OSError):
        if path.is_file():  # a pipe would block
            with path.open("rb") as file:
                begin = file.read(4)
    return is_companion(os.fsencode(name), begin)


def _pieces_of_split(
    split: str, loaded: LoadedModel, config: GenerateConfig, home: Home | None
) -> Iterator[tuple[str, str, bytes]]:
    """Yield the first pieces of a split of the model's dataset, as its encoding holds them."""
    if split not in SPLITS:
        raise ConfigError(f"prompt={SPLIT_MARK}{split}: no such split; one of {', '.join(SPLITS)}")
    if home is None:
        raise ConfigError(f"prompt={SPLIT_MARK}{split}: no home to find the dataset in")
    dataset = dataset_of(loaded, home)
    store = TokenDataset(dataset.token_shards(split), dataset.flat_tokens)
    pieces = pieces_of_rows(dataset, split)[: config.n_pieces]
    path_of_piece = paths_of(read_table(dataset.ledger, ["piece", "path", "status"]), pieces)
    for row, piece in enumerate(pieces):
        ids = store.tokens[store.offsets[row] : store.offsets[row + 1]]
        midi = write_midi(loaded.tokenizer.decode(ids), f"{dataset.reference} {split} {row}")
        yield f"{split}/{row:04d}", path_of_piece.get(piece, ""), midi
