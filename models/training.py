"""Loss, learning-rate schedules, and one training or evaluation step. Shape letters: see layers.py."""

import math
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.config import (
    ConstantSchedule,
    HourglassConfig,
    NoamSchedule,
    OneCycleSchedule,
    OptimizerConfig,
    ScheduleConfig,
)
from models.layers import trusted_rows


class StepMetrics(NamedTuple):
    """Figures of one `train_step`: sums over this worker's own targets; `grad_norm` is before clipping.

    `loss_sum` is the cross entropy alone and `auxiliary_sum` what was added to it, both in nats. `applied` is False
    where the gradient was not finite and the weights were therefore left as they were.
    """

    loss_sum: float
    n_targets: int
    n_correct: int
    auxiliary_sum: float
    grad_norm: float
    applied: bool


class EvalMetrics(NamedTuple):
    """Sums over the targets of one batch, in nats; `kl_sum` is 0 for models without latents."""

    nll_sum: float
    n_targets: int
    n_correct: int
    kl_sum: float


class LossParts(NamedTuple):
    """Sums over the targets of a batch, all to be divided by one number of targets; scalars on the model's device.

    Attributes:
        nll_sum: cross entropy of the tokens in nats.
        n_targets, n_correct: tokens to predict, and those of them that are the likeliest by the model.
        auxiliary_sum: what else is to become small, of a size to be added to `nll_sum`.
        kl_sum: divergence of latents from their prior in nats, neither weighted nor with free bits taken off.
    """

    nll_sum: Tensor
    n_targets: Tensor
    n_correct: Tensor
    auxiliary_sum: Tensor
    kl_sum: Tensor


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
    if isinstance(schedule, ConstantSchedule):
        return schedule.rate
    if isinstance(schedule, OneCycleSchedule):
        first = schedule.max_lr / schedule.first_divisor
        return one_cycle(schedule, step, n_steps, (first, schedule.max_lr, first / schedule.last_divisor))
    if step <= schedule.warmup_steps:
        return schedule.max_lr * step / schedule.warmup_steps
    last_step = schedule.total_steps or n_steps
    share_done = min((step - schedule.warmup_steps) / max(last_step - schedule.warmup_steps, 1), 1.0)
    height = 0.5 * (1 + math.cos(math.pi * share_done))
    return schedule.max_lr * (schedule.min_lr_ratio + (1 - schedule.min_lr_ratio) * height)


def noam_factor(step: int, d_model: int, warmup_steps: int) -> float:
    """Return the Noam schedule (Vaswani et al. 2017, section 5.3) at `step`, counted from 0."""
    # The 1e-6 belongs to the published schedule, whose counter starts at 0.
    s = step + 1e-6
    if warmup_steps <= 0:
        return d_model**-0.5 * (s + 4000) ** -0.5
    return d_model**-0.5 * min(s**-0.5, s * warmup_steps**-1.5)


def beta1(schedule: ScheduleConfig, step: int, n_steps: int) -> float | None:
    """Return what the schedule makes of Adam's first beta at one step, or None where it leaves it alone."""
    if not isinstance(schedule, OneCycleSchedule) or schedule.betas is None:
        return None
    high, low = schedule.betas
    return one_cycle(schedule, step, n_steps, (high, low, high))


def one_cycle(schedule: OneCycleSchedule, step: int, n_steps: int, values: tuple[float, float, float]) -> float:
    """Return a value on its way, along half cosines, from the first of three to the second and on to the third."""
    n_rising = schedule.rising_share * (schedule.total_steps or n_steps) - 1
    n_falling = (schedule.total_steps or n_steps) - 1 - n_rising
    done = step - 1  # the first step has the first value
    if done <= n_rising:
        start, end, share = values[0], values[1], done / n_rising if n_rising else 1.0
    else:
        start, end, share = values[1], values[2], min((done - n_rising) / n_falling, 1.0)
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * share))


