"""Schedules at published values, the masked loss, gradients over workers, and two tasks that must be learnt."""

import copy
import math
from dataclasses import replace
from typing import Literal

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from models.config import (
    DecoderConfig,
    HourglassConfig,
    NoamSchedule,
    OptimizerConfig,
    VaeConfig,
    WarmupCosineSchedule,
)
from models.decoder.model import Decoder
from models.registry import build_model
from models.training import (
    StepMetrics,
    build_optimizer,
    count_batch,
    count_lengths,
    eval_step,
    learning_rate,
    read_metrics,
    token_loss,
    train_step,
)
from models.vae.bottlenecks import Latent

VOCAB_SIZE = 20
TINY = DecoderConfig(d_model=32, n_heads=4, n_layers=2, d_ff=64, dropout=0.0, max_relative_distance=64)


def build_decoder(config: DecoderConfig = TINY, seed: int = 0) -> Decoder:
    torch.manual_seed(seed)
    return Decoder(config, VOCAB_SIZE)


def random_tokens(*shape: int, seed: int = 1) -> Tensor:
    return torch.randint(1, VOCAB_SIZE, shape, generator=torch.Generator().manual_seed(seed))


def gradients(model: nn.Module) -> list[Tensor]:
    return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]


def step(model: nn.Module, tokens_BT: Tensor, n_targets: float, **changes: object) -> StepMetrics:
    settings: dict[str, object] = {"step": 1, "learning_rate": 1e-3, "max_grad_norm": None, **changes}
    optimizer = build_optimizer(OptimizerConfig(), model)
    figures = train_step(model, optimizer, tokens_BT, n_targets=n_targets, **settings)  # type: ignore[arg-type]
    return read_metrics([figures])[0]


@pytest.mark.parametrize(("step", "rate"), [(1, 9.882118e-07), (2000, 1.976424e-03), (4000, 1.397542e-03)])
def test_noam_has_the_published_values(step: int, rate: float) -> None:
    assert learning_rate(NoamSchedule(warmup_steps=2000), step, 128, 10_000) == pytest.approx(rate, rel=1e-6)


def test_noam_scales_and_falls_at_once_without_warmup() -> None:
    plain, scaled = NoamSchedule(warmup_steps=2000), NoamSchedule(warmup_steps=2000, scale=0.5)
    assert learning_rate(scaled, 77, 128, 0) == pytest.approx(0.5 * learning_rate(plain, 77, 128, 0))
    for warmup_steps in (0, -1):
        schedule = NoamSchedule(warmup_steps=warmup_steps, scale=2.0)
        assert learning_rate(schedule, 500, 256, 0) == pytest.approx(2 / 16 / math.sqrt(4500), rel=1e-6)


def test_warmup_cosine_rises_peaks_halves_and_stays_on_its_floor() -> None:
    schedule = WarmupCosineSchedule(max_lr=2e-3, warmup_steps=10, total_steps=110, min_lr_ratio=0.1)
    rates = {step: learning_rate(schedule, step, 128, 999) for step in (1, 5, 10, 60, 110, 500)}
    assert rates == pytest.approx({1: 2e-4, 5: 1e-3, 10: 2e-3, 60: 1.1e-3, 110: 2e-4, 500: 2e-4})


def test_warmup_cosine_ends_with_the_run() -> None:
    schedule = WarmupCosineSchedule(max_lr=1.0, warmup_steps=0, min_lr_ratio=0.25)
    assert learning_rate(schedule, 40, 128, n_steps=40) == pytest.approx(0.25)
    assert learning_rate(schedule, 20, 128, n_steps=40) == pytest.approx(0.625)
    assert learning_rate(replace(schedule, warmup_steps=40), 40, 128, n_steps=40) == pytest.approx(1.0)


def test_there_is_no_step_0() -> None:
    with pytest.raises(ValueError, match="step=0 is below 1"):
        learning_rate(NoamSchedule(), 0, 128, 1)


