"""Pieces longer than a model looks back on: the rule of the cut, the same ids in any batch, memory that stays flat."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from models.config import DecoderConfig, SamplingConfig
from models.decoder.model import Decoder
from models.sampling.grammar_mask import GrammarTables
from models.sampling.sample import Sampler, sample
from models.sampling.sliding_context import NEVER, Place, SlidingContext, ids_to_end
from models.vae.latents import ConditionedDecoder
from tasks.music.tokenizers.optimus.int_tokenizer import SEPARATOR, OptimusIntConfig, OptimusIntTokenizer
from tasks.music.tokenizers.remi.tokenizer import RemiTokenizer
from tests.models.sampling.test_families import build_hourglass
from tests.models.toy_music import END, START, VOCAB_SIZE, allowed_ids, build_decoder, build_grammar, build_prompts
from tests.models.vae import small_vae

LIMITED = DecoderConfig(
    d_model=16, n_heads=4, n_layers=2, d_ff=32, max_relative_distance=12, absolute_positions="learned", max_positions=16
)
NO_END = -1  # pieces then get their full length


def build_limited() -> Decoder:
    decoder = build_decoder(LIMITED)
    assert decoder.embed_position is not None
    torch.nn.init.normal_(decoder.embed_position.weight, std=0.5)  # a wrong position shows
    return decoder


def never_ending(model: Any) -> Any:
    with torch.no_grad():
        model.head.bias[END] = -50.0
    return model


def write(
    model: Any, prompts: list[Tensor] | None = None, *, grammar: Any = None, batch_size: int = 4, end_id: int = END,
    **settings: Any,
) -> list[list[int]]:  # fmt: skip
    prompts = prompts or build_prompts(6)
    pieces = sample(
        model, prompts, range(len(prompts)), 5, SamplingConfig(**{"max_tokens": 70, **settings}), grammar,
        end_id=end_id, batch_size=batch_size,
    )  # fmt: skip
    return [piece.tolist() for piece in pieces]


def is_between_groups(ids: list[int]) -> bool:
    """Whether the toy grammar stands in its body, not behind the id 14, which needs another one."""
    return ids[-1] != 14


def begin_of_context(ids: list[int], limit: int, kept: int, with_grammar: bool) -> int:
    """The rule in plain Python, from the first id on."""
    begin = 0
    for length in range(1, len(ids) + 1):
        if length - begin > limit:
            begin = length - kept
            if with_grammar:
                places = range(begin, length - kept + kept // 2 + 1)
                begin = next((place for place in places if is_between_groups(ids[:place])), begin)
    return begin


@torch.no_grad()
def check_uncached(model: Any, piece: list[int], n_prompt: int, limit: int, kept: int, grammar: Any = None) -> None:
    """See that each id is the likeliest one behind the context that the rule gives, computed as a whole."""
    exact = model.double().eval()
    for n in range(n_prompt, len(piece)):
        begin = begin_of_context(piece[:n], limit, kept, grammar is not None)
        assert n - begin <= limit
        logits_V = exact(torch.tensor([piece[begin:n]]))[0, -1]
        logits_V[0] = -torch.inf
        if grammar is not None:
            allowed = allowed_ids(grammar, piece[:n])
            logits_V[[token for token in range(VOCAB_SIZE) if token not in allowed]] = -torch.inf
        assert int(logits_V.argmax()) == piece[n], f"id {n}"


@pytest.mark.slow
@pytest.mark.parametrize("with_grammar", [False, True])
@pytest.mark.parametrize(
    ("build", "settings", "limit", "kept"),
    [
        (build_limited, {}, 16, 8),
        (build_limited, {"context_tokens": 11, "kept_tokens": 10}, 11, 10),
        (build_limited, {"kept_tokens": 1}, 16, 1),
        (build_decoder, {"context_tokens": 9}, 9, 4),
        (build_decoder, {"context_tokens": 2}, 2, 1),
        (build_hourglass, {"context_tokens": 13, "kept_tokens": 5}, 13, 5),
    ],
)
def test_a_long_piece_is_that_of_whole_passes_over_the_same_contexts(
    build: Any, settings: dict[str, int], limit: int, kept: int, with_grammar: bool
) -> None:
    grammar, prompts = build_grammar() if with_grammar else None, build_prompts(4)
    pieces = write(never_ending(build()), prompts, grammar=grammar, greedy=True, max_tokens=60, **settings)
    for piece, prompt in zip(pieces, prompts, strict=True):
        assert len(piece) == 60
        check_uncached(never_ending(build()), piece, len(prompt), limit, kept, grammar)


@pytest.mark.slow
@pytest.mark.parametrize("with_grammar", [False, True])
def test_a_long_piece_is_the_same_in_any_batch(with_grammar: bool) -> None:
    grammar, prompts = build_grammar() if with_grammar else None, build_prompts(9)
    alone = write(build_limited(), prompts, grammar=grammar, batch_size=1)
    assert max(map(len, alone)) > 48
    for batch_size in (3, 8, 64):
        assert write(build_limited(), prompts, grammar=grammar, batch_size=batch_size) == alone


@pytest.mark.slow
@pytest.mark.parametrize("n_kept_back", [1, 9, 30, 69])
@pytest.mark.parametrize("with_grammar", [False, True])
def test_a_long_piece_given_back_as_its_own_prompt_ends_as_before(n_kept_back: int, with_grammar: bool) -> None:
    grammar = build_grammar() if with_grammar else None
    whole = write(never_ending(build_limited()), [torch.tensor([START])], grammar=grammar)
    assert len(whole[0]) == 70
    cut = torch.tensor(whole[0][: 70 - n_kept_back])
    assert write(never_ending(build_limited()), [cut], grammar=grammar) == whole


def test_a_context_that_never_fills_changes_nothing() -> None:
    plain = write(build_decoder(), max_tokens=40)
    assert write(build_decoder(), max_tokens=40, context_tokens=40) == plain
    assert write(build_decoder(), max_tokens=40, context_tokens=999) == plain
    assert write(build_decoder(), max_tokens=40, context_tokens=20) != plain


def cache_bytes(cache: Any) -> int:
    """Memory of all tensors of a cache, found by walking through it."""
    if isinstance(cache, Tensor):
        return cache.untyped_storage().nbytes()
    if isinstance(cache, list):
        return sum(map(cache_bytes, cache))
    slots = getattr(type(cache), "__slots__", ())
    return sum(cache_bytes(getattr(cache, name)) for name in slots)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("build", "context_tokens"), [(build_limited, None), (build_decoder, 16), (build_hourglass, 16)]
)
def test_twenty_blocks_need_no_more_cache_than_one(
    build: Any, context_tokens: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, int]] = []
    step = Sampler.step

    def watched(self: Sampler) -> list[int]:
        complete = step(self)
        seen.append((cache_bytes(self.cache), self.cache.max_length))
        return complete

    monkeypatch.setattr(Sampler, "step", watched)
    settings = {"context_tokens": context_tokens}
    write(never_ending(build()), [torch.tensor([START])], max_tokens=16, **settings)
    one_block = set(seen)
    seen.clear()
    (piece,) = write(never_ending(build()), [torch.tensor([START])], max_tokens=20 * 16, **settings)
    assert len(piece) == 20 * 16
    assert len(seen) == 20 * 16 - 1
    assert set(seen) == one_block
    assert one_block.pop()[0] > 0


def test_an_interrupted_long_piece_keeps_what_there_is() -> None:
    prompts = [torch.tensor([START])] * 2
    whole = write(build_limited(), prompts, max_tokens=200, end_id=NO_END)
    pieces = sample(
        build_limited(), prompts, range(2), 5, SamplingConfig(max_tokens=10**6), end_id=NO_END,
        on_step=lambda n_drawn: n_drawn >= 200,
    )  # fmt: skip
    assert [piece.tolist() for piece in pieces] == [piece[:101] for piece in whole]


def test_a_model_with_latents_writes_one_block_only() -> None:
    model = small_vae.build_vae()
    conditioned = ConditionedDecoder(model, small_vae.latents(model, 1))
    prompt = [torch.tensor([small_vae.START])]
    with pytest.raises(ValueError, match="a cache for 26 tokens, but block=24 and a start token"):
        sample(conditioned, prompt, [0], 0, SamplingConfig(max_tokens=26), end_id=small_vae.END, pad_id=small_vae.PAD)
    config = SamplingConfig(max_tokens=20, context_tokens=9)
    with pytest.raises(ValueError, match="context_tokens=9 is below max_tokens=20"):
        sample(conditioned, prompt, [0], 0, config, end_id=small_vae.END, pad_id=small_vae.PAD)


def test_contexts_that_the_model_does_not_have_are_refused() -> None:
    with pytest.raises(ValueError, match="context_tokens=17, but the model takes at most 16"):
        write(build_limited(), context_tokens=17)
    with pytest.raises(ValueError, match="kept_tokens=16 is not below the 16 tokens"):
        write(build_limited(), kept_tokens=16)


# Where groups begin


def context_of(grammar: Any, end_id: int, limit: int, kept: int) -> SlidingContext:
    config = SamplingConfig(max_tokens=10**6, context_tokens=limit, kept_tokens=kept)
    return SlidingContext.of(config, None, GrammarTables.from_numpy(grammar), end_id)


def test_optimus_is_cut_behind_a_separator() -> None:
    for instruments, width in ((False, 4), (True, 6)):
        tokenizer = OptimusIntTokenizer(OptimusIntConfig(instruments=instruments))
        for ids, place in cuts(tokenizer):
            assert ids[place.index - 1] == SEPARATOR
            assert len(ids) - 50 <= place.index < len(ids) - 50 + 2 * width  # a rest may stand between two notes


def test_remi_is_cut_before_a_bar_a_position_or_a_note() -> None:
    tokenizer = RemiTokenizer()
    for ids, place in cuts(tokenizer):
        assert tokenizer.token_name(ids[place.index]).startswith(("Bar_", "Position_", "Program_", "Rest_", "TimeSig_"))
        assert len(ids) - 50 <= place.index <= len(ids) - 25


def cuts(tokenizer: Any) -> list[tuple[list[int], Place]]:
    """Let a context of 100 ids, of which 50 are kept, slide along a random piece; return what it began anew with."""
    ids = write_legally(tokenizer, 1000)
    rule = context_of(tokenizer.grammar, tokenizer.end_id, 100, 50)
    place, found = rule.first, []
    for length in range(1, len(ids) + 1):
        if rule.is_full(length, place):
            place = rule.moved(np.array(ids[:length]), place)
            found.append((ids[:length], place))
    assert len(found) > 10
    assert rule.after_prompt(np.array(ids)) == found[-1][1]
    return found


def write_legally(tokenizer: Any, n: int) -> list[int]:
    """Random ids that a grammar without slots allows, none of which ends the piece."""
    random, state, ids = np.random.default_rng(1), tokenizer.grammar.start_state, []
    while len(ids) < n:
        followers = tokenizer.grammar.next_state_SV[state].copy()
        followers[tokenizer.end_id] = -1
        ids.append(int(random.choice(np.flatnonzero(followers >= 0))))
        state = int(followers[ids[-1]])
    return ids


def test_without_an_end_to_reach_exactly_the_wanted_number_is_kept() -> None:
    ids = np.array([START, 11, 14, 3, 11, 14, 4, 11, 14, 5, 11])
    rule = context_of(build_grammar(), NO_END, 10, 5)
    assert rule.moved(ids, rule.first).index == 6  # between 14 and 4
    rule = context_of(build_grammar(), END, 10, 5)
    assert rule.moved(ids, rule.first).index == 7


def test_the_distance_to_the_end_counts_ids() -> None:
    tables = build_grammar().next_state_SV.astype(np.int64)
    assert ids_to_end(tables, END).tolist() == [2, 1, 2, NEVER]
    assert set(ids_to_end(tables, NO_END).tolist()) == {NEVER}