def build_optimizer(config: OptimizerConfig, model: nn.Module) -> torch.optim.Optimizer:
    """Return the optimizer for all parameters of `model`; every `train_step` sets its learning rate."""
    # Fused: one pass over memory instead of about ten, a twentieth of a whole step on a CPU.
    settings = {"lr": 0.0, "betas": config.betas, "eps": config.eps, "fused": True}
    if config.name == "adam":
        return torch.optim.Adam(model.parameters(), weight_decay=config.weight_decay, **settings)
    decayed = {id(parameter) for parameter in decayed_parameters(model, config.decay_params)}
    groups = [
        {"params": [p for p in model.parameters() if id(p) in decayed], "weight_decay": config.weight_decay},
        {"params": [p for p in model.parameters() if id(p) not in decayed], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, **settings)


def decayed_parameters(model: nn.Module, kind: str) -> list[nn.Parameter]:
    """Return the parameters with weight decay: weights of linear layers, or all with two axes or more."""
    if kind == "linear":
        linear = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Linear)}
        return [parameter for name, parameter in model.named_parameters() if name in linear]
    return [parameter for parameter in model.parameters() if parameter.ndim >= 2]


def token_loss(logits_BTV: Tensor, targets_BT: Tensor, pad_id: int = 0) -> tuple[Tensor, Tensor]:
    """Return the cross entropy in nats, summed over the targets that are not `pad_id`, and their number."""
    logits_BTV = logits_BTV.to(torch.promote_types(logits_BTV.dtype, torch.float32))
    loss = functional.cross_entropy(
        logits_BTV.flatten(0, 1), targets_BT.flatten(), ignore_index=pad_id, reduction="sum"
    )
    return loss, (targets_BT != pad_id).sum()