def test_loss_is_torch_s_and_extra_padding_changes_nothing() -> None:
    logits_BTV = torch.randn(3, 7, VOCAB_SIZE, dtype=torch.float64).float()
    targets_BT = random_tokens(3, 7)
    targets_BT[0, 4:] = 0
    loss_sum, n_targets = token_loss(logits_BTV, targets_BT, 0)
    assert n_targets == 18
    expected = functional.cross_entropy(logits_BTV.flatten(0, 1), targets_BT.flatten(), ignore_index=0)
    torch.testing.assert_close(loss_sum / n_targets, expected)
    padded_sum, n_padded = token_loss(
        functional.pad(logits_BTV, (0, 0, 0, 5), value=3.0), functional.pad(targets_BT, (0, 5)), 0
    )
    assert n_padded == n_targets
    torch.testing.assert_close(padded_sum, loss_sum)


def test_a_step_with_padding_gives_the_same_gradients() -> None:
    tokens_BT = random_tokens(2, 12)
    plain, padded = build_decoder(), build_decoder()
    plain_metrics = step(plain, tokens_BT, n_targets=22)
    padded_metrics = step(padded, functional.pad(tokens_BT, (0, 6)), n_targets=22)
    assert padded_metrics == pytest.approx(plain_metrics, rel=1e-5)
    torch.testing.assert_close(gradients(padded), gradients(plain), atol=1e-6, rtol=1e-4)


def test_two_workers_with_uneven_halves_equal_one_with_the_whole_batch() -> None:
    tokens_BT = random_tokens(4, 16)
    tokens_BT[0, 3:] = 0
    tokens_BT[1, 9:] = 0  # 10 targets in the first half, 30 in the second
    n_targets = int((tokens_BT[:, 1:] != 0).sum())
    whole, first, second = build_decoder(), build_decoder(), build_decoder()
    step(whole, tokens_BT, n_targets)
    step(first, tokens_BT[:2], n_targets / 2)
    step(second, tokens_BT[2:], n_targets / 2)
    averaged = [(a + b) / 2 for a, b in zip(gradients(first), gradients(second), strict=True)]
    torch.testing.assert_close(averaged, gradients(whole), atol=1e-6, rtol=1e-4)


def test_clipping_limits_the_gradient_but_not_the_report() -> None:
    tokens_BT = random_tokens(2, 12)
    free, clipped = build_decoder(), build_decoder()
    free_metrics, clipped_metrics = step(free, tokens_BT, 22), step(clipped, tokens_BT, 22, max_grad_norm=0.01)
    assert clipped_metrics == free_metrics
    length = torch.cat([gradient.flatten() for gradient in gradients(clipped)]).norm()
    assert float(length) == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_a_gradient_that_is_not_finite_changes_neither_weights_nor_optimizer(name: Literal["adam", "adamw"]) -> None:
    model = build_decoder()
    optimizer = build_optimizer(OptimizerConfig(name=name, weight_decay=0.1), model)
    settings = {"step": 1, "learning_rate": 1e-3, "max_grad_norm": 1.0, "n_targets": 8}

    def state() -> list[Tensor]:
        averages = [value for kept in optimizer.state.values() for value in kept.values()]
        return [tensor.detach().clone() for tensor in (*model.parameters(), *averages)]

    def spoilt_step() -> StepMetrics:
        hook = model.register_forward_hook(lambda *call: call[-1] * math.nan)
        figures = train_step(model, optimizer, random_tokens(2, 5), **settings)  # type: ignore[arg-type]
        hook.remove()
        return read_metrics([figures])[0]

    untrained = [parameter.detach().clone() for parameter in model.parameters()]
    assert not spoilt_step().applied
    assert all(map(torch.equal, untrained, model.parameters()))
    assert read_metrics([train_step(model, optimizer, random_tokens(2, 5), **settings)])[0].applied  # type: ignore[arg-type]
    assert {float(kept["step"]) for kept in optimizer.state.values()} == {1.0}  # the step before does not count
    before = state()
    skipped = spoilt_step()
    assert not skipped.applied
    assert not math.isfinite(skipped.grad_norm)
    assert len(before) == 4 * len(untrained)
    assert all(map(torch.equal, before, state()))


def test_a_batch_without_targets_is_refused() -> None:
    with pytest.raises(ValueError, match="n_targets=0"):
        step(build_decoder(), torch.zeros(1, 4, dtype=torch.long), 0)


def test_bfloat16_stays_close() -> None:
    tokens_BT = random_tokens(4, 33)
    exact, rounded = build_decoder(), build_decoder()
    exact_metrics, rounded_metrics = step(exact, tokens_BT, 128), step(rounded, tokens_BT, 128, bf16=True)
    assert rounded_metrics[0] == pytest.approx(exact_metrics[0], rel=1e-2)
    assert rounded_metrics != exact_metrics
    assert all(parameter.dtype == torch.float32 for parameter in rounded.parameters())


