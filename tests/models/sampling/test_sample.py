"""Sampling: the same pieces in any batch, the grammar, the limits, and a slow sampler without a cache as the judge."""

import itertools
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from models.config import SamplingConfig
from models.decoder.model import Decoder
from models.sampling.choice import draw, keep_likeliest
from models.sampling.grammar_mask import GrammarRows, GrammarTables
from models.sampling.sample import FULL_EVERY, sample
from models.sampling.sampler import piece_uniforms
from tasks.music.tokenizers.oore import OoreTokenizer
from tests.models.toy_music import (
    END,
    PAD,
    TINY,
    VOCAB_SIZE,
    allowed_ids,
    build_decoder,
    build_grammar,
    build_prompts,
)


def run(
    config: SamplingConfig, *, n: int = 6, grammar: Any = None, decoder: Decoder | None = None, **more: Any
) -> list:
    """Return pieces, by default of a model in float64: errors of 1e-15 with the shape of a batch change no id."""
    pieces = sample(
        decoder or build_decoder().double(),
        more.pop("prompts", build_prompts(n)),
        more.pop("piece_indices", list(range(n))),
        seed=more.pop("seed", 5),
        config=config,
        grammar=grammar,
        end_id=END,
        pad_id=PAD,
        **more,
    )
    return [piece.tolist() for piece in pieces]


def sample_slowly(config: SamplingConfig, n: int, grammar: SimpleNamespace | None) -> list[list[int]]:
    """One piece at a time, the whole prefix again for each id, plain Python for the choice."""
    decoder = build_decoder().double().eval()
    pieces = []
    for index, prompt in enumerate(build_prompts(n)):
        ids, uniforms = prompt.tolist(), piece_uniforms(5, index, config.max_tokens)
        while len(ids) < config.max_tokens and ids[-1] != END:
            with torch.no_grad():
                logits = decoder(torch.tensor([ids]))[0, -1].tolist()
            allowed = allowed_ids(grammar, ids) if grammar else [token for token in range(VOCAB_SIZE) if token != PAD]
            for token, n_there in Counter(ids[-config.penalty_tokens :]).items():
                logits[token] -= config.presence_penalty + n_there * config.frequency_penalty
            if len(ids) - len(prompt) < config.min_new_tokens:
                logits[END] -= 100.0
            at_length = config
            if config.final_temperature is not None:
                share = len(ids) / (config.max_tokens - 1)
                now = config.temperature + share * (config.final_temperature - config.temperature)
                at_length = replace(config, temperature=now)
            if config.temperature_points:
                at_length = replace(at_length, temperature=on_the_line(config.temperature_points, len(ids)))
            if config.top_k_points:
                at_length = replace(at_length, top_k=round(on_the_line(config.top_k_points, len(ids))))
            ids.append(choose_slowly(at_length, {token: logits[token] for token in allowed}, uniforms[len(ids)]))
        pieces.append(ids)
    return pieces


def on_the_line(points: Sequence[tuple[int, float]], length: int) -> float:
    if length <= points[0][0]:
        return points[0][1]
    for (left, low), (right, high) in itertools.pairwise(points):
        if left <= length <= right:
            return low + (length - left) / (right - left) * (high - low)
    return points[-1][1]


def choose_slowly(config: SamplingConfig, logits: dict[int, float], uniform: float) -> int:
    ranked = sorted(logits, key=lambda token: (-logits[token], token))
    if config.greedy:
        return ranked[0]
    ranked = ranked[: config.top_k]
    weights = {token: math.exp((logits[token] - logits[ranked[0]]) / config.temperature) for token in ranked}
    total, kept, mass = sum(weights.values()), [], 0.0
    for token in ranked:
        is_in_nucleus = config.top_p is None or mass < config.top_p
        if is_in_nucleus and weights[token] >= (config.min_p or 0.0) * weights[ranked[0]]:
            kept.append(token)
        mass += weights[token] / total
    target, passed = uniform * sum(weights[token] for token in kept), 0.0
    for token in sorted(kept):
        passed += weights[token]
        if passed > target:
            return token
    return max(kept)


