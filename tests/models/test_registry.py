"""What every model family of the registry must do, each with its smallest sizes."""

from dataclasses import fields
from typing import Any, get_args

import pytest
import torch

from models.config import ModelConfig, SamplingConfig
from models.registry import MODELS, build_model
from models.sampling.sample import sample
from models.training import loss_parts

SMALL = {"d_model": 16, "n_heads": 2, "n_layers": 2, "d_ff": 32, "dropout": 0.0, "block": 16, "channels": (8, 8)}
VOCAB_SIZE, END = 12, 2


def small_config(kind: type) -> Any:
    return kind(**{name: value for name, value in SMALL.items() if name in {field.name for field in fields(kind)}})


def small_model(kind: type) -> Any:
    torch.manual_seed(0)
    return build_model(small_config(kind), VOCAB_SIZE).eval()


CAUSAL = [kind for kind in MODELS if not kind.has_latents]


def test_every_config_has_a_model() -> None:
    assert set(get_args(ModelConfig)) == set(MODELS)


@pytest.mark.parametrize("kind", MODELS)
def test_a_model_says_its_sizes_and_has_a_loss(kind: type) -> None:
    model = small_model(kind)
    assert (model.vocab_size, model.pad_id) == (VOCAB_SIZE, 0)
    assert model.max_length is None or model.max_length > 0
    n_weights = sum(parameter.numel() for parameter in model.parameters())
    n_buffers = sum(buffer.numel() for buffer in model.buffers())
    assert n_weights <= model.n_parameters <= n_weights + n_buffers  # the VAE counts its running averages
    tokens_BT = torch.randint(3, VOCAB_SIZE, (2, 17))
    parts = loss_parts(model, tokens_BT, step=0)
    assert parts.n_targets == 32
    (parts.nll_sum + parts.auxiliary_sum).backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters() if parameter.grad is not None)


@pytest.mark.parametrize("kind", CAUSAL)
def test_a_later_token_changes_no_earlier_logit(kind: type) -> None:
    model = small_model(kind)
    tokens_BT = torch.randint(3, VOCAB_SIZE, (2, 12))
    changed_BT = tokens_BT.clone()
    changed_BT[:, 8:] = 3 + (changed_BT[:, 8:] - 2) % (VOCAB_SIZE - 3)
    torch.testing.assert_close(model(changed_BT)[:, :8], model(tokens_BT)[:, :8])


@pytest.mark.parametrize("kind", CAUSAL)
def test_logits_with_a_cache_are_those_without(kind: type) -> None:
    model = small_model(kind)
    tokens_BT = torch.randint(3, VOCAB_SIZE, (2, 12))
    cache = model.new_cache(2, 12)
    parts = [model(part_BT, cache) for part_BT in (tokens_BT[:, :5], *tokens_BT[:, 5:].split(1, dim=1))]
    torch.testing.assert_close(torch.cat(parts, dim=1), model(tokens_BT), atol=1e-5, rtol=1e-4)
    assert cache.length_B.tolist() == [12, 12]


@pytest.mark.parametrize("kind", CAUSAL)
def test_a_piece_does_not_depend_on_its_batch(kind: type) -> None:
    model, config = small_model(kind), SamplingConfig(max_tokens=20)
    prompts = [torch.tensor([1, 3 + index]) for index in range(3)]
    together = sample(model, prompts, [0, 1, 2], 7, config, end_id=END, batch_size=2)
    alone = [sample(model, [prompts[index]], [index], 7, config, end_id=END)[0] for index in range(3)]
    assert [ids.tolist() for ids in together] == [ids.tolist() for ids in alone]
