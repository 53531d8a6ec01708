"""Loss, learning-rate schedules, and one training or evaluation step. Shape letters: see layers.py."""

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.config import NoamSchedule, OptimizerConfig, ScheduleConfig


class StepMetrics(NamedTuple):
    """What one `train_step` saw: sums over this worker's own targets; `grad_norm` is before clipping.

    `applied` is False where the gradient was not finite and the weights were therefore left as they were.
    """

    loss_sum: float
    n_targets: int
    n_correct: int
    grad_norm: float
    applied: bool


class EvalMetrics(NamedTuple):
    """Sums over the targets of one batch; `nll_sum` in nats."""

    nll_sum: float
    n_targets: int
    n_correct: int


def learning_rate(schedule: ScheduleConfig, step: int, d_model: int, n_steps: int) -> float:
    """Return the learning rate of one step.

    Args:
        step: 1 for the first one.
        d_model: the Noam rate falls with its root.
        n_steps: length of the run, for a cosine without `total_steps` of its own.
    """
    if step < 1:
        raise ValueError(f"step={step} is below 1, the first step")
    if isinstance(schedule, NoamSchedule):
        return schedule.scale * noam_factor(step, d_model, schedule.warmup_steps)
    if step <= schedule.warmup_steps:
        return schedule.peak * step / schedule.warmup_steps
    last_step = schedule.total_steps or n_steps
    share_done = min((step - schedule.warmup_steps) / max(last_step - schedule.warmup_steps, 1), 1.0)
    height = 0.5 * (1 + math.cos(math.pi * share_done))
    return schedule.peak * (schedule.floor_share + (1 - schedule.floor_share) * height)


def noam_factor(step: int, d_model: int, warmup_steps: int) -> float:
    # The 1e-6 belongs to the published schedule, whose counter starts at 0.
    s = step + 1e-6
    if warmup_steps <= 0:
        return d_model**-0.5 * (s + 4000) ** -0.5
    return d_model**-0.5 * min(s**-0.5, s * warmup_steps**-1.5)


def build_optimizer(config: OptimizerConfig, model: nn.Module) -> torch.optim.Optimizer:
    """Return the optimizer for all parameters of `model`; every `train_step` sets its learning rate."""
    # Fused: one pass over memory instead of about ten, a twentieth of a whole step on a CPU.
    settings = {"lr": 0.0, "betas": config.betas, "eps": config.eps, "fused": True}
    if config.name == "adam":
        return torch.optim.Adam(model.parameters(), weight_decay=config.weight_decay, **settings)
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, **settings)


def token_loss(logits_BTV: Tensor, targets_BT: Tensor, pad_id: int = 0) -> tuple[Tensor, int]:
    """Return the cross entropy in nats, summed over the targets that are not `pad_id`, and their number."""
    loss = functional.cross_entropy(
        logits_BTV.flatten(0, 1).float(), targets_BT.flatten(), ignore_index=pad_id, reduction="sum"
    )
    return loss, int((targets_BT != pad_id).sum())


def count_correct(logits_BTV: Tensor, targets_BT: Tensor, counts_BT: Tensor) -> int:
    return int(((logits_BTV.argmax(dim=-1) == targets_BT) & counts_BT).sum())


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate


def clip_gradients(parameters: Iterable[nn.Parameter], max_grad_norm: float | None) -> float:
    """Scale the gradients down to a total length of `max_grad_norm`; return the length that they had."""
    limit = math.inf if max_grad_norm is None else max_grad_norm
    return float(nn.utils.clip_grad_norm_(parameters, limit))


def train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    tokens_BT: Tensor,
    *,
    learning_rate: float,
    max_grad_norm: float | None,
    n_targets: float,
    pad_id: int = 0,
    bf16: bool = False,
) -> StepMetrics:
    """Change the weights once; inputs are `tokens_BT[:, :-1]`, targets `tokens_BT[:, 1:]`.

    Args:
        n_targets: targets of the whole batch of all workers, divided by the number of workers. Gradients that are
            averaged over the workers are then those of the mean loss over the whole batch, however unevenly its
            targets are spread.
        bf16: run the forward pass in bfloat16 where torch holds that to be safe; weights and loss stay float32.
    """
    if n_targets <= 0:
        raise ValueError(f"n_targets={n_targets}: a batch without targets has no loss")
    model.train()
    set_learning_rate(optimizer, learning_rate)
    optimizer.zero_grad(set_to_none=True)
    inputs_BT, targets_BT = tokens_BT[:, :-1], tokens_BT[:, 1:]
    with torch.autocast(tokens_BT.device.type, dtype=torch.bfloat16, enabled=bf16):
        logits_BTV = model(inputs_BT)
    loss_sum, n_own_targets = token_loss(logits_BTV, targets_BT, pad_id)
    (loss_sum / n_targets).backward()
    grad_norm = clip_gradients(model.parameters(), max_grad_norm)
    # One NaN gradient would destroy the weights for good. The norm is that of the averaged gradients, so all workers
    # skip the same steps.
    applied = math.isfinite(grad_norm)
    if applied:
        optimizer.step()
    n_correct = count_correct(logits_BTV.detach(), targets_BT, targets_BT != pad_id)
    return StepMetrics(float(loss_sum.detach()), n_own_targets, n_correct, grad_norm, applied)


def eval_step(
    model: nn.Module, tokens_BT: Tensor, *, pad_id: int = 0, mask_BT: Tensor | None = None, bf16: bool = False
) -> EvalMetrics:
    """Return loss and hits of one batch, without gradients and without dropout; the model's mode is restored.

    Args:
        mask_BT: of the shape of `tokens_BT`; a token counts as a target only where it is True (for windows that
            overlap, so that no token counts twice). The first column is never a target, padding neither.
    """
    inputs_BT, targets_BT = tokens_BT[:, :-1], tokens_BT[:, 1:]
    counts_BT = targets_BT != pad_id
    if mask_BT is not None:
        counts_BT = counts_BT & mask_BT[:, 1:]
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), torch.autocast(tokens_BT.device.type, dtype=torch.bfloat16, enabled=bf16):
            logits_BTV = model(inputs_BT)
    finally:
        model.train(was_training)
    nll_sum, n_targets = token_loss(logits_BTV, targets_BT.masked_fill(~counts_BT, pad_id), pad_id)
    return EvalMetrics(float(nll_sum), n_targets, count_correct(logits_BTV, targets_BT, counts_BT))