CONFIGS = [
    SamplingConfig(max_tokens=40),
    SamplingConfig(max_tokens=40, temperature=0.6, top_k=5),
    SamplingConfig(max_tokens=40, temperature=1.7, top_p=0.8),
    SamplingConfig(max_tokens=40, top_k=8, top_p=0.9),
    SamplingConfig(max_tokens=40, temperature=1.3, min_p=0.1),
    SamplingConfig(max_tokens=40, top_k=9, top_p=0.95, min_p=0.02),
    SamplingConfig(max_tokens=40, presence_penalty=0.7, frequency_penalty=0.4, penalty_tokens=9),
    SamplingConfig(max_tokens=40, temperature=0.3, final_temperature=1.9, frequency_penalty=0.2),
    SamplingConfig(max_tokens=40, temperature_points=((4, 1.5), (9, 0.4), (30, 1.1)), top_k_points=((0, 9), (32, 1))),
    SamplingConfig(max_tokens=40, min_new_tokens=12, frequency_penalty=0.2),
    SamplingConfig(max_tokens=40, greedy=True),
]


@pytest.mark.slow
@pytest.mark.parametrize("with_grammar", [False, True])
@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_pieces_are_those_of_a_slow_sampler_without_a_cache(config: SamplingConfig, with_grammar: bool) -> None:
    grammar = build_grammar() if with_grammar else None
    assert run(config, grammar=grammar, batch_size=4) == sample_slowly(config, 6, grammar)


@pytest.mark.slow
@pytest.mark.parametrize("config", CONFIGS[:-1], ids=str)
def test_a_piece_is_the_same_in_any_batch(config: SamplingConfig) -> None:
    config = replace(config, max_tokens=60)
    grammar = build_grammar()
    alone = run(config, n=20, grammar=grammar, batch_size=1)
    assert len({len(piece) for piece in alone}) >= 3  # rows do become free at different steps
    for batch_size in (3, 8, 100):
        assert run(config, n=20, grammar=grammar, batch_size=batch_size) == alone


def test_a_velocity_is_not_drawn_where_every_pitch_sounds() -> None:
    tokenizer = OoreTokenizer()
    tables = GrammarTables.from_numpy(tokenizer.grammar)
    rows = GrammarRows(tables, 1)
    names = ["set_velocity_20", *(f"note_on_{pitch}" for pitch in range(127))]
    ids = [tokenizer.start_id, *(tokenizer.token_id(name) for on in names[1:] for name in (names[0], on))]
    velocity, last = tokenizer.token_id("set_velocity_20"), tokenizer.token_id("note_on_127")
    rows.walk(0, ids)
    assert not rows.forbidden(1)[0, velocity]
    rows.walk(0, [*ids, velocity, last])
    allowed = (~rows.forbidden(1)[0]).nonzero()[:, 0].tolist()
    assert not {tokenizer.token_name(token) for token in allowed if "velocity" in tokenizer.token_name(token)}
    assert any("note_off" in tokenizer.token_name(token) for token in allowed)


def test_no_piece_ends_before_it_may() -> None:
    prompts = build_prompts(20)
    lengths = [
        [len(piece) - len(prompt) for piece, prompt in zip(run(config, n=20), prompts, strict=True)]
        for config in (SamplingConfig(max_tokens=60), SamplingConfig(max_tokens=60, min_new_tokens=20))
    ]
    assert min(lengths[0]) < 20 <= min(lengths[1])
    with pytest.raises(ValueError, match="min_new_tokens=60 is not 0 to below max_tokens=60"):
        SamplingConfig(max_tokens=60, min_new_tokens=60)
    with pytest.raises(ValueError, match="min_new_tokens=5 is for drawing, but beams=2 draw none"):
        SamplingConfig(min_new_tokens=5, beams=2)


def test_a_piece_is_the_same_whatever_pieces_are_asked_for() -> None:
    config, prompts = SamplingConfig(max_tokens=50), build_prompts(6)
    all_pieces = run(config, prompts=prompts)
    some = run(config, prompts=[prompts[4], prompts[1]], piece_indices=[4, 1])
    assert some == [all_pieces[4], all_pieces[1]]
    assert run(config, seed=6) != all_pieces