def test_evaluation_has_no_dropout_keeps_the_mode_and_counts_hits() -> None:
    model = build_decoder(replace(TINY, dropout=0.5)).train()
    tokens_BT = random_tokens(3, 20)
    tokens_BT[0, 10:] = 0
    first, second = eval_step(model, tokens_BT), eval_step(model, tokens_BT)
    assert first == second
    assert model.training
    assert first.n_targets == 9 + 19 + 19
    model.eval()
    with torch.no_grad():
        hits_BT = (model(tokens_BT[:, :-1]).argmax(-1) == tokens_BT[:, 1:]) & (tokens_BT[:, 1:] != 0)
    assert first.n_correct == int(hits_BT.sum())


def test_masks_split_the_targets_without_overlap() -> None:
    model, tokens_BT = build_decoder(), random_tokens(2, 20)
    early_BT = torch.zeros_like(tokens_BT, dtype=torch.bool)
    early_BT[:, :8] = True
    whole = eval_step(model, tokens_BT)
    parts = [eval_step(model, tokens_BT, mask_BT=mask_BT) for mask_BT in (early_BT, ~early_BT)]
    assert [part.n_targets for part in parts] == [14, 24]
    assert sum(part.nll_sum for part in parts) == pytest.approx(whole.nll_sum, rel=1e-5)
    assert sum(part.n_correct for part in parts) == whole.n_correct


def test_adamw_decays_matrices_only() -> None:
    model = build_decoder()
    optimizer = build_optimizer(OptimizerConfig(name="adamw", weight_decay=0.1), model)
    decayed, plain = optimizer.param_groups
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.1, 0.0)
    assert all(parameter.ndim >= 2 for parameter in decayed["params"])
    assert len(decayed["params"]) + len(plain["params"]) == len(list(model.parameters()))
    assert isinstance(build_optimizer(OptimizerConfig(), model), torch.optim.Adam)


