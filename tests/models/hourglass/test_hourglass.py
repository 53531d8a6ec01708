"""The hourglass: sizes, causality, resampling against loops, hidden states, and the cache against the full pass."""

import math
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from models.compiling import compile_model
from models.config import HourglassConfig, OptimizerConfig, SamplingConfig
from models.hourglass.cache import fresh_scales
from models.hourglass.model import CrossScaleAttention, Hourglass, HourglassBlock, Level, Stack
from models.registry import build_model
from models.sampling.sample import sample
from models.sampling.sampler import piece_uniforms
from models.training import build_optimizer, read_metrics, train_step
from tests.budget import examples

VOCAB_SIZE = 20
TINY = HourglassConfig(d_model=16, n_heads=2, d_ff=24, depths=(1, 1, 1), max_relative_distance=6, dropout=0.0)
FLAT = replace(TINY, depths=(2,))
NESTED = replace(TINY, depths=(1, 1, 1, 1, 1), shorten_factor=(2, 3))
# What the checklist of the published system names, and a stack without levels.
CHECKLIST = [
    FLAT,
    TINY,
    NESTED,
    replace(TINY, depths=(2, 1, 2), shorten_factor=3),
    replace(TINY, depths=(1, 1, 3), resampling="linear"),
    replace(TINY, attention_resampling=False),
    replace(NESTED, shorten_factor=(2, 4), resampling="linear", attention_resampling=False),
    replace(NESTED, shorten_factor=2, resampling="linear"),
]
ALL = pytest.mark.parametrize("config", CHECKLIST, ids=lambda c: f"{c.depths}-{c.shorten_factor}-{c.resampling}")


def build_hourglass(config: HourglassConfig = TINY, dtype: torch.dtype = torch.float64) -> Hourglass:
    torch.manual_seed(0)
    hourglass = Hourglass(config, VOCAB_SIZE).to(dtype).eval()
    for name, parameter in hourglass.named_parameters():
        if name.endswith(("relative_MD", "bias")):
            nn.init.normal_(parameter)  # large, so that a wrong distance or a forgotten bias shows
    return hourglass


def random_tokens(*shape: int, seed: int = 1) -> Tensor:
    return torch.randint(1, VOCAB_SIZE, shape, generator=torch.Generator().manual_seed(seed))


def configs() -> st.SearchStrategy[HourglassConfig]:
    def build(depths: list[int], factors: list[int], resampling: str, attention: bool) -> HourglassConfig:
        return replace(
            TINY,
            depths=tuple(depths[: 2 * len(factors) + 1]),
            shorten_factor=tuple(factors),
            resampling=resampling,
            attention_resampling=attention,
        )

    return st.builds(
        build,
        depths=st.lists(st.integers(1, 2), min_size=5, max_size=5),
        factors=st.lists(st.integers(2, 4), max_size=2),
        resampling=st.sampled_from(["naive", "linear"]),
        attention=st.booleans(),
    )


def build_on_meta(config: HourglassConfig, vocab_size: int) -> Hourglass:
    with torch.device("meta"):  # sizes alone, no memory
        model = build_model(config, vocab_size)
    assert isinstance(model, Hourglass)
    return model


@pytest.mark.parametrize(
    ("config", "n_parameters"),
    [
        (HourglassConfig(), 33_795_676),
        (HourglassConfig(depths=(12,), max_relative_distance=1024), 58_047_324),
    ],
)
def test_parameters_are_as_many_as_published(config: HourglassConfig, n_parameters: int) -> None:
    hourglass = build_on_meta(config, 348)
    assert hourglass.n_parameters == n_parameters
    assert sum(tensor.numel() for tensor in hourglass.state_dict().values()) == n_parameters
    assert build_on_meta(config, 349).n_parameters == n_parameters + 1537


def test_parts_are_as_large_as_published() -> None:
    level = build_on_meta(HourglassConfig(), 348).layers
    assert isinstance(level, Level)
    sizes = {name: sum(p.numel() for p in part.parameters()) for name, part in level.named_children()}
    assert sizes == {
        "before": 9_521_152,
        "shorten": 0,
        "resample_down": 4_728_576,
        "inner": 4_761_344,
        "lengthen": 0,
        "resample_up": 4_728_576,
        "after": 9_521_152,
    }