def test_a_model_in_training_stays_there_and_samples_as_in_evaluation() -> None:
    decoder = build_decoder().train()
    pieces = run(SamplingConfig(max_tokens=30), decoder=decoder)
    assert decoder.training
    assert decoder.head.weight.dtype == torch.float32
    assert run(SamplingConfig(max_tokens=30), decoder=build_decoder()) == pieces


def test_pieces_are_handed_over_as_they_are_complete() -> None:
    seen: list[Any] = []
    pieces = run(SamplingConfig(max_tokens=60), n=20, grammar=build_grammar(), batch_size=3, on_piece=seen.append)
    assert sorted(piece.place for piece in seen) == list(range(20))
    assert [piece.place for piece in seen] != list(range(20))  # short ones come before long ones begun earlier
    for piece in seen:
        assert piece.ids.tolist() == pieces[piece.place]
        assert piece.seconds > 0


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_piece_ends_where_it_is_said_to_be_full(batch_size: int) -> None:
    asked: dict[int, list[int]] = {}

    def is_full(place: int, ids: torch.Tensor) -> bool:
        asked.setdefault(place, []).append(len(ids))
        return place == 2 and len(ids) > FULL_EVERY + 20

    prompts, config = build_prompts(4), SamplingConfig(max_tokens=3 * FULL_EVERY)
    settings: dict[str, Any] = {"n": 4, "prompts": prompts, "batch_size": batch_size, "decoder": endless()}
    free, pieces = run(config, **settings), run(config, **settings, is_full=is_full)
    for place, (prompt, whole, piece) in enumerate(zip(prompts, free, pieces, strict=True)):
        assert len(whole) == config.max_tokens
        assert piece == (whole[: len(prompt) + 2 * FULL_EVERY] if place == 2 else whole)
        assert asked[place] == [len(prompt) + FULL_EVERY * (i + 1) for i in range(len(asked[place]))]


def endless() -> Decoder:
    decoder = build_decoder()
    decoder.head.bias.data[END] = -1000.0
    return decoder