def test_a_restored_optimizer_goes_on_bit_for_bit() -> None:
    batches = [random_tokens(2, 12, seed=seed) for seed in range(6)]
    settings = {"step": 1, "learning_rate": 1e-3, "max_grad_norm": 1.0, "n_targets": 22}
    unbroken = build_decoder()
    optimizer = build_optimizer(OptimizerConfig(), unbroken)
    for tokens_BT in batches[:3]:
        train_step(unbroken, optimizer, tokens_BT, **settings)
    resumed = build_decoder(seed=9)
    resumed.load_state_dict(unbroken.state_dict())
    resumed_optimizer = build_optimizer(OptimizerConfig(), resumed)
    resumed_optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))  # torch would share its tensors
    for tokens_BT in batches[3:]:
        train_step(unbroken, optimizer, tokens_BT, **settings)
        train_step(resumed, resumed_optimizer, tokens_BT, **settings)
    for name, value in unbroken.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: replace(OptimizerConfig(), **{"name": "sgd"}), "'sgd'"),
        (lambda: OptimizerConfig(betas=(0.9, 1.0)), "betas: 1.0 is not below 1"),
        (lambda: OptimizerConfig(max_grad_norm=0.0), "max_grad_norm=0.0 is not above 0"),
        (lambda: WarmupCosineSchedule(min_lr_ratio=2.0), "min_lr_ratio=2.0 is above 1"),
        (lambda: WarmupCosineSchedule(max_lr=0.0), "max_lr=0.0 is not above 0"),
        (lambda: NoamSchedule(scale=0.0), "scale=0.0 is not above 0"),
    ],
)
def test_impossible_settings_are_refused(build: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()  # type: ignore[operator]


def train(model: Decoder, batches: list[Tensor], max_lr: float) -> None:
    optimizer = build_optimizer(OptimizerConfig(), model)
    schedule = WarmupCosineSchedule(max_lr=max_lr, warmup_steps=10)
    for i, tokens_BT in enumerate(batches, start=1):
        rate = learning_rate(schedule, i, model.config.d_model, len(batches))
        n_targets = int((tokens_BT[:, 1:] != 0).sum())
        train_step(model, optimizer, tokens_BT, step=i, learning_rate=rate, max_grad_norm=1.0, n_targets=n_targets)


@pytest.mark.slow
def test_a_tiny_decoder_memorises_a_phrase() -> None:
    model, phrase_BT = build_decoder(), random_tokens(1, 48)
    train(model, [phrase_BT] * 120, max_lr=5e-3)
    metrics = eval_step(model, phrase_BT)
    assert metrics.nll_sum / metrics.n_targets < 0.05
    assert metrics.n_correct == 47


@pytest.mark.slow
def test_a_tiny_decoder_learns_to_copy() -> None:
    """Eight random ids, then the same again: what is learnt is a distance, which only the relative table knows."""
    halves = [torch.randint(1, VOCAB_SIZE, (32, 8), generator=torch.Generator().manual_seed(i)) for i in range(301)]
    *batches, held_out_BT = [torch.cat((half_BT, half_BT), dim=1) for half_BT in halves]
    model = build_decoder()
    train(model, batches, max_lr=5e-3)
    second_half_BT = torch.zeros_like(held_out_BT, dtype=torch.bool)
    second_half_BT[:, 8:] = True
    metrics = eval_step(model, held_out_BT, mask_BT=second_half_BT)
    assert metrics.nll_sum / metrics.n_targets < 0.05


RAGGED = (17, 3, 9, 1, 2, 17, 5, 2, 13, 8, 4, 16)  # tokens of the rows of a batch, the first of which is given
HOURGLASS = HourglassConfig(d_model=16, n_heads=2, d_ff=32, depths=(1, 1, 1, 1, 1), shorten_factor=(2, 2), dropout=0.0)
SMALL_VAE = VaeConfig(block=16, d_model=16, n_heads=2, n_layers=1, channels=(12, 8), kl_start=0.3, kl_end=0.3)
SYSTEMS = {
    "decoder": TINY,
    **{
        f"{kind}, {'both ways' if upsampled else 'down'}": replace(
            HOURGLASS, hidden_loss=kind, hidden_loss_weight=0.5, hidden_upsampled=upsampled
        )
        for kind in ("cosine", "exp_cosine")
        for upsampled in (True, False)
    },
    "vae": replace(SMALL_VAE, free_bits=0.0),
    "vae with free bits": replace(SMALL_VAE, free_bits=0.1),
    "vae encoder": replace(SMALL_VAE, family="encoder", free_bits=0.0),
}


def ragged_batch() -> Tensor:
    tokens_BT = random_tokens(len(RAGGED), max(RAGGED))
    for row, length in enumerate(RAGGED):
        tokens_BT[row, length:] = 0
    return tokens_BT


@pytest.mark.slow
@pytest.mark.parametrize("name", SYSTEMS)
def test_parts_and_workers_have_the_gradient_of_the_whole_batch(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # One latent noise for every row: what is drawn would otherwise depend on how the batch is cut.
    monkeypatch.setattr(Latent, "sample", lambda self, generator=None: self.mu_BZ + (0.5 * self.logvar_BZ).exp())
    torch.manual_seed(0)
    model = build_model(SYSTEMS[name], VOCAB_SIZE).double()
    tokens_BT = ragged_batch()
    counts = count_batch(model, tokens_BT)
    assert counts.n_targets == sum(RAGGED) - len(RAGGED)
    assert counts == count_lengths(model, torch.tensor(RAGGED), max(RAGGED))

    def gradient(n_workers: int, n_parts: int) -> tuple[Tensor, float]:
        """Return the average of the workers' gradients, and the mean auxiliary loss that they report together."""
        share, averaged, auxiliary = counts.share(n_workers), torch.zeros(()), 0.0
        for rank in range(n_workers):
            metrics = step(
                model, tokens_BT[rank::n_workers], share.n_targets, n_hidden=share.hidden,
                grad_accumulation_steps=n_parts, learning_rate=0.0,
            )  # fmt: skip
            averaged = averaged + torch.cat([g.flatten() for g in gradients(model)]) / n_workers
            auxiliary += metrics.auxiliary_sum / counts.n_targets
        return averaged, auxiliary

    whole, auxiliary = gradient(1, 1)
    assert (auxiliary != 0) is (name != "decoder")
    for n_workers in (1, 2):
        for n_parts in (1, 2, 3, 4):
            found, reported = gradient(n_workers, n_parts)
            assert float((found - whole).norm() / whole.norm()) < 1e-12, (n_workers, n_parts)
            assert reported == pytest.approx(auxiliary, rel=1e-12)