@ALL
def test_depths_are_as_given_from_the_outside_inwards(config: HourglassConfig) -> None:
    def depths_of(part: nn.Module) -> Iterator[int]:
        if isinstance(part, Stack):
            yield len(part.blocks)
        elif isinstance(part, Level):
            for name in ("before", "inner", "after"):
                yield from depths_of(getattr(part, name))

    assert tuple(depths_of(build_hourglass(config).layers)) == config.depths


def test_dropout_is_everywhere_the_same() -> None:
    hourglass = build_hourglass(replace(NESTED, dropout=0.3))
    n_layers = sum(NESTED.depths) + 2 * NESTED.n_levels
    shares = [module.dropout for module in hourglass.modules() if type(module).__name__ == "Dropout"]
    assert shares == [0.3] * (1 + n_layers)
    tokens_BT = random_tokens(1, 9)
    assert not torch.equal(hourglass.train()(tokens_BT), hourglass(tokens_BT))
    assert torch.equal(hourglass.eval()(tokens_BT), hourglass(tokens_BT))


def check_causality(config: HourglassConfig, n_tokens: int) -> None:
    """Row t of a batch differs from the last row in all tokens from t on."""
    hourglass, tokens_T = build_hourglass(config), random_tokens(n_tokens)
    tokens_BT = tokens_T.repeat(n_tokens + 1, 1)
    for t in range(n_tokens):
        tokens_BT[t, t:] = tokens_T[t:] % (VOCAB_SIZE - 1) + 1
    logits_BTV = hourglass(tokens_BT)
    difference_TT = (logits_BTV[:-1] - logits_BTV[-1]).abs().amax(dim=-1)
    assert difference_TT.tril(-1).max() < 1e-12
    assert difference_TT.triu().masked_select(torch.ones_like(difference_TT, dtype=torch.bool).triu()).min() > 1e-6


@ALL
@torch.no_grad()
def test_no_logit_knows_a_later_token(config: HourglassConfig) -> None:
    check_causality(config, 27)


@examples(15)
@given(config=configs(), n_tokens=st.integers(1, 20))
@torch.no_grad()
def test_no_logit_knows_a_later_token_whatever_the_tree(config: HourglassConfig, n_tokens: int) -> None:
    check_causality(config, n_tokens)


@ALL
@torch.no_grad()
def test_samples_of_a_batch_do_not_touch(config: HourglassConfig) -> None:
    hourglass, tokens_BT = build_hourglass(config), random_tokens(4, 17)
    logits_BTV = hourglass(tokens_BT)
    torch.testing.assert_close(hourglass(tokens_BT.flip(0)).flip(0), logits_BTV, atol=1e-12, rtol=1e-12)
    for row in range(4):
        torch.testing.assert_close(hourglass(tokens_BT[row][None])[0], logits_BTV[row], atol=1e-12, rtol=1e-12)