def inputs_and_targets(tokens_BT: Tensor, pad_id: int, mask_BT: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Return inputs_BT, targets_BT and counts_BT, True where a target is neither padding nor masked; T is one less."""
    targets_BT = tokens_BT[:, 1:]
    counts_BT = targets_BT != pad_id
    return tokens_BT[:, :-1], targets_BT, counts_BT if mask_BT is None else counts_BT & mask_BT[:, 1:]


def count_correct(logits_BTV: Tensor, targets_BT: Tensor, counts_BT: Tensor) -> Tensor:
    """Return at how many counted positions the likeliest id is the target."""
    return ((logits_BTV.argmax(dim=-1) == targets_BT) & counts_BT).sum()


def unwrap_model(model: nn.Module) -> Any:
    """Return the model that a compiled one or one of several workers wraps."""
    while (inner := getattr(model, "module", None) or getattr(model, "_orig_mod", None)) is not None:
        model = inner
    return model


class BatchCounts(NamedTuple):
    """What the losses of a whole batch are means over, the rows of all workers together.

    Attributes:
        n_targets: tokens to predict.
        hidden: see `Hourglass.auxiliary_counts`; empty for models without such a loss.
    """

    n_targets: float
    hidden: tuple[float, ...] = ()

    def share(self, n_workers: int) -> "BatchCounts":
        """Return the counts for one of some workers whose gradients are averaged."""
        return BatchCounts(self.n_targets / n_workers, tuple(count / n_workers for count in self.hidden))


def count_batch(model: nn.Module, tokens_BT: Tensor, pad_id: int = 0) -> BatchCounts:
    """Return what the losses of a model on the rows of a whole batch are means over.

    Args:
        model: bare or wrapped; it is not called.
    """
    bare = unwrap_model(model)
    n_targets = int((tokens_BT[:, bare.config.n_given :] != pad_id).sum())
    if isinstance(bare.config, HourglassConfig) and bare.has_auxiliary_loss:
        return BatchCounts(n_targets, tuple(bare.auxiliary_counts(bare.count_real(tokens_BT[:, :-1]))))
    return BatchCounts(n_targets)


def count_lengths(model: nn.Module, length_B: Tensor, n_columns: int) -> BatchCounts:
    """Return `count_batch` of rows of which only the lengths are known: tokens without padding inside of them.

    Args:
        length_B: tokens of each row, padding left out.
        n_columns: tokens of the longest row that fits, padding included.
    """
    bare = unwrap_model(model)
    n_targets = int((length_B - bare.config.n_given).clamp_min(0).sum())
    if isinstance(bare.config, HourglassConfig) and bare.has_auxiliary_loss:
        return BatchCounts(n_targets, tuple(bare.auxiliary_counts(length_B.clamp_max(n_columns - 1))))
    return BatchCounts(n_targets)


def loss_parts(
    model: nn.Module,
    tokens_BT: Tensor,
    *,
    step: int | None,
    pad_id: int = 0,
    mask_BT: Tensor | None = None,
    counts: BatchCounts | None = None,
) -> LossParts:
    """Return the loss of any model on rows of ids, whose inputs are `tokens_BT[:, :-1]` and targets `tokens_BT[:, 1:]`.

    Args:
        model: bare or wrapped; it is called only once, as wrappers for several workers demand.
        step: of schedules that belong to the model; None: their last one, and only the cross entropy matters.
        mask_BT: of the shape of `tokens_BT`; a token counts as a target only where it is True. The first column is
            never a target, padding neither.
        counts: of the whole batch that these rows are a part of; None: the rows are all of it.
    """
    bare = unwrap_model(model)
    if bare.config.has_latents:
        return model(tokens_BT, wants_loss=True, step=step, mask_BT=mask_BT)
    inputs_BT, targets_BT, counts_BT = inputs_and_targets(tokens_BT, pad_id, mask_BT)
    auxiliary = torch.zeros((), device=tokens_BT.device)
    if step is not None and isinstance(bare.config, HourglassConfig) and bare.has_auxiliary_loss:
        logits_BTV, hidden = model(inputs_BT, return_hidden=True)
        auxiliary = bare.auxiliary_loss(hidden, inputs_BT, counts.hidden if counts else None)
    else:
        logits_BTV = model(inputs_BT)
    nll_sum, n_targets = token_loss(logits_BTV, targets_BT.masked_fill(~counts_BT, pad_id), pad_id)
    n_correct = count_correct(logits_BTV.detach(), targets_BT, counts_BT)
    # A part's share of the mean over the whole batch, times what all parts are divided by.
    auxiliary_sum = auxiliary * (counts.n_targets if counts else n_targets)
    return LossParts(nll_sum, n_targets, n_correct, auxiliary_sum, torch.zeros_like(auxiliary))


def train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    tokens_BT: Tensor,
    *,
    step: int,
    learning_rate: float,
    max_grad_norm: float | None,
    n_targets: float,
    n_hidden: Sequence[float] | None = None,
    beta1: float | None = None,
    grad_accumulation_steps: int = 1,
    pad_id: int = 0,
    bf16: bool = False,
    trust_rows: bool = False,
) -> Tensor:
    """Change the weights once; inputs are `tokens_BT[:, :-1]`, targets `tokens_BT[:, 1:]`.

    Nothing here waits for a GPU: figures stay on it until `read_metrics`. A gradient that is not finite changes neither
    weights nor the optimizer's averages and steps.

    Args:
        step: 1 for the first one.
        n_targets: targets of the whole batch of all workers, divided by the number of workers. Gradients that add up
            over the parts and are averaged over the workers are then those of the mean loss over the whole batch,
            however unevenly its targets are spread.
        n_hidden: the same for what an auxiliary loss is a mean over, see `count_batch`; None: `tokens_BT` is the whole
            batch.
        beta1: of Adam, at this step; None: as it is.
        grad_accumulation_steps: parts in which the batch goes through the model, one after the other. Workers of DDP
            exchange gradients in the last one alone.
        bf16: run the forward pass in bfloat16 where torch holds that to be safe; weights and loss stay float32.
        trust_rows: the caller knows that rows fit the model and have padding only at their ends; it does not look.
    Returns:
        The figures of `StepMetrics` as float64 of shape (6,), on the device of the model.
    """
    if n_targets <= 0:
        raise ValueError(f"n_targets={n_targets}: a batch without targets has no loss")
    n_hidden = count_batch(model, tokens_BT, pad_id).hidden if n_hidden is None else n_hidden
    counts = BatchCounts(n_targets, tuple(n_hidden))
    model.train()
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
        group["betas"] = group["betas"] if beta1 is None else (beta1, group["betas"][1])
    optimizer.zero_grad(set_to_none=True)
    sums = torch.zeros(4, dtype=torch.float64, device=tokens_BT.device)
    # Every worker has as many parts, although its share of the batch may be a row smaller than that of another.
    *earlier, last_BT = tokens_BT.tensor_split(grad_accumulation_steps)
    for part_BT in (*earlier, last_BT):
        waits = part_BT is not last_BT
        with (
            getattr(model, "no_sync", nullcontext)() if waits else nullcontext(),
            trusted_rows() if trust_rows else nullcontext(),
        ):
            with torch.autocast(tokens_BT.device.type, dtype=torch.bfloat16, enabled=bf16):
                parts = loss_parts(model, part_BT, step=step, pad_id=pad_id, counts=counts)
            ((parts.nll_sum + parts.auxiliary_sum) / n_targets).backward()
        seen = parts.nll_sum.detach(), parts.n_targets, parts.n_correct, parts.auxiliary_sum.detach()
        sums += torch.stack([value.double() for value in seen])
    grad_norm = clip_gradients(model, max_grad_norm)
    # One NaN gradient would destroy the weights for good. The norm is that of the averaged gradients, so all workers
    # skip the same steps. Fused optimizers read this flag where they compute.
    is_skipped = (~grad_norm.isfinite()).float()
    optimizer.found_inf = is_skipped  # type: ignore[attr-defined]
    optimizer.step()
    return torch.cat((sums, torch.stack((grad_norm.double(), 1.0 - is_skipped.double()))))


def clip_gradients(model: nn.Module, longest: float | None) -> Tensor:
    """Shorten the gradient to the norm `longest`, over all workers that share it; None: not. Return its norm before."""
    parameters = [parameter for parameter in model.parameters() if parameter.grad is not None]
    grad_norm: Any = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if hasattr(grad_norm, "full_tensor"):  # gradients of `fully_shard`
        grad_norm = grad_norm.full_tensor()
    if longest is not None:
        nn.utils.clip_grads_with_norm_(parameters, longest, grad_norm)
    return grad_norm


def read_metrics(steps: Sequence[Tensor]) -> list[StepMetrics]:
    """Return the figures of some `train_step`s; it waits for the device, once for all of them."""
    rows = torch.stack(tuple(steps)).tolist() if steps else []
    return [
        StepMetrics(loss_sum, int(n_targets), int(n_correct), auxiliary_sum, grad_norm, bool(applied))
        for loss_sum, n_targets, n_correct, auxiliary_sum, grad_norm, applied in rows
    ]


def eval_step(
    model: nn.Module,
    tokens_BT: Tensor,
    *,
    pad_id: int = 0,
    mask_BT: Tensor | None = None,
    bf16: bool = False,
    draw_latents_by: torch.Generator | None = None,
) -> EvalMetrics:
    """Return loss and hits of one batch, without gradients and without dropout; the model's mode is restored.

    Args:
        draw_latents_by: for a model with latents; None: they are the likeliest ones.
        mask_BT: of the shape of `tokens_BT`; a token counts as a target only where it is True (for windows that
            overlap, so that no token counts twice). The first column is never a target, padding neither.
    """
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), torch.autocast(tokens_BT.device.type, dtype=torch.bfloat16, enabled=bf16):
            if draw_latents_by is None:
                parts = loss_parts(model, tokens_BT, step=None, pad_id=pad_id, mask_BT=mask_BT)
            else:
                parts = model(tokens_BT, wants_loss=True, mask_BT=mask_BT, draw_latents_by=draw_latents_by)
    finally:
        model.train(was_training)
    return EvalMetrics(float(parts.nll_sum), int(parts.n_targets), int(parts.n_correct), float(parts.kl_sum))


def row_losses(
    model: nn.Module, tokens_BT: Tensor, *, pad_id: int = 0, mask_BT: Tensor | None = None
) -> tuple[Tensor, int, int]:
    """Return the cross entropy of each row of a batch, for a model without latents in evaluation mode.

    Args:
        mask_BT: as for `eval_step`.
    Returns:
        float64 (B,), nats summed over the row's targets; the number of targets, and of those that are the likeliest.
    """
    inputs_BT, targets_BT, counts_BT = inputs_and_targets(tokens_BT, pad_id, mask_BT)
    with torch.no_grad():
        logits_BTV = model(inputs_BT)
        loss_BT = functional.cross_entropy(logits_BTV.float().transpose(1, 2), targets_BT, reduction="none")
    nats_B = loss_BT.double().masked_fill(~counts_BT, 0.0).sum(dim=1)
    return nats_B, int(counts_BT.sum()), int(count_correct(logits_BTV, targets_BT, counts_BT))
