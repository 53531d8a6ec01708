"""What does the key/value cache save, and does a token cost the same however long the piece is?

    PYTHONPATH=. python bench/bench_sampling.py

Samples a batch with the cache, as `orchestrion generate` does, and without it, where each token costs a pass over all
that stands before it. Both draw with the same random numbers in float64 and must give the same ids; the script stops
if not. Then the time of one step at the start and at the end of a long piece. Weights are random, and `<end>` is
never drawn.
"""

import copy
import statistics
import sys
import time
from typing import Any

import numpy as np
import report
import torch

from models.config import DecoderConfig, SamplingConfig
from models.registry import Model, build_model
from models.sampling import LOGIT_STEP, Chooser, piece_uniforms, sample

PACKAGES = ("torch", "numpy")
VOCAB_SIZE, PAD, START = 416, 0, 414
NEVER = -1  # an id that is not drawn stands for <end>, so that all pieces get their full length
MODELS = {
    "music_transformer_tiny": DecoderConfig(
        d_model=128, n_heads=4, n_layers=2, d_ff=256, dropout=0.0, max_relative_distance=256
    ),
    "music_transformer": DecoderConfig(),
}


def main() -> None:
    options = report.parser(__doc__.splitlines()[0], rounds=3, with_source=False)
    options.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    options.add_argument("--batch", type=int, default=8, help="pieces at once")
    options.add_argument("--length", type=int, default=384, help="tokens of a piece, cached against uncached")
    options.add_argument("--long", type=int, default=2048, help="tokens of the long piece")
    given = options.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for name in given.models:
        torch.manual_seed(0)
        model = build_model(MODELS[name], VOCAB_SIZE).to(device).eval()
        record = compare(model, given.batch, given.length, given.rounds) | flatness(model, given.batch, given.long)
        report.save("sampling", f"{name} on {device.type}", record, given.results, PACKAGES)


def compare(model: Model, batch_size: int, length: int, rounds: int) -> dict[str, Any]:
    """Time both ways of sampling the same ids."""
    with_cache, without = cached(model, batch_size, length), uncached(model, batch_size, length)
    if not all(torch.equal(a, b) for a, b in zip(with_cache, without, strict=True)):
        sys.exit("cached and uncached sampling gave different ids: nothing was measured")
    timings = report.measure(
        {"cached": lambda: cached(model, batch_size, length), "uncached": lambda: uncached(model, batch_size, length)},
        rounds,
        warm_up=0,
    )
    n_tokens = batch_size * (length - 1)
    return {
        "ratio": round(timings["uncached"].seconds / timings["cached"].seconds, 1),
        "ratio_means": f"tokens/s cached over uncached, {batch_size} pieces of {length} tokens, the same ids",
        "parameters": model.n_parameters,
        **{
            side: {"tokens_per_second": round(n_tokens / timing.seconds), **timing.as_json()}
            for side, timing in timings.items()
        },
    }


def flatness(model: Model, batch_size: int, length: int) -> dict[str, Any]:
    """Return the time of one step in each quarter of a long piece."""
    moments = [time.perf_counter()]
    cached(model, batch_size, length, on_step=lambda _: moments.append(time.perf_counter()))
    steps = np.diff(moments[1:])  # the first holds the copy of the model
    quarters = [statistics.median(part) * 1000 for part in np.array_split(steps, 4)]
    return {
        "long_piece": {
            "tokens": length,
            "step_milliseconds_by_quarter": [round(ms, 3) for ms in quarters],
            "last_over_first_quarter": round(quarters[-1] / quarters[0], 2),
            "tokens_per_second": round(batch_size * len(steps) / (moments[-1] - moments[1])),
        }
    }


def cached(model: Model, batch_size: int, length: int, on_step: Any = None) -> list[torch.Tensor]:
    """Sample as the project does."""
    return sample(
        model,
        [torch.tensor([START])] * batch_size,
        piece_indices=range(batch_size),
        seed=0,
        config=SamplingConfig(max_tokens=length),
        end_id=NEVER,
        pad_id=PAD,
        batch_size=batch_size,
        on_step=on_step,
    )


@torch.inference_mode()
def uncached(model: Model, batch_size: int, length: int) -> list[torch.Tensor]:
    """Sample the same ids with a whole forward pass for each."""
    model = copy.deepcopy(model).double()
    device = model.embed.weight.device
    config = SamplingConfig(max_tokens=length)
    chooser = Chooser.of(config, VOCAB_SIZE, device=device, temperature=None, top_k=None)
    uniforms = torch.from_numpy(np.stack([piece_uniforms(0, i, length) for i in range(batch_size)])).to(device)
    ids = torch.full((batch_size, 1), START, device=device)
    for n in range(1, length):
        logits = model(ids)[:, -1].double()
        logits = (logits / LOGIT_STEP).round_() * LOGIT_STEP
        logits[:, PAD] = -torch.inf
        lengths = torch.full((batch_size,), n, device=device)
        ids = torch.cat([ids, chooser.choose(logits, lengths, uniforms[:, n])[:, None]], dim=1)
    return list(ids.cpu())


if __name__ == "__main__":
    main()