def test_a_piece_given_back_as_its_own_prompt_ends_as_before() -> None:
    config = SamplingConfig(max_tokens=60)
    whole = run(config, n=1)
    cut = torch.tensor(whole[0][: len(whole[0]) // 2])
    assert run(config, prompts=[cut], piece_indices=[0]) == whole


@pytest.mark.parametrize("batch_size", [1, 4])
def test_the_grammar_holds_and_prompts_stay(batch_size: int) -> None:
    grammar, prompts = build_grammar(), build_prompts(12)
    pieces = run(SamplingConfig(max_tokens=80, temperature=1.5), n=12, grammar=grammar, batch_size=batch_size)
    for piece, prompt in zip(pieces, prompts, strict=True):
        assert piece[: len(prompt)] == prompt.tolist()
        for i in range(len(prompt), len(piece)):
            assert piece[i] in allowed_ids(grammar, piece[:i])
        assert len(piece) == 80 or piece[-1] == END
        assert len(piece) <= 80
        assert END not in piece[:-1]
    assert any(piece[-1] == END for piece in pieces)


def test_the_masks_are_the_grammar_along_random_walks() -> None:
    grammar, random = build_grammar(), np.random.default_rng(0)
    rows, walks = GrammarRows(GrammarTables.from_numpy(grammar), 5), [[] for _ in range(5)]
    for _ in range(60):
        forbidden_BV = rows.forbidden(5)
        for row, walk in enumerate(walks):
            assert (~forbidden_BV[row]).nonzero()[:, 0].tolist() == allowed_ids(grammar, walk)
            walk.append(int(random.choice(allowed_ids(grammar, walk))))
        rows.advance(torch.tensor([walk[-1] for walk in walks]))
    again = GrammarRows(rows.tables, 5)
    for row, walk in enumerate(walks):
        again.walk(row, walk)
    assert torch.equal(again.state_B, rows.state_B)
    assert torch.equal(again.open_BC, rows.open_BC)


def test_the_real_grammar_gives_music_without_violations() -> None:
    tokenizer = OoreTokenizer()
    pieces = sample(
        build_decoder(TINY, tokenizer.vocab_size),
        [torch.tensor([tokenizer.start_id])] * 3,
        piece_indices=[0, 1, 2],
        seed=0,
        config=SamplingConfig(max_tokens=200),
        grammar=tokenizer.grammar,
        end_id=tokenizer.end_id,
        pad_id=tokenizer.pad_id,
    )
    for piece in pieces:
        assert tokenizer.grammar.n_violations(piece.numpy()) == 0
        assert len(tokenizer.decode(piece.numpy()).notes.pitch) > 0


def test_top_k_of_1_is_greedy_whatever_the_temperature() -> None:
    greedy = run(SamplingConfig(max_tokens=40, greedy=True), grammar=build_grammar())
    assert run(SamplingConfig(max_tokens=40, top_k=1, temperature=3.0), grammar=build_grammar()) == greedy
    assert run(SamplingConfig(max_tokens=40, top_p=1e-9), grammar=build_grammar()) == greedy
    assert run(SamplingConfig(max_tokens=40, greedy=True), grammar=build_grammar(), seed=99) == greedy


def test_a_higher_temperature_raises_the_entropy_of_what_is_drawn() -> None:
    prompts = [torch.tensor([1])] * 400
    entropies = []
    for temperature in (0.1, 0.5, 1.0, 1.5, 3.0):
        config = SamplingConfig(max_tokens=2, temperature=temperature)
        pieces = run(config, n=400, prompts=prompts, batch_size=400, decoder=build_decoder())
        shares = np.array(list(Counter(piece[1] for piece in pieces).values())) / 400
        entropies.append(float(-(shares * np.log(shares)).sum()))
    assert (np.diff(entropies) > 0).all(), entropies


def test_limits_that_keep_all_change_nothing() -> None:
    plain = run(SamplingConfig(max_tokens=40))
    assert run(SamplingConfig(max_tokens=40, top_k=VOCAB_SIZE, top_p=1.0)) == plain
    assert run(SamplingConfig(max_tokens=40, top_k=10**9)) == plain


def test_temperature_and_top_k_may_follow_the_length() -> None:
    plain = run(SamplingConfig(max_tokens=40))
    assert run(SamplingConfig(max_tokens=40), temperature=lambda _: 1.0, top_k=lambda _: None) == plain
    greedy = run(SamplingConfig(max_tokens=40, greedy=True))
    assert run(SamplingConfig(max_tokens=40), top_k=lambda _: 1) == greedy
    changed = run(SamplingConfig(max_tokens=40), top_k=lambda length: 1 if length >= 20 else None)
    assert [piece[:20] for piece in changed] == [piece[:20] for piece in plain]
    assert changed != plain
    warmer = run(SamplingConfig(max_tokens=40), temperature=lambda length: 1.0 if length < 15 else 2.0)
    assert [piece[:15] for piece in warmer] == [piece[:15] for piece in plain]
    with pytest.raises(ValueError, match="temperature=0 at length 3"):
        run(SamplingConfig(max_tokens=40), temperature=lambda length: abs(length - 3))


@pytest.mark.parametrize("max_tokens", [8, 9, 33])
def test_no_piece_is_longer_than_max_tokens(max_tokens: int) -> None:
    decoder = build_decoder()
    torch.nn.init.constant_(decoder.head.bias[END], -50.0)  # a model that would never end
    pieces = run(SamplingConfig(max_tokens=max_tokens), n=7, decoder=decoder, batch_size=3)
    assert [len(piece) for piece in pieces] == [max_tokens] * 7


def test_padding_is_never_drawn() -> None:
    decoder = build_decoder()
    with torch.no_grad():
        decoder.head.bias[PAD] = 50.0
    assert all(PAD not in piece for piece in run(SamplingConfig(max_tokens=30), decoder=decoder))


def test_a_stop_returns_what_there_is() -> None:
    seen: list[int] = []

    def stop_after_five(n_drawn: int) -> bool:
        seen.append(n_drawn)
        return len(seen) == 5

    whole = run(SamplingConfig(max_tokens=40, temperature=0.5), n=6, batch_size=4)
    partial = run(SamplingConfig(max_tokens=40, temperature=0.5), n=6, batch_size=4, on_step=stop_after_five)
    assert seen[0] == 4
    assert all(piece == full[: len(piece)] for piece, full in zip(partial, whole, strict=True))
    assert sum(len(piece) for piece in partial) == sum(len(prompt) for prompt in build_prompts(6)) + seen[-1]


def test_an_interrupt_gives_the_pieces_at_work_as_far_as_they_are() -> None:
    complete, partial = dict[int, list[int]](), dict[int, list[int]]()

    def interrupt(n_drawn: int) -> None:
        if n_drawn >= 12:
            raise KeyboardInterrupt

    settings = SamplingConfig(max_tokens=40, temperature=0.5)
    whole = run(settings, n=6, batch_size=4)
    with pytest.raises(KeyboardInterrupt):
        run(
            settings, n=6, batch_size=4, on_step=interrupt,
            on_piece=lambda piece: complete.update({piece.place: piece.ids.tolist()}),
            on_partial=lambda piece: partial.update({piece.place: piece.ids.tolist()}),
        )  # fmt: skip
    assert len(partial) >= 2
    assert not partial.keys() & complete.keys()
    prompts = build_prompts(6)
    for place, ids in (partial | complete).items():
        assert len(ids) >= len(prompts[place])
        assert ids == whole[place][: len(ids)]


def test_uniforms_are_a_stable_stream_of_their_piece() -> None:
    uniforms = piece_uniforms(3, 7, 1000)
    assert uniforms.dtype == np.float64
    assert ((uniforms >= 0) & (uniforms < 1)).all()
    assert np.array_equal(piece_uniforms(3, 7, 10), uniforms[:10])
    assert np.array_equal(piece_uniforms(3, 7, 10, first=500), uniforms[500:510])
    with pytest.raises(ValueError, match="first=2 is not a multiple of 4"):
        piece_uniforms(3, 7, 1, first=2)
    assert abs(uniforms.mean() - 0.5) < 0.05
    streams = {piece_uniforms(*key, 4).tobytes() for key in [(3, 7), (7, 3), (3, 8), (4, 7), (0, 0), (2**64 - 1, 0)]}
    assert len(streams) == 6
    # These very numbers, for ever: they are what makes a batch of last year repeatable.
    assert uniforms[:3].tolist() == [0.16091386323260937, 0.8229551752810966, 0.732567180148764]
    for seed, index in ((-1, 0), (2**64, 0), (0, -1)):
        with pytest.raises(ValueError, match="is outside 0 to"):
            piece_uniforms(seed, index, 1)


def test_equal_logits_are_ranked_by_id() -> None:
    logits_BV = torch.tensor([[1.0, 2.0, 2.0, 2.0, 0.0]], dtype=torch.float64)
    kept_BV = keep_likeliest(logits_BV, torch.tensor([2])).isfinite()
    assert kept_BV.tolist() == [[False, True, True, False, False]]


def test_the_nucleus_is_the_smallest_set_that_reaches_top_p() -> None:
    logits_BV = torch.tensor([[0.1, 0.5, 0.15, 0.25]], dtype=torch.float64).log()
    for top_p, kept in ((0.4, {1}), (0.6, {1, 3}), (0.76, {1, 3, 2}), (0.95, {0, 1, 2, 3})):
        kept_BV = keep_likeliest(logits_BV, top_p=top_p).isfinite()
        assert set(kept_BV[0].nonzero()[:, 0].tolist()) == kept


def test_draws_follow_the_running_sum_and_never_hit_what_is_forbidden() -> None:
    logits_BV = torch.tensor([-math.inf, 0.25, 0.5, -math.inf, 0.25, -math.inf], dtype=torch.float64)
    logits_BV = torch.where(logits_BV > 0, logits_BV.log(), logits_BV).expand(6, -1)
    uniform_B = torch.tensor([0.0, 0.2499, 0.25, 0.7499, 0.75, 1 - 2**-53], dtype=torch.float64)
    assert draw(logits_BV, uniform_B).tolist() == [1, 1, 2, 2, 4, 4]


def test_no_pieces_is_no_work() -> None:
    assert run(SamplingConfig(), n=0) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 0}, "batch_size=0 is below 1"),
        ({"piece_indices": [0]}, "2 prompts, but 1 piece indices"),
        ({"prompts": [torch.tensor([1]), torch.tensor([], dtype=torch.long)]}, r"prompt 1 has shape \(0,\)"),
        ({"prompts": [torch.tensor([1]), torch.tensor([[1]])]}, r"prompt 1 has shape \(1, 1\)"),
        (
            {"prompts": [torch.full((30,), 11), torch.tensor([1])]},
            "prompt 0 has 30 ids, which leaves none .*max_tokens=30",
        ),
        ({"prompts": [torch.tensor([1, 15])] * 2}, "prompt 0 holds id 15 outside 0-14"),
        ({"prompts": [torch.tensor([1, -1])] * 2}, "prompt 0 holds id -1 outside 0-14"),
        ({"prompts": [torch.tensor([1, 11, 2])] * 2}, "prompt 0 holds the end id 2 at position 2"),
        ({"prompts": [torch.tensor([1, 0])] * 2}, "prompt 0 holds the padding id 0 at position 1"),
        ({"prompts": [torch.tensor([1, 11, 3])] * 2, "grammar": build_grammar()}, "prompt 0: .* id 3 at position 2"),
        ({"prompts": [torch.tensor([1, 7])] * 2, "grammar": build_grammar()}, "prompt 0: .* id 7 at position 1"),
    ],
)
def test_requests_that_cannot_be_met_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(SamplingConfig(max_tokens=30), **{"n": 2, **change})


