"""Beam search: with enough beams it finds the very best, and whatever it returns has the probability it says."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from models.config import DecoderConfig, HourglassConfig, SamplingConfig, VaeConfig
from models.registry import SampledModel, build_model
from models.sampling.beam_search import beam_search
from models.sampling.sample import sample
from models.vae.latents import ConditionedDecoder
from models.vae.model import Vae

V, END = 6, 5
DECODER = DecoderConfig(d_model=16, n_heads=2, n_layers=2, d_ff=16, dropout=0.0, max_relative_distance=4)
HOURGLASS = HourglassConfig(d_model=16, n_heads=2, d_ff=16, depths=(1, 1, 1), dropout=0.0, max_relative_distance=4)


def build(kind: str) -> SampledModel:
    torch.manual_seed(3)
    if kind == "vae":
        model = build_model(VaeConfig(block=8, d_model=16, n_heads=2, channels=(8,)), V)
        assert isinstance(model, Vae)
        built: SampledModel = ConditionedDecoder(model, model.prior_latents(0, [0] * 4**4))
    else:
        built = build_model(DECODER if kind == "decoder" else HOURGLASS, V)
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.mul_(3.0)  # else all ids are about equally likely
    return built.eval().double()


def log_probability(model: SampledModel, ids: list[int], n_prompt: int) -> float:
    cache = model.new_cache(1, len(ids))
    cache.start_row(0, 0)
    with torch.inference_mode():
        logits_TV = model(torch.tensor([ids]), cache)[0].clone()
        logits_TV[:, 0] = -math.inf
        shares_TV = logits_TV.log_softmax(-1)
        return float(sum(shares_TV[i - 1, ids[i]] for i in range(n_prompt, len(ids))))


def all_continuations(prompt: list[int], max_tokens: int) -> list[list[int]]:
    return [
        [*prompt, *tail]
        for n in range(1, max_tokens - len(prompt) + 1)
        for tail in itertools.product(range(1, V), repeat=n)
        if END not in tail[:-1] and (tail[-1] == END or len(prompt) + n == max_tokens)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["decoder", "hourglass", "vae"])
def test_enough_beams_find_the_likeliest_of_all(kind: str) -> None:
    model, prompt, max_tokens = build(kind), [1, 2], 6
    scored = sorted(
        ((log_probability(model, ids, 2), ids) for ids in all_continuations(prompt, max_tokens)), reverse=True
    )
    beams = beam_search(model, torch.tensor(prompt), 4**4, max_tokens, end_id=END)
    assert [beam.ids.tolist() for beam in beams[:20]] == [ids for _, ids in scored[:20]]
    assert [beam.log_probability for beam in beams[:20]] == pytest.approx([score for score, _ in scored[:20]])


@pytest.mark.parametrize("n_beams", [1, 2, 3, 7])
@pytest.mark.parametrize("kind", ["decoder", "hourglass"])
def test_beams_are_as_likely_as_they_say(kind: str, n_beams: int) -> None:
    model, prompt = build(kind), torch.tensor([3])
    beams = beam_search(model, prompt, n_beams, 20, end_id=END)
    assert len(beams) == n_beams
    assert len({tuple(beam.ids.tolist()) for beam in beams}) == n_beams
    for beam in beams:
        assert beam.log_probability == pytest.approx(log_probability(model, beam.ids.tolist(), 1), abs=1e-9)
    assert [b.log_probability for b in beams] == sorted((b.log_probability for b in beams), reverse=True)


@pytest.mark.slow
def test_more_beams_find_nothing_worse() -> None:
    model, prompt = build("decoder"), torch.tensor([3])
    best = [beam_search(model, prompt, n, 9, end_id=END)[0].log_probability for n in (1, 8, 64, 4**6)]
    assert best[-1] >= max(best) - 1e-12


def test_one_beam_is_the_greedy_piece_where_nothing_ends() -> None:
    model, prompt = build("decoder"), torch.tensor([3])
    (greedy,) = sample(model, [prompt], [0], 0, SamplingConfig(greedy=True, max_tokens=12), end_id=-1)
    found = {tuple(beam.ids.tolist()) for beam in beam_search(model, prompt, 1, 12, end_id=0)}
    assert found == {tuple(greedy.tolist())}


def test_a_grammar_is_obeyed() -> None:
    import numpy as np

    from tasks.music.tokenizers.grammar import Grammar

    none = np.full(V, -1, np.int16)
    # 1 and 2 take turns; only 2 may be followed by the end.
    table = np.full((3, V), -1, np.int16)
    table[0, 1], table[1, 2], table[2, 1], table[2, END] = 1, 2, 1, 0
    grammar = Grammar(table, none, none, np.zeros(V, np.bool_), np.zeros(V, np.int16), n_slots=0)
    beams = beam_search(build("decoder"), torch.tensor([1]), 3, 9, grammar, end_id=END)
    for beam in beams:
        ids = beam.ids.tolist()
        assert grammar.first_violation(ids) is None
        assert ids[-1] == END or len(ids) == 9


@pytest.mark.parametrize(
    ("prompt", "n_beams", "said"),
    [([1], 0, "n_beams=0 is below 1"), ([], 1, "at least one id"), ([END], 1, "the end id"), ([9], 1, "outside 0-5")],
)
def test_mistakes_are_told(prompt: list[int], n_beams: int, said: str) -> None:
    ids: Tensor = torch.tensor(prompt, dtype=torch.long)
    with pytest.raises(ValueError, match=said):
        beam_search(build("decoder"), ids, n_beams, 9, end_id=END)
