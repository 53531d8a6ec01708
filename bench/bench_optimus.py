"""How fast are notes turned into the encodings of Optimus VIRTUOSO? Ours against a plain Python loop of the same rules.

    python bench/bench_optimus.py --source some/folder

Both sides start from the same batch of notes in memory and give the same ids, which is checked; reading is not timed.
The sustain pedal is applied by the same function on both sides, in each round.
"""

from collections.abc import Callable, Iterator
from itertools import pairwise
from math import floor
from statistics import median
from typing import Any

import report

from tasks.errors import BadScore
from tasks.music.midi.read_midi import read_midi
from tasks.music.notes import NoteBatch
from tasks.music.tokenizers.optimus.int_tokenizer import LONGEST, MAX_REPEATS, OptimusIntConfig, OptimusIntTokenizer
from tasks.music.tokenizers.optimus.rows import CHANNEL_OF_PROGRAM
from tasks.music.tokenizers.optimus.text_tokenizer import OptimusTxtConfig, OptimusTxtTokenizer
from tasks.music.transforms import apply_sustain

PACKAGES = ("numpy", "numba")
Row = tuple[int, int, int, int, int]


def main() -> None:
    options = report.parser("Tokens a second of the encodings of Optimus VIRTUOSO.", rounds=5)
    options.add_argument("--files", type=int, default=100, help="files to encode, evenly spaced over the source")
    given = options.parse_args()
    with report.source_folder(given.source) as folder:
        scores = list(read_all(report.spread(report.midi_files(folder), given.files)))
        name = folder.name
    batch = NoteBatch.joined([score.notes for score in scores])
    cases: dict[str, tuple[Any, Callable[[NoteBatch, Any], list[int]]]] = {
        "int": (OptimusIntTokenizer(), plain_int),
        "int_split": (OptimusIntTokenizer(OptimusIntConfig(long_notes="split")), plain_int),
        "int_instruments": (OptimusIntTokenizer(OptimusIntConfig(instruments=True)), plain_int),
        "txt": (OptimusTxtTokenizer(learned(OptimusTxtConfig(), batch)), plain_txt),
        "txt_5": (OptimusTxtTokenizer(learned(OptimusTxtConfig(velocities=True, channels=True), batch)), plain_txt),
    }
    sides: dict[str, Callable[[], Any]] = {}
    for case, (tokenizer, plain) in cases.items():
        sides[case] = lambda tokenizer=tokenizer: tokenizer.encode(batch).ids
        sides[f"{case}_plain"] = lambda tokenizer=tokenizer, plain=plain: plain(batch, tokenizer)
    timings = report.measure(sides, given.rounds)
    record: dict[str, Any] = {"files": len(scores), "notes": batch.n_notes}
    for case in cases:
        ids = sides[case]()
        if ids.tolist() != sides[f"{case}_plain"]():
            raise SystemExit(f"{case}: the two sides give different ids")
        record[case] = {
            "tokens_per_second": round(len(ids) / timings[case].seconds),
            "tokens_per_cpu_second": round(len(ids) / median(timings[case].cpu)),
            "plain_tokens_per_second": round(len(ids) / timings[f"{case}_plain"].seconds),
            "ratio": round(timings[f"{case}_plain"].seconds / timings[case].seconds, 1),
            "tokens": len(ids),
            **timings[case].as_json(),
            "plain": timings[f"{case}_plain"].as_json(),
        }
    record = {
        "ratio": record["txt"]["ratio"],
        "ratio_means": "tokens/s of ours over a plain Python loop of the same rules, optimus_txt with 3 characters",
        **record,
    }
    report.save("optimus", name, record, given.results, PACKAGES)


def read_all(paths: list[Any]) -> Iterator[Any]:
    """Yield the files that can be read as scores."""
    for path in paths:
        try:
            yield read_midi(path)
        except BadScore:
            continue


def learned(config: OptimusTxtConfig, batch: NoteBatch) -> OptimusTxtConfig:
    return config.with_symbols(config.symbols(batch))


# --- the rules in plain Python