def test_a_grammar_without_a_way_on_is_an_error_and_not_an_endless_loop() -> None:
    dead_end = build_grammar()
    dead_end.next_state_SV[2] = -1
    with pytest.raises(ValueError, match="the grammar allows no id here"):
        run(SamplingConfig(max_tokens=200), grammar=dead_end, prompts=[torch.tensor([1, 14])], piece_indices=[0])


def test_a_diverged_model_is_an_error() -> None:
    decoder = build_decoder()
    with torch.no_grad():
        decoder.head.bias[5] = math.nan
    with pytest.raises(ValueError, match="not finite; its weights are damaged"):
        run(SamplingConfig(max_tokens=9), decoder=decoder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"opens_V": np.zeros(3, np.int16)}, "opens_V has shape"),
        ({"n_slots": 3}, "names slot 3, but has n_slots=3"),
        ({"start_state": 4}, "names state 4, but has states 0-3"),
    ],
)
def test_tables_that_disagree_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GrammarTables.from_numpy(build_grammar(**change))


def test_a_grammar_for_another_vocabulary_is_refused() -> None:
    with pytest.raises(ValueError, match="the grammar has 15 ids, the model 20"):
        run(SamplingConfig(), grammar=build_grammar(), decoder=build_decoder(vocab_size=20))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: SamplingConfig(temperature_points=((5, 1.0), (5, 2.0))),
            "temperature_points: the lengths 5, 5 do not",
        ),
        (lambda: SamplingConfig(top_k_points=((-1, 4),)), "top_k_points: the lengths -1 do not rise from 0"),
        (lambda: SamplingConfig(top_k_points=((3, 0),)), "top_k=0 of top_k_points at 3 is below 1"),
        (
            lambda: SamplingConfig(temperature_points=((3, -1.0),)),
            "temperature=-1.0 of temperature_points at 3 is not a",
        ),
        (lambda: SamplingConfig(temperature=0.0), "temperature=0.0 is not a number above 0; .* greedy"),
        (lambda: SamplingConfig(temperature=math.nan), "temperature=nan"),
        (lambda: SamplingConfig(top_k=0), "top_k=0 is below 1"),
        (lambda: SamplingConfig(top_p=0.0), "top_p=0.0 is not above 0"),
        (lambda: SamplingConfig(min_p=1.1), "min_p=1.1 is above 1"),
        (lambda: SamplingConfig(max_tokens=0), "max_tokens=0 is below 1"),
        (lambda: SamplingConfig(context_tokens=1), "context_tokens=1 is below 2"),
        (lambda: SamplingConfig(kept_tokens=0), "kept_tokens=0 is below 1"),
        (lambda: SamplingConfig(context_tokens=8, kept_tokens=8), "kept_tokens=8 is not below context_tokens=8"),
    ],
)
def test_impossible_settings_are_refused(build: Callable[[], SamplingConfig], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