@pytest.mark.slow
@examples(10)
@given(config=configs())
@torch.no_grad()
def test_a_prefix_gives_the_prefix_of_the_result(config: HourglassConfig) -> None:
    n_tokens = min(6 * math.prod(config.factors) // 2 + 1, 30)
    hourglass, tokens_BT = build_hourglass(config), random_tokens(2, n_tokens)
    logits_BTV = hourglass(tokens_BT)
    for length in range(1, n_tokens):
        torch.testing.assert_close(hourglass(tokens_BT[:, :length]), logits_BTV[:, :length], atol=1e-12, rtol=1e-12)


@ALL
@torch.no_grad()
def test_padding_behind_a_row_moves_no_logit(config: HourglassConfig) -> None:
    hourglass, tokens_BT = build_hourglass(config), random_tokens(3, 14)
    padded_BT = nn.functional.pad(tokens_BT, (0, 5))
    padded_BT[1, 9:] = 0
    logits_BTV, expected_BTV = hourglass(padded_BT), hourglass(tokens_BT)
    torch.testing.assert_close(logits_BTV[::2, :14], expected_BTV[::2], atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(logits_BTV[1, :9], expected_BTV[1, :9], atol=1e-12, rtol=1e-12)
    assert hourglass(torch.zeros_like(tokens_BT)).isfinite().all()


def test_padding_before_a_token_is_refused() -> None:
    with pytest.raises(ValueError, match=r"padding \(id 0\) may only stand at the end"):
        build_hourglass()(torch.tensor([[3, 4], [0, 5]]))


def test_every_weight_is_in_use_with_a_single_sample() -> None:
    """In the original, the shorter scale saw nothing but zeros there."""
    hourglass = build_hourglass(NESTED)
    hourglass(random_tokens(1, 13)).square().sum().backward()
    for name, parameter in hourglass.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 1e-9, name


def states_of(hourglass: Hourglass, tokens_BT: Tensor) -> dict[str, Tensor]:
    """Return what goes out of the stacks of the outer level, and its hidden states."""
    level, states = hourglass.layers, {}
    assert isinstance(level, Level)
    hooks = [
        getattr(level, name).register_forward_hook(lambda _, __, output, name=name: states.update({name: output}))
        for name in ("before", "inner")
    ]
    states["down"], *_, states["up"] = hourglass(tokens_BT, return_hidden=True)[1]
    for hook in hooks:
        hook.remove()
    return states


@pytest.mark.parametrize("factor", [2, 3, 5])
@pytest.mark.parametrize("n_tokens", [1, 2, 9, 10])
@torch.no_grad()
def test_naive_resampling_is_the_mean_and_the_copy(factor: int, n_tokens: int) -> None:
    config = replace(TINY, shorten_factor=factor, attention_resampling=False, hidden_upsampled=True)
    states = states_of(build_hourglass(config), random_tokens(2, n_tokens))
    n_short = math.ceil(n_tokens / factor)
    assert states["down"].shape == (2, n_short, 16)
    for i in range(n_short):
        group = [states["before"][:, t] for t in range(i * factor - factor + 1, i * factor + 1) if t >= 0]
        torch.testing.assert_close(states["down"][:, i], sum(group) / factor)
    for t in range(n_tokens):
        assert torch.equal(states["up"][:, t], states["inner"][:, t // factor])


@torch.no_grad()
def test_linear_resampling_maps_whole_groups() -> None:
    config = replace(TINY, shorten_factor=3, resampling="linear", attention_resampling=False, hidden_upsampled=True)
    hourglass = build_hourglass(config)
    states = states_of(hourglass, random_tokens(2, 8))
    level = hourglass.layers
    assert isinstance(level, Level)
    assert isinstance(level.shorten.project, nn.Linear)
    assert isinstance(level.lengthen.project, nn.Linear)
    for i in range(3):
        group = [states["before"][:, t] if t >= 0 else torch.zeros(2, 16) for t in range(3 * i - 2, 3 * i + 1)]
        torch.testing.assert_close(states["down"][:, i], level.shorten.project(torch.cat(group, dim=-1).double()))
    for t in range(8):
        expected_BGD = level.lengthen.project(states["inner"][:, t // 3]).unflatten(-1, (3, 16))
        torch.testing.assert_close(states["up"][:, t], expected_BGD[:, t % 3])


@torch.no_grad()
def test_attention_between_scales_is_pytorchs() -> None:
    level = build_hourglass(replace(TINY, shorten_factor=3)).layers
    assert isinstance(level, Level)
    assert level.resample_up is not None
    part, attention = level.resample_up, level.resample_up.block.attention
    assert isinstance(attention, CrossScaleAttention)
    x_BTD, context_BJD = torch.randn(2, 7, 16).double(), torch.randn(2, 3, 16).double()
    hidden_TJ = torch.tensor([[3 * j > t for j in range(3)] for t in range(7)])
    expected_BTD, _ = nn.functional.multi_head_attention_forward(
        x_BTD.transpose(0, 1),
        *[context_BJD.transpose(0, 1)] * 2,
        embed_dim_to_check=16,
        num_heads=2,
        in_proj_weight=torch.cat((attention.to_q.weight, part.to_kv.weight)),
        in_proj_bias=torch.cat((attention.to_q.bias, part.to_kv.bias)),
        bias_k=None,
        bias_v=None,
        add_zero_attn=False,
        dropout_p=0.0,
        out_proj_weight=attention.to_out.weight,
        out_proj_bias=attention.to_out.bias,
        attn_mask=hidden_TJ,
    )
    bias_B1TJ = torch.zeros(1, 1, 7, 3).double().masked_fill_(hidden_TJ, -math.inf)
    found_BTD = attention(x_BTD, *part.keys_and_values(context_BJD, None), bias_B1TJ)
    torch.testing.assert_close(found_BTD, expected_BTD.transpose(0, 1))


@pytest.mark.parametrize("factor", [2, 3])
@torch.no_grad()
def test_vectors_of_two_scales_see_each_other_from_their_own_time_on(factor: int) -> None:
    level = build_hourglass(replace(TINY, shorten_factor=factor)).layers
    assert isinstance(level, Level)
    masks: list[Tensor] = []
    for part in (level.resample_down, level.resample_up):
        assert part is not None
        part.register_forward_hook(lambda _, inputs, __: masks.append(inputs[2][0, 0]))
    scales = fresh_scales(replace(TINY, shorten_factor=factor), 10, torch.device("cpu"))
    level(torch.randn(1, 10, 16).double(), scales, [])
    n_short = math.ceil(10 / factor)
    down, up = (mask == 0 for mask in masks)
    assert down.tolist() == [[t <= i * factor for t in range(10)] for i in range(n_short)]
    assert up.tolist() == [[i * factor <= t for i in range(n_short)] for t in range(10)]


@torch.no_grad()
def test_hidden_states_go_inwards_and_out_again() -> None:
    config = replace(NESTED, shorten_factor=2)
    tokens_BT = random_tokens(3, 16)
    _, without = build_hourglass(config)(tokens_BT, return_hidden=True)
    logits_BTV, hidden = build_hourglass(replace(config, hidden_upsampled=True))(tokens_BT, return_hidden=True)
    assert [tuple(state.shape) for state in without] == [(3, 8, 16), (3, 4, 16)]
    assert [tuple(state.shape) for state in hidden] == [(3, 8, 16), (3, 4, 16), (3, 8, 16), (3, 16, 16)]
    assert torch.equal(logits_BTV, build_hourglass(config)(tokens_BT))
    assert torch.equal(hidden[-1][:, ::2], hidden[-1][:, 1::2])  # the reason for leaving it out


@pytest.mark.parametrize("kind", ["cosine", "exp_cosine"])
def test_the_auxiliary_loss_reaches_the_weights_but_not_by_padding(kind: str) -> None:
    hourglass = build_hourglass(replace(NESTED, hidden_loss=kind, hidden_loss_weight=0.5))
    tokens_BT = random_tokens(3, 13)
    tokens_BT[1, 6:] = 0
    loss = hourglass.auxiliary_loss(hourglass(tokens_BT, return_hidden=True)[1], tokens_BT)
    longer_BT = nn.functional.pad(tokens_BT, (0, 8))
    longer = hourglass.auxiliary_loss(hourglass(longer_BT, return_hidden=True)[1], longer_BT)
    assert longer.item() == pytest.approx(loss.item(), abs=1e-12)
    loss.backward()
    level = hourglass.layers
    assert isinstance(level, Level)
    block = level.before.blocks[0]
    assert isinstance(block, HourglassBlock)
    grad = block.to_hidden.weight.grad
    assert grad is not None
    assert grad.abs().max() > 1e-9
    assert hourglass.has_auxiliary_loss
    assert not build_hourglass().has_auxiliary_loss


@torch.no_grad()
def check_cache(hourglass: Hourglass, sizes: list[int], tolerance: float) -> None:
    """Feed a row of three in pieces of these sizes."""
    tokens_BT = random_tokens(3, sum(sizes))
    expected_BTV = hourglass(tokens_BT)
    cache, parts = hourglass.new_cache(3, sum(sizes)), []
    for start, size in zip([sum(sizes[:i]) for i in range(len(sizes))], sizes, strict=True):
        parts.append(hourglass(tokens_BT[:, start : start + size], cache))
        assert cache.length_B.tolist() == [start + size] * 3
    torch.testing.assert_close(torch.cat(parts, dim=1), expected_BTV, atol=tolerance, rtol=tolerance)


@ALL
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-10)])
def test_steps_with_a_cache_equal_the_full_pass(config: HourglassConfig, dtype: torch.dtype, tolerance: float) -> None:
    check_cache(build_hourglass(config, dtype), [9] + [1] * 18 + [7], tolerance)


@examples(15)
@given(config=configs(), sizes=st.lists(st.integers(1, 7), min_size=1, max_size=8))
def test_pieces_of_any_size_with_a_cache_equal_the_full_pass(config: HourglassConfig, sizes: list[int]) -> None:
    check_cache(build_hourglass(config), sizes, 1e-10)


@ALL
@torch.no_grad()
def test_prompts_of_different_lengths_share_a_cache(config: HourglassConfig) -> None:
    hourglass, tokens_BT = build_hourglass(config), random_tokens(5, 40)
    lengths_B = torch.tensor([1, 20, 6, 9, 0])
    prompts_BT = tokens_BT[:, :20].masked_fill(torch.arange(20) >= lengths_B[:, None], 0)
    cache = hourglass.new_cache(5, 40)
    prefill_BTV, expected_BTV = hourglass(prompts_BT, cache), hourglass(tokens_BT)
    assert torch.equal(cache.length_B, lengths_B)
    for row, length in enumerate(lengths_B.tolist()):
        torch.testing.assert_close(prefill_BTV[row, :length], expected_BTV[row, :length], atol=1e-10, rtol=1e-10)
    row_B = torch.arange(5)
    for _ in range(12):
        at_B = cache.length_B.clone()
        logits_BTV = hourglass(tokens_BT[row_B, at_B][:, None], cache)
        torch.testing.assert_close(logits_BTV[:, 0], expected_BTV[row_B, at_B], atol=1e-10, rtol=1e-10)
    # Several at once behind rows of different lengths, and of them not equally many.
    n_more_B = torch.tensor([5, 2, 0, 4, 1])
    at_BT = cache.length_B[:, None] + torch.arange(5)
    more_BT = tokens_BT.gather(1, at_BT).masked_fill(torch.arange(5) >= n_more_B[:, None], 0)
    logits_BTV = hourglass(more_BT, cache)
    for row, n_more in enumerate(n_more_B.tolist()):
        expected_TV = expected_BTV[row, at_BT[row, :n_more]]
        torch.testing.assert_close(logits_BTV[row, :n_more], expected_TV, atol=1e-10, rtol=1e-10)
    logits_BTV = hourglass(tokens_BT[row_B, cache.length_B][:, None], cache)
    torch.testing.assert_close(logits_BTV[:, 0], expected_BTV[row_B, cache.length_B - 1], atol=1e-10, rtol=1e-10)


@ALL
@pytest.mark.parametrize("n_prefilled", [0, 4])
@torch.no_grad()
def test_rows_are_copied_and_begun_again(config: HourglassConfig, n_prefilled: int) -> None:
    hourglass, tokens_BT = build_hourglass(config), random_tokens(3, 24)
    cache = hourglass.new_cache(3, 24)
    hourglass(tokens_BT[:, :11], cache)
    cache.copy_row(2, 0)
    cache.length_B[1] = 0
    fresh_T = random_tokens(24, seed=7)
    if n_prefilled:
        hourglass(fresh_T[None, :n_prefilled], cache.rows(1, 2))
    assert cache.length_B.tolist() == [11, n_prefilled, 11]
    rows_BT = torch.stack((tokens_BT[2], fresh_T, tokens_BT[2]))
    expected_BTV, row_B = hourglass(rows_BT), torch.arange(3)
    for _ in range(8):
        at_B = cache.length_B.clone()
        logits_BTV = hourglass(rows_BT[row_B, at_B][:, None], cache)
        torch.testing.assert_close(logits_BTV[:, 0], expected_BTV[row_B, at_B], atol=1e-10, rtol=1e-10)


@torch.no_grad()
def test_a_step_works_at_the_shorter_scales_only_when_something_is_new_there() -> None:
    hourglass = build_hourglass(replace(NESTED, shorten_factor=(2, 3)))
    calls: list[int] = []
    outer = hourglass.layers
    assert isinstance(outer, Level)
    assert isinstance(outer.inner, Level)
    outer.inner.before.register_forward_hook(lambda *_: calls.append(2))
    outer.inner.inner.register_forward_hook(lambda *_: calls.append(6))
    cache, tokens_BT = hourglass.new_cache(2, 24), random_tokens(2, 24)
    for t in range(24):
        calls.clear()
        hourglass(tokens_BT[:, t : t + 1], cache)
        assert calls == [factor for factor in (2, 6) if t % factor == 0]


def test_a_cache_takes_the_dtype_of_the_weights() -> None:
    cache = build_hourglass().new_cache(2, 4)
    assert {part.keys_LBHJK.dtype for part in cache.scales} == {torch.float64}
    assert cache.levels[0].tail_BGD.dtype == torch.float64
    assert (cache.batch_size, cache.max_length) == (2, 4)


@torch.no_grad()
def test_misuse_of_a_cache_is_refused() -> None:
    hourglass = build_hourglass()
    with pytest.raises(ValueError, match="2 rows, the batch 3"):
        hourglass(random_tokens(3, 2), hourglass.new_cache(2, 4))
    cache = hourglass.new_cache(1, 4)
    hourglass(random_tokens(1, 3), cache)
    with pytest.raises(ValueError, match="3 cached tokens and 2 new ones exceed the cache's max_length=4"):
        hourglass(random_tokens(1, 2), cache)
    with pytest.raises(ValueError, match="only stand at the end"):
        hourglass(torch.tensor([[0, 5]]), hourglass.new_cache(1, 4))
    with pytest.raises(ValueError, match="hidden states are those of a full pass"):
        hourglass(random_tokens(1, 1), cache, return_hidden=True)  # type: ignore[call-overload]


@pytest.mark.slow
@pytest.mark.parametrize("config", [FLAT, TINY, NESTED])
def test_sampled_pieces_are_the_same_in_any_batch(config: HourglassConfig) -> None:
    end_id, max_tokens = 2, 30
    torch.manual_seed(0)
    hourglass = Hourglass(config, VOCAB_SIZE)
    nn.init.normal_(hourglass.head.weight, std=0.5)  # decided opinions, so that a wrong position shows
    prompts = [random_tokens(1 + 3 * i % 7, seed=i).clamp_min(3) for i in range(7)]
    settings = SamplingConfig(max_tokens=max_tokens, temperature=0.8)
    pieces = [
        [piece.tolist() for piece in sample(hourglass, prompts, range(7), 5, settings, end_id=end_id, batch_size=size)]
        for size in (1, 2, 5)
    ]
    assert pieces[0] == pieces[1] == pieces[2]
    assert len({len(piece) for piece in pieces[0]}) > 1  # rows were freed and taken again at different times
    exact = hourglass.double()
    for index, prompt in enumerate(prompts[:3]):
        ids, uniforms = prompt.tolist(), piece_uniforms(5, index, max_tokens)
        while len(ids) < max_tokens and ids[-1] != end_id:
            with torch.no_grad():  # the whole prefix again
                logits_V = exact(torch.tensor([ids]))[0, -1] / 0.8
            logits_V[0] = -math.inf
            ids.append(int((logits_V.softmax(0).cumsum(0) <= uniforms[len(ids)]).sum()))
        assert pieces[0][index] == ids


@pytest.mark.slow
def test_a_short_text_is_learned_by_heart() -> None:
    config = replace(TINY, d_model=32, d_ff=64, hidden_loss="cosine")
    torch.manual_seed(0)
    hourglass = Hourglass(config, VOCAB_SIZE)
    optimizer = build_optimizer(OptimizerConfig(), hourglass)
    tokens_BT = random_tokens(4, 24)
    settings = {"learning_rate": 3e-3, "max_grad_norm": 0.5, "n_targets": tokens_BT[:, 1:].numel()}
    for step in range(1, 101):
        (metrics,) = read_metrics([train_step(hourglass, optimizer, tokens_BT, step=step, **settings)])
    assert metrics.auxiliary_sum != 0.0
    assert metrics.n_correct > 0.97 * metrics.n_targets


def test_bfloat16_training_gives_nearly_the_same() -> None:
    hourglass = build_hourglass(replace(NESTED, hidden_loss="exp_cosine"), torch.float32).train()
    tokens_BT = random_tokens(2, 21)
    expected_BTV, expected = hourglass(tokens_BT, return_hidden=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits_BTV, hidden = hourglass(tokens_BT, return_hidden=True)
    assert logits_BTV.dtype == torch.bfloat16
    torch.testing.assert_close(logits_BTV.float(), expected_BTV, atol=0.1, rtol=0.05)
    loss, exact = hourglass.auxiliary_loss(hidden, tokens_BT), hourglass.auxiliary_loss(expected, tokens_BT)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, exact, rtol=0.02, atol=0.0)
    (logits_BTV.float().square().mean() + loss).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in hourglass.parameters())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backend", "attention"), [("aot_eager", True), pytest.param("inductor", False, marks=pytest.mark.nightly)]
)
def test_the_compiled_model_is_the_same(backend: str, attention: bool) -> None:
    config = replace(TINY, attention_resampling=attention, hidden_loss="cosine")
    hourglass = build_hourglass(config, torch.float32).train()
    tokens_BT = random_tokens(2, 11)
    tokens_BT[1, 8:] = 0

    def gradients(model: Callable) -> tuple[Tensor, ...]:
        logits_BTV, hidden = model(tokens_BT, return_hidden=True)
        loss = logits_BTV.square().mean() + hourglass.auxiliary_loss(hidden, tokens_BT)
        return loss, *torch.autograd.grad(loss, list(hourglass.parameters()))

    if backend == "inductor" and not shutil.which("g++"):
        pytest.skip("torch.compile needs a C++ compiler, and there is no g++")
    found = gradients(compile_model(hourglass, backend=backend))
    torch.testing.assert_close(found, gradients(hourglass), atol=1e-4, rtol=1e-4)


def test_lists_from_json_become_the_config() -> None:
    pydantic = pytest.importorskip("pydantic")
    adapter = pydantic.TypeAdapter(HourglassConfig)
    stored = {"name": "hourglass", "depths": [1, 2, 3, 4, 5], "shorten_factor": [2, 4]}
    config = adapter.validate_python(stored)
    assert config == HourglassConfig(depths=(1, 2, 3, 4, 5), shorten_factor=(2, 4))
    assert adapter.validate_json(adapter.dump_json(config)) == config
    assert adapter.validate_python({"shorten_factor": 3}).factors == (3,)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"d_model": 100}, "d_model=100 is not a multiple of n_heads=12"),
        ({"d_ff": 0}, "d_ff=0 is below 1"),
        ({"depths": (2, 1)}, r"depths=\(2, 1\) is not an odd number"),
        ({"depths": ()}, r"depths=\(\) is not an odd number"),
        ({"depths": (1, 0, 1)}, "depths: 0 is below 1"),
        ({"shorten_factor": 1}, "shorten_factor=1 is not a factor of 2 or more"),
        ({"shorten_factor": (2, 2)}, r"shorten_factor=\(2, 2\) is not a factor of 2 or more for each of 1 levels"),
        ({"resampling": "mean"}, "'mean'"),
        ({"dropout": 1.0}, "dropout=1.0 is not below 1"),
        ({"norm_eps": 0.0}, "norm_eps=0.0"),
        ({"hidden_loss": "softmax"}, "'softmax'"),
        ({"hidden_loss_weight": -1.0}, "hidden_loss_weight=-1.0 is below 0"),
        ({"hidden_loss": "cosine", "depths": (5,)}, "shortens nothing"),
    ],
)
def test_impossible_settings_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HourglassConfig(**change)  # type: ignore[arg-type]


def test_a_pad_id_outside_the_vocabulary_is_refused() -> None:
    with pytest.raises(ValueError, match="pad_id=20 is outside 0-19"):
        Hourglass(TINY, VOCAB_SIZE, pad_id=VOCAB_SIZE)