def plain_int(batch: NoteBatch, tokenizer: OptimusIntTokenizer) -> list[int]:
    """Return the ids of all pieces."""
    config = tokenizer.config
    max_repeats = MAX_REPEATS if config.long_notes == "split" else 0
    ids = []
    for rows in plain_rows(batch, config, config.instruments, LONGEST, max_repeats):
        ids += [0, 0, 0, 0, 0, 10] if config.instruments else [0]
        before = 0
        for onset, duration, pitch, channel, velocity in rows:
            delta = onset - before
            while delta > LONGEST:
                ids += [LONGEST + 33, 10]
                delta -= LONGEST
            if config.instruments:
                ids += [delta + 33, duration + 33, channel + 33, pitch + 33, velocity + 33, 10]
            else:
                ids += [delta + 33, duration + 33, pitch + 33, 10]
            before = onset
        ids.append(388)
    return ids


def plain_txt(batch: NoteBatch, tokenizer: OptimusTxtTokenizer) -> list[int]:
    """Return the ids of all pieces, without `melody_conditioned`."""
    config = tokenizer.config
    id_of_symbol = {symbol: 4 + rank for rank, symbol in enumerate(config.vocabulary)}
    ids = []
    for rows in plain_rows(batch, config, config.channels, config.max_units, 0):
        text = [f"SONG=Song_with_{len(rows)}_notes\n"] if config.header == "count" else []
        before, is_first = 0, True
        for onset, duration, pitch, channel, velocity in rows:
            if not is_first and not (config.chordify and onset == before):
                text.append("\n")
            text.append(symbol_of(min(onset - before, config.max_units)) + symbol_of(duration) + symbol_of(pitch))
            if config.velocities:
                text.append(symbol_of(velocity))
            if config.channels:
                text.append(symbol_of(channel))
            before, is_first = onset, False
        if rows:
            text.append("\n")
        ids += [1, *[id_of_symbol.get(symbol, 3) for symbol in "".join(text)], 2]
    return ids


def symbol_of(value: int) -> str:
    code = value + 33
    return chr(code + 0x800 if code >= 0xD800 else code)


def plain_rows(
    batch: NoteBatch, config: Any, has_channels: bool, longest: int, max_repeats: int
) -> Iterator[list[Row]]:
    """Yield the rows of each piece in order: onset, duration, pitch, channel, velocity; channels by families."""
    if config.sustain:
        batch = apply_sustain(batch)
    per_second = 1000 / config.unit_milliseconds
    grace = 0.5 + 1e-9 * per_second
    onsets, ends = batch.onset_seconds.tolist(), batch.end_seconds.tolist()
    pitches, velocities = batch.pitch.tolist(), batch.velocity.tolist()
    drums, channels = batch.is_drum.tolist(), CHANNEL_OF_PROGRAM[batch.program].tolist()
    has_velocities = getattr(config, "velocities", has_channels)
    for first, last in pairwise(batch.offsets.tolist()):
        keeps_drums = config.drums == "keep" or (
            config.drums == "if_alone" and (has_channels or all(drums[first:last]))
        )
        rows = []
        for note in range(first, last):
            if drums[note] and not keeps_drums:
                continue
            onset = floor(onsets[note] * per_second + grace)
            duration = max(floor(ends[note] * per_second + grace) - onset, 1)
            duration = min(duration, longest * max(max_repeats, 1))
            channel = (9 if drums[note] else channels[note]) if has_channels else 0
            # in this order: drums last, high pitches first, then what settles ties
            is_new, voice = 1, (channel == 9, -pitches[note], channel, -velocities[note] if has_velocities else 0)
            while max_repeats and duration >= longest:
                rows.append((onset, *voice, is_new, -longest))
                onset, duration, is_new = onset + longest, duration - longest, 0
            rows.append((onset, *voice, is_new, -duration))
        rows.sort()
        yield [(onset, -left, -pitch, channel, -velocity) for onset, _, pitch, channel, velocity, _, left in rows]


if __name__ == "__main__":
    main()
