"""Compilation of the loops over notes before their first use: `python -m tasks.dataset.precompile`.

Numba compiles a loop at its first call and keeps the machine code beside the source file. This module calls the loops
on some pieces of the sample corpus, with one process for each core.
"""

import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import get_args

import numpy as np
import torch

from models.config import DecoderConfig, Precision
from models.decoder.model import Decoder
from models.decoder.step import FEW_ROWS, DecoderStep
from tasks.config.dataset import AugmentConfig, DatasetConfig, WindowConfig
from tasks.dataset import analyse, encode
from tasks.errors import plural
from tasks.ingest import song_shards
from tasks.ingest.sources.sample_corpus import write_sample_corpus
from tasks.ingest.sources.scan import scan_sources
from tasks.music.midi.read_midi import read_midi
from tasks.music.midi.validity import check_validity
from tasks.music.midi.writer import write_midi
from tasks.music.similarity import fingerprint, shared_runs
from tasks.music.tokenizers.optimus.int_tokenizer import OptimusIntConfig
from tasks.music.tokenizers.optimus.text_tokenizer import OptimusTxtConfig
from tasks.music.tokenizers.registry import TokenizerConfig, build_tokenizer, default_config
from tasks.runtime.cluster import n_cpus
from tasks.storage.parquet import read_table

N_PIECES = 6
AUGMENT = AugmentConfig(transpositions=(-1, 0, 1), stretches=(0.9, 1.0), velocity_shifts=(0, 1))
# Settings whose loops the defaults do not call.
ALSO: dict[str, list[TokenizerConfig]] = {
    "optimus_int": [OptimusIntConfig(instruments=True, channels_by="order")],
    "optimus_txt": [OptimusTxtConfig(channels=True, melody_conditioned=True)],
}
# Shared loops are compiled first. Long jobs begin before short ones.
ROUNDS = (("reading", "analysing"), ("remi", "oore", "mmm", "comparing", "sampling", "optimus_int", "optimus_txt"))


def main() -> None:
    """Compile all loops in parallel, or those of the jobs named in the arguments in this process."""
    if sys.argv[1:]:
        with tempfile.TemporaryDirectory() as folder:
            jobs = {
                "reading": lambda _: song_shards.prepare(),
                "analysing": lambda _: analyse.prepare(),
                "comparing": _compare,
                "sampling": _sample,
            }
            for job in sys.argv[1:]:
                jobs.get(job, partial(_encode, job))(Path(folder))
        return
    started, n_done, n_jobs = time.monotonic(), 0, sum(map(len, ROUNDS))
    print(f"compiling {n_jobs} groups of loops on {plural(n_cpus(), 'core')}, two minutes of CPU time", flush=True)
    with ThreadPoolExecutor(n_cpus()) as threads:
        for jobs in ROUNDS:
            for finished in as_completed(threads.submit(_run, job) for job in jobs):
                n_done += 1
                seconds = time.monotonic() - started
                print(f"compiled {n_done} of {n_jobs}: {finished.result()} ({seconds:.0f} s)", flush=True)


def _run(job: str) -> str:
    subprocess.run([sys.executable, "-m", "tasks.dataset.precompile", job], check=True)
    return job


def _encode(name: str, folder: Path) -> None:
    """Encode some pieces in all variants, whole and in windows of bars, and decode the tokens."""
    write_sample_corpus(folder / "midi", N_PIECES)
    config = DatasetConfig(sources=(str(folder / "midi"),))
    files = scan_sources(config.sources, folder / "cache", config.source_limits).files
    contents = song_shards.distinct_contents(files)
    songs = song_shards.plan_song_shards(config.parse, contents, folder / "songs")
    song_shards.parse_isolated(songs)
    wanted = []
    for shard in songs:
        pieces = read_table(shard.path, columns=["piece"]).column("piece").combine_chunks()
        wanted.append((shard.path, "train", pieces))
    default, bars = default_config(name), replace(WindowConfig(), bars=4)
    for config, windows in ((default, WindowConfig()), (default, bars), *((each, bars) for each in ALSO.get(name, ()))):
        tokens = encode.plan_token_shards(wanted, config, AUGMENT, folder / "tokens", windows)
        for shard in tokens:
            encode.encode_songs([shard])
        tokenizer = build_tokenizer(tokens[0].encoding)
        for shard in tokens:
            for ids in read_table(shard.path).column("tokens").to_pylist()[:2]:
                tokenizer.decode(np.array(ids))
                tokenizer.transpose_ids(np.array(ids), 1)


def _compare(folder: Path) -> None:
    """Check one piece and search its runs shared with another, as an evaluation does."""
    one, other = (read_midi(path) for path in write_sample_corpus(folder / "midi", 2))
    check_validity(write_midi(one), one)
    lines = []
    for notes in (one.notes, other.notes):
        bounds = np.array([0, len(notes.pitch)])
        lines.append(shared_runs.draw_lines(bounds, notes.onset_seconds, notes.pitch, notes.is_drum))
    pair = np.zeros(1, np.int64)
    fingerprint.count_equal(np.zeros((1, fingerprint.N_WORDS), np.uint32), pair, pair)
    source = lines[1]
    seeds = shared_runs.seeds_between(source.offsets, source.pitch)
    shared_runs.find_runs(lines[0].onset, lines[0].pitch, seeds, source.offsets, source.onset, source.pitch)


def _sample(_: Path) -> None:
    """Let a decoder make one step in each precision, with few rows and with many."""
    decoder = Decoder(DecoderConfig(d_model=16, n_heads=2, n_layers=1, d_ff=16), vocab_size=8).eval()
    for precision in get_args(Precision):
        step = DecoderStep(decoder, precision, 2)
        for n_rows in (1, FEW_ROWS + 1):
            with torch.inference_mode():
                step(torch.ones(n_rows, dtype=torch.long), decoder.new_cache(n_rows, 2, step.cache_dtype))


if __name__ == "__main__":
    main()
