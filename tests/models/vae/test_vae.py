"""The model with latents: its counts, what padding and later tokens may not change, its loss, and that it learns."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Literal, get_args

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from models.config import BottleneckKind, OptimizerConfig, SamplingConfig, VaeConfig
from models.registry import build_model
from models.sampling.sample import sample
from models.training import build_optimizer, count_batch
from models.vae.latents import ConditionedDecoder, latent_use
from models.vae.model import Vae
from tests.models.vae.small_vae import ENCODER, END, FAMILIES, PAD, START, TINY, VOCAB_SIZE, build_vae, latents, rows

RowMode = Literal["whole", "modeling", "generation"]
MODES = pytest.mark.parametrize("mode", get_args(RowMode))
REPLACEMENT = VaeConfig().token_dropout_by

# Sizes


def test_parameters_are_as_many_as_published() -> None:
    with torch.device("meta"):
        encoder_decoder = build_model(VaeConfig(), 320)
        assert encoder_decoder.n_parameters == 1_747_338
        assert build_model(VaeConfig(family="encoder"), 320).n_parameters == 1_550_474
        assert build_model(VaeConfig(), 321).n_parameters == 1_747_338 + 128
        defaults = VaeConfig(block=256, n_layers=4, bias=True, channels=(192, 256, 320))
        assert build_model(defaults, 400).n_parameters == 3_936_399
    assert isinstance(encoder_decoder, Vae)
    # All but the averages of the bottleneck are learned.
    assert sum(parameter.numel() for parameter in encoder_decoder.parameters()) == 1_747_338 - 2 * 5


@pytest.mark.parametrize(("n_layers", "millions"), [(2, 3.90), (4, 7.58), (6, 11.25), (8, 14.92)])
def test_without_a_bottleneck_too(n_layers: int, millions: float) -> None:
    config = VaeConfig(block=384, d_model=256, n_layers=n_layers, n_heads=8, bottleneck="none")
    with torch.device("meta"):
        assert round(build_model(config, 128).n_parameters / 1e6, 2) == millions


def test_untied_tables_are_told_apart() -> None:
    for config, n_more in ((TINY, 2), (ENCODER, 1)):
        tied, untied = build_vae(config), build_vae(replace(config, tied_embeddings=False))
        assert untied.n_parameters == tied.n_parameters + n_more * VOCAB_SIZE * config.d_model


def test_a_summary_tells_sizes_and_shapes() -> None:
    with torch.device("meta"):
        summary = Vae(VaeConfig(), 320).summary()
    assert summary["principal_shape"] == [512, 128]
    assert summary["bottleneck_shape"] == [256, 128]
    assert summary["compression_ratio"] == 0.5
    assert summary["stages"] == [[128, 512], [128, 256], [256, 128], [128, 256], [128, 512]]
    parts = summary["parameters"]
    assert parts["bottleneck"] == 656_266
    assert parts["tables"] == (320 + 2 * 512) * 128
    assert parts["total"] == 1_747_338 == sum(n for part, n in parts.items() if part != "total")


def test_weights_fit_a_file_that_holds_no_tensor_twice(tmp_path: Path) -> None:
    model = build_vae()
    save_file(model.state_dict(), tmp_path / "weights")
    other = Vae(TINY, VOCAB_SIZE, PAD).eval()
    other.load_state_dict(load_file(tmp_path / "weights"))
    assert torch.equal(model(rows(9)), other(rows(9)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"block": 0}, "block=0 is below 1"),
        ({"n_heads": 3}, "d_model=128 is not a multiple of n_heads=3"),
        ({"dropout": 1.0}, "dropout=1.0 is not below 1"),
        ({"token_dropout": -0.1}, "token_dropout=-0.1 is below 0"),
        ({"family": "decoder"}, "family='decoder' is not one of 'encoder_decoder', 'encoder'"),
        ({"bottleneck": "rnn"}, "bottleneck='rnn' is not one of 'variational_cnn'"),
        ({"kl_reduction": "mean"}, "kl_reduction='mean' is not one of 'per_token', 'sum'"),
        ({"token_dropout_in": "nowhere"}, "token_dropout_in='nowhere'"),
        ({"channels": ()}, "channels=()"),
        ({"channels": (8, 0)}, "channels: 0 is below 1"),
        ({"block": 510}, "block=510 is not a multiple of 4"),
        ({"kl_end": -1.0}, "kl_end=-1.0 is below 0"),
        ({"kl_steps": -1}, "kl_steps=-1"),
        ({"free_bits": math.inf}, "free_bits=inf"),
        ({"family": "encoder", "token_dropout": 0.1}, "token_dropout_in='decoder': family='encoder' has no decoder"),
        ({"row_mode": "copying"}, "row_mode='copying' is not one of 'whole', 'modeling', 'generation'"),
        ({"family": "encoder", "row_mode": "modeling"}, "row_mode='modeling': family='encoder' has no decoder"),
    ],
)
def test_impossible_settings_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("()", r"\(\)")):
        VaeConfig(**change)  # type: ignore[arg-type]


def test_ids_outside_the_vocabulary_are_refused() -> None:
    with pytest.raises(ValueError, match="pad_id=30 is outside 0-29"):
        Vae(TINY, VOCAB_SIZE, VOCAB_SIZE)
    for token in (PAD, VOCAB_SIZE):
        with pytest.raises(ValueError, match=f"token_dropout_by={token} is neither 'all' nor an id"):
            Vae(replace(TINY, token_dropout=0.1, token_dropout_by=token), VOCAB_SIZE, PAD)


@FAMILIES
def test_rows_that_are_too_long_are_refused(config: VaeConfig) -> None:
    model = build_vae(config)
    assert model(rows(25)).shape == (1, 24, VOCAB_SIZE)
    with pytest.raises(ValueError, match="rows of 26 tokens, but block=24 and a start token"):
        model(rows(26))


# What changes nothing


@FAMILIES
@torch.no_grad()
def test_padding_moves_nothing(config: VaeConfig) -> None:
    model, tokens_BT = build_vae(replace(config, tied_embeddings=False)), rows(15, 9, 4)
    before, expected_BTV = model.encode(tokens_BT), model(tokens_BT)
    padded_BT = functional.pad(tokens_BT, (0, 7), value=PAD)
    torch.testing.assert_close(model.encode(padded_BT), before)
    torch.testing.assert_close(model(padded_BT)[:, :14], expected_BTV)
    alone = model.encode(tokens_BT[2:, :4])
    torch.testing.assert_close(alone.mu_BZ, before.mu_BZ[2:])
    nn.init.normal_(model.embed.weight[PAD], std=100.0)
    torch.testing.assert_close(model.encode(tokens_BT), before)


@FAMILIES
@torch.no_grad()
def test_padding_is_no_loss(config: VaeConfig) -> None:
    model, tokens_BT = build_vae(config), rows(15, 9, 4)
    loss = model.loss_parts(tokens_BT)
    assert loss.n_targets == 14 + 8 + 3
    padded = model.loss_parts(functional.pad(tokens_BT, (0, 7), value=PAD))
    torch.testing.assert_close(tuple(padded), tuple(loss))


@torch.no_grad()
def test_a_later_token_moves_no_earlier_logit() -> None:
    model, tokens_BT = build_vae(), rows(20, 20)
    z_BZ = latents(model, 2)
    changed_BT = tokens_BT.clone()
    changed_BT[:, 12] = 5 + (changed_BT[:, 12] - 4) % (VOCAB_SIZE - 5)
    before_BTV, after_BTV = model.logits(tokens_BT, z_BZ), model.logits(changed_BT, z_BZ)
    assert torch.equal(before_BTV[:, :12], after_BTV[:, :12])
    assert not torch.allclose(before_BTV[:, 12:], after_BTV[:, 12:])


@torch.no_grad()
def test_the_encoder_family_writes_from_latents_alone() -> None:
    model = build_vae(ENCODER)
    z_BZ = latents(model, 2)
    assert torch.equal(model.logits(rows(20, 20), z_BZ), model.logits(rows(20, 20, seed=2), z_BZ))
    assert not torch.allclose(model.logits(rows(20, 20), z_BZ)[0], model.logits(rows(20, 20), z_BZ)[1])


@FAMILIES
@torch.no_grad()
def test_latents_move_all_logits(config: VaeConfig) -> None:
    model = build_vae(config)
    one_BTV, other_BTV = model.logits(rows(20, 20), latents(model, 2)), model.logits(rows(20, 20), latents(model, 2, 1))
    assert ((one_BTV - other_BTV).abs().amax(dim=-1) > 1e-4).all()


@FAMILIES
def test_nothing_is_nan_where_all_is_padding(config: VaeConfig) -> None:
    model = build_vae(config).train()
    loss = model.loss_parts(torch.tensor([[START, PAD, PAD], [START, 7, END]]))
    assert loss.n_targets == 2
    loss.nll_sum.backward()
    for parameter in model.parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all()


# Modes


@pytest.mark.parametrize(
    ("mode", "read", "written", "targets"),
    [
        ("whole", [7, 8, 9, END], [START, 7, 8, 9], [7, 8, 9, END]),
        ("modeling", [7, 8, 9], [START, 7, 8, 9], [7, 8, 9, END]),
        ("generation", [7, 8, 9], [7, 8, 9], [8, 9, END]),
    ],
)
def test_each_mode_has_its_rows(mode: RowMode, read: list[int], written: list[int], targets: list[int]) -> None:
    model = build_vae(replace(TINY, row_mode=mode))
    row = torch.tensor([[START, 7, 8, 9, END]])
    found = model.rows(row)
    assert [part.tolist() for part in found[:3]] == [[read], [written], [targets]]
    assert found.counts_BT.tolist() == [[True] * len(targets)]
    padded = model.rows(functional.pad(row, (0, 2), value=PAD))
    for part, expected in zip(padded[:2], (read, written), strict=True):
        assert part[0, : len(expected)].tolist() == expected
    assert padded.encoder_BT[0, len(read) :].eq(PAD).all()
    assert padded.targets_BT[padded.counts_BT].tolist() == targets
    assert model.loss_parts(row).n_targets == count_batch(model, row, PAD).n_targets == len(targets)


@MODES
@torch.no_grad()
def test_the_encoder_reads_what_its_mode_says(mode: RowMode) -> None:
    model, tokens_BT = build_vae(replace(TINY, row_mode=mode)), rows(15, 9)
    latent, changed_BT = model.encode(tokens_BT), tokens_BT.clone()
    changed_BT[0, 14], changed_BT[1, 8] = 5, 6
    is_same = torch.equal(model.encode(changed_BT).mu_BZ, latent.mu_BZ)
    assert is_same == (mode != "whole")
    assert model.encode(torch.tensor([[START, END]])).mu_BZ.isfinite().all()


@MODES
@torch.no_grad()
def test_the_decoder_reads_what_its_mode_says(mode: RowMode) -> None:
    model, tokens_BT = build_vae(replace(TINY, row_mode=mode)), rows(15, 9)
    z_BZ, changed_BT = latents(model, 2), tokens_BT.clone()
    changed_BT[:, 0] = 5
    is_same = torch.equal(model.logits(changed_BT, z_BZ), model.logits(tokens_BT, z_BZ))
    assert is_same == (mode == "generation")
    loss, logits_BTV = model.loss_parts(tokens_BT), model(tokens_BT)
    first = model.config.n_given - 1
    expected = functional.cross_entropy(
        logits_BTV[:, first:].flatten(0, 1), tokens_BT[:, first + 1 :].flatten(), ignore_index=PAD, reduction="sum"
    )
    torch.testing.assert_close(loss.nll_sum, expected)
    use = latent_use(model, tokens_BT)
    assert use.own_nll == pytest.approx(float(loss.nll_sum) / loss.n_targets)


# Loss


@FAMILIES
@torch.no_grad()
def test_the_loss_is_made_of_the_parts_told(config: VaeConfig) -> None:
    model, tokens_BT = build_vae(replace(config, kl_start=0.5, kl_end=1.0, kl_steps=10)), rows(15, 9, 4)
    logits_BTV, latent = model(tokens_BT), model.encode(tokens_BT)
    targets_BT = tokens_BT[:, 1:]
    loss = model.loss_parts(tokens_BT, step=5)
    expected = functional.cross_entropy(logits_BTV.flatten(0, 1), targets_BT.flatten(), ignore_index=PAD)
    torch.testing.assert_close(loss.nll_sum / loss.n_targets, expected)
    assert loss.n_correct == int(((logits_BTV.argmax(-1) == targets_BT) & (targets_BT != PAD)).sum())
    torch.testing.assert_close(loss.kl_sum, latent.kl().sum())
    torch.testing.assert_close(loss.auxiliary_sum, 0.75 * latent.kl().sum())
    torch.testing.assert_close(model.loss_parts(tokens_BT).auxiliary_sum, latent.kl().sum())
    torch.testing.assert_close(tuple(model(tokens_BT, wants_loss=True, step=5)), tuple(loss))


@torch.no_grad()
def test_both_reductions_of_the_divergence() -> None:
    tokens_BT = rows(15, 9, 4)
    per_token = build_vae(replace(TINY, kl_end=0.1)).loss_parts(tokens_BT)
    summed = build_vae(replace(TINY, kl_end=0.1, kl_reduction="sum")).loss_parts(tokens_BT)
    torch.testing.assert_close(per_token.auxiliary_sum / 25, 0.1 * per_token.kl_sum / 25)
    torch.testing.assert_close(summed.auxiliary_sum / 25, 0.1 * summed.kl_sum)  # beside the mean loss, as published


@torch.no_grad()
def test_free_bits_cost_nothing_in_each_piece() -> None:
    tokens_BT = rows(15, 9, 4)
    kl_B = build_vae().encode(tokens_BT).kl()
    n_targets_B = torch.tensor([14, 8, 3])
    free_bits = float((kl_B / n_targets_B / math.log(2)).median())  # one piece below, one at it, one above
    loss = build_vae(replace(TINY, kl_end=2.0, free_bits=free_bits)).loss_parts(tokens_BT)
    cost_B = (kl_B - free_bits * math.log(2) * n_targets_B).clamp_min(0)
    assert int((cost_B > 1e-3).sum()) == 1
    torch.testing.assert_close(loss.auxiliary_sum, 2.0 * cost_B.sum())
    torch.testing.assert_close(loss.kl_sum, kl_B.sum())


@torch.no_grad()
def test_a_mask_chooses_targets_and_hides_nothing() -> None:
    model, tokens_BT = build_vae(), rows(15, 9)
    mask_BT = torch.arange(15)[None].expand(2, -1) >= 6
    masked, whole = model.loss_parts(tokens_BT, mask_BT=mask_BT), model.loss_parts(tokens_BT)
    rest = model.loss_parts(tokens_BT, mask_BT=~mask_BT)
    assert masked.n_targets == 9 + 3
    torch.testing.assert_close(masked.nll_sum + rest.nll_sum, whole.nll_sum)
    assert masked.n_correct + rest.n_correct == whole.n_correct


def test_the_weight_of_the_divergence_rises_in_a_line() -> None:
    config = VaeConfig(kl_start=0.0, kl_end=0.1, kl_steps=25_000)
    weights = [config.kl_weight(step) for step in (0, 12_500, 25_000, 90_000)]
    assert weights == pytest.approx([0, 0.05, 0.1, 0.1])
    assert VaeConfig(kl_start=0.3, kl_end=0.3).kl_weight(7) == pytest.approx(0.3)
    assert VaeConfig(kl_end=0.2, kl_steps=0).kl_weight(0) == 0.2


@FAMILIES
def test_latents_are_drawn_in_training_alone(config: VaeConfig) -> None:
    model, tokens_BT = build_vae(config), rows(15, 9)
    assert torch.equal(model(tokens_BT), model(tokens_BT))
    assert not torch.equal(model.train()(tokens_BT), model(tokens_BT))
    model.eval()
    drawn = [model.loss_parts(tokens_BT, sample=True, generator=torch.Generator().manual_seed(3)) for _ in range(2)]
    torch.testing.assert_close(tuple(drawn[0]), tuple(drawn[1]), rtol=0, atol=0)
    assert drawn[0].nll_sum != model.loss_parts(tokens_BT).nll_sum


@pytest.mark.parametrize("kind", ["cnn", "linear_1d", "variational_linear_1d", "linear_2d", "none"])
def test_every_bottleneck_trains(kind: BottleneckKind) -> None:
    model = build_vae(replace(TINY, bottleneck=kind)).train()
    loss = model.loss_parts(rows(15, 9))
    assert (loss.kl_sum > 0) == model.bottleneck.is_variational == kind.startswith("variational")
    (loss.nll_sum + loss.auxiliary_sum).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@FAMILIES
def test_bfloat16_is_near_float32(config: VaeConfig) -> None:
    torch.manual_seed(0)
    model, tokens_BT = Vae(config, VOCAB_SIZE, PAD), rows(15, 9, 4)
    expected = model.eval().loss_parts(tokens_BT)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(tokens_BT, wants_loss=True, step=config.kl_steps)
        model.train()(tokens_BT, wants_loss=True, step=1).nll_sum.backward()
    assert loss.kl_sum.dtype == loss.nll_sum.dtype == torch.float32
    torch.testing.assert_close(loss.nll_sum, expected.nll_sum, rtol=0.02, atol=0)
    torch.testing.assert_close(loss.kl_sum, expected.kl_sum, rtol=0.02, atol=0)
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in model.parameters())


# Token dropout


@pytest.mark.parametrize(("by", "share"), [(REPLACEMENT, 0.2), ("all", 0.2 * (1 - 1 / (VOCAB_SIZE - 1)))])
def test_as_many_tokens_are_dropped_as_told(by: int, share: float) -> None:
    model = build_vae(replace(TINY, token_dropout=0.2, token_dropout_by=by)).train()
    tokens_BT = torch.randint(5, VOCAB_SIZE, (1000, 1000), generator=torch.Generator().manual_seed(0))
    tokens_BT[:, 900:] = PAD
    dropped_BT = model.drop_tokens(tokens_BT)
    changed_BT = dropped_BT != tokens_BT
    assert not changed_BT[:, 900:].any()
    assert float(changed_BT[:, :900].double().mean()) == pytest.approx(share, abs=0.002)
    found = dropped_BT[changed_BT].unique().tolist()
    assert found == ([by] if by != "all" else [token for token in range(VOCAB_SIZE) if token != PAD])
    assert model.eval().drop_tokens(tokens_BT) is tokens_BT


@pytest.mark.parametrize(("where", "reads", "writes"), [("decoder", 0, 1), ("encoder", 1, 0), ("both", 1, 1)])
def test_tokens_are_dropped_where_told(where: str, reads: int, writes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_vae(replace(TINY, token_dropout=0.9, token_dropout_in=where)).train()  # type: ignore[arg-type]
    tokens_BT, seen = rows(20, 20), {}
    encode, decode = model.encode, model.decode
    monkeypatch.setattr(model, "encode", lambda tokens: seen.update(read=tokens) or encode(tokens))
    monkeypatch.setattr(model, "decode", lambda inputs, z: seen.update(written=inputs) or decode(inputs, z))
    loss = model.loss_parts(tokens_BT)
    assert bool((seen["read"] == REPLACEMENT).any()) == bool(reads)
    assert bool((seen["written"] == REPLACEMENT).any()) == bool(writes)
    assert loss.n_targets == 38


# Learning


def motif_pieces(n: int, seed: int) -> Tensor:
    """Return rows of a motif of 6 steps, 3 to 5 times, each time moved; 8 motif steps and 8 places."""
    generator = torch.Generator().manual_seed(seed)
    tokens_BT = torch.full((n, 33), PAD)
    for row in tokens_BT:
        motif, moves = torch.randint(8, (6,), generator=generator), torch.randint(8, (5,), generator=generator)
        n_times = int(torch.randint(3, 6, (1,), generator=generator))
        notes = (5 + moves[:n_times, None] + motif).flatten()
        row[: len(notes) + 2] = torch.cat((torch.tensor([START]), notes, torch.tensor([END])))
    return tokens_BT


def train(model: Vae, tokens_BT: Tensor, n_steps: int, batch_size: int = 32) -> None:
    optimizer = build_optimizer(OptimizerConfig(name="adamw", betas=(0.9, 0.95), weight_decay=0.01), model)
    generator = torch.Generator().manual_seed(0)
    model.train()
    for step in range(1, n_steps + 1):
        batch_BT = tokens_BT[torch.randint(len(tokens_BT), (batch_size,), generator=generator)]
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * min(1.0, step / 50)
        optimizer.zero_grad()
        loss = model(batch_BT, wants_loss=True, step=step)
        ((loss.nll_sum + loss.auxiliary_sum) / loss.n_targets).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()


MOTIFS = VaeConfig(block=32, d_model=48, n_layers=1, channels=(48, 32), kl_end=0.1)


@pytest.mark.slow
def test_eight_pieces_are_learned_by_heart() -> None:
    torch.manual_seed(0)
    model, pieces_BT = Vae(replace(MOTIFS, kl_end=0.001, kl_steps=0), VOCAB_SIZE, PAD), motif_pieces(8, seed=3)
    train(model, pieces_BT, n_steps=120, batch_size=8)
    loss = model.eval().loss_parts(pieces_BT)
    assert loss.n_correct / loss.n_targets > 0.99


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["modeling", "generation"])
def test_a_piece_is_written_again_in_each_mode(mode: RowMode) -> None:
    torch.manual_seed(0)
    config = replace(MOTIFS, kl_end=0.001, kl_steps=0, row_mode=mode)
    model, pieces_BT = Vae(config, VOCAB_SIZE, PAD), motif_pieces(4, seed=3)
    train(model, pieces_BT, n_steps=90, batch_size=8)
    pieces = [piece_T[piece_T != PAD] for piece_T in pieces_BT]
    written = sample(
        ConditionedDecoder(model.eval(), model.latent(pieces_BT)),
        [piece_T[: config.n_given] for piece_T in pieces],
        piece_indices=list(range(4)),
        seed=0,
        config=SamplingConfig(max_tokens=33, greedy=True),
        end_id=END,
        pad_id=PAD,
    )
    assert [piece_T.tolist() for piece_T in written] == [piece_T.tolist() for piece_T in pieces]


@pytest.mark.slow
def test_the_decoder_listens_to_latents_of_pieces_it_never_saw() -> None:
    torch.manual_seed(0)
    model = Vae(replace(MOTIFS, kl_steps=150, token_dropout=0.3), VOCAB_SIZE, PAD)
    train(model, motif_pieces(600, seed=1), n_steps=150)
    use = latent_use(model, motif_pieces(64, seed=2))
    assert use.gain >= 0.1
    assert use.n_active >= 32
    assert model.training


@pytest.mark.slow
def test_the_encoder_family_reconstructs_pieces_it_never_saw() -> None:
    torch.manual_seed(0)
    model = Vae(replace(MOTIFS, family="encoder", kl_steps=200), VOCAB_SIZE, PAD)
    train(model, motif_pieces(600, seed=1), n_steps=200)
    held_out_BT = motif_pieces(64, seed=2)
    loss = model.eval().loss_parts(held_out_BT)
    assert loss.n_correct / loss.n_targets > 0.95
    assert latent_use(model, held_out_BT).gain >= 0.1
