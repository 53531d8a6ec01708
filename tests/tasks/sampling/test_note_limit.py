"""A limit on how long notes may sound, kept by the sampler through the grammar's clock."""

import numpy as np
import pytest
import torch

from models.config import SamplingConfig
from models.registry import build_model
from models.sampling.grammar_mask import GrammarTables
from models.sampling.sample import sample
from tasks.music.tokenizers.oore import OoreTokenizer
from tests.samples import SMALL_MODEL

pytestmark = pytest.mark.slow  # seconds a test; see `make check`

TOKENIZER = OoreTokenizer()


def longest_note_seconds(max_note_seconds: float, batch_size: int = 4) -> tuple[float, list[list[int]]]:
    torch.manual_seed(0)
    model = build_model(SMALL_MODEL, TOKENIZER.vocab_size).eval()
    tables = GrammarTables.from_numpy(TOKENIZER.grammar, max_open=round(max_note_seconds * TOKENIZER.units_per_second))
    pieces = sample(
        model, [torch.tensor([TOKENIZER.start_id])] * 6, piece_indices=list(range(6)), seed=1,
        config=SamplingConfig(max_tokens=300), grammar=tables, end_id=TOKENIZER.end_id, batch_size=batch_size,
    )  # fmt: skip
    notes = [TOKENIZER.decode(ids.numpy()).notes for ids in pieces]
    longest = max(float((n.end_seconds - n.onset_seconds).max()) for n in notes if len(n.pitch))
    assert all(TOKENIZER.grammar.n_violations(ids.tolist()) == 0 for ids in pieces)
    return longest, [ids.tolist() for ids in pieces]


def test_no_note_outlives_the_limit_by_more_than_one_shift() -> None:
    free, _ = longest_note_seconds(0.0)
    limited, _ = longest_note_seconds(2.0)
    assert free > 4.0  # an untrained model lets notes hang
    assert limited <= 3.0 + 1e-9  # the longest time shift is one second


def test_the_limit_keeps_pieces_independent_of_the_batch() -> None:
    assert longest_note_seconds(1.0, batch_size=1)[1] == longest_note_seconds(1.0, batch_size=5)[1]


def test_the_clock_counts_the_units_of_the_shifts() -> None:
    assert TOKENIZER.grammar.time_V[TOKENIZER.token_id("time_shift_0")] == 1
    assert TOKENIZER.grammar.time_V[TOKENIZER.token_id("time_shift_124")] == 125
    assert np.count_nonzero(TOKENIZER.grammar.time_V) == 125
