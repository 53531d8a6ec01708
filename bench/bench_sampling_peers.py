"""How fast is sampling beside transformers' `generate`, which people would take instead?

    PYTHONPATH=. python bench/bench_sampling_peers.py

A GPT-2 of transformers with its own cache, and ours with relative attention, both of the size of S000 (10.8 million
parameters): one piece of 1,024 tokens, and 64 of them. Both draw at temperature 1 from random weights with all cores.
The sides alternate, and no id ends a piece.
"""

import os
from typing import Any

import report
import torch
from bench_sampling import FIRST, NEVER, RGA, RGA_PAD, RGA_VOCAB_SIZE

from models.config import SamplingConfig
from models.registry import build_model
from models.sampling.sample import sample

PACKAGES = ("torch", "numpy", "transformers", "numba")


def main() -> None:
    options = report.parser(__doc__.splitlines()[0], rounds=3, with_source=False)
    options.add_argument("--length", type=int, default=1024, help="tokens of a piece, at most 1024")
    options.add_argument("--rows", nargs="+", type=int, default=[1, 64], help="pieces at once")
    options.add_argument("--precision", choices=["float32", "float16", "int8"], default=SamplingConfig().precision)
    given = options.parse_args()
    torch.manual_seed(0)
    n_threads = len(os.sched_getaffinity(0))
    torch.set_num_threads(n_threads)
    model, peer = build_model(RGA, RGA_VOCAB_SIZE, RGA_PAD).eval(), build_peer()
    for n_rows in given.rows:
        config = SamplingConfig(max_tokens=given.length, precision=given.precision, threads=n_threads)
        timings = report.measure(
            {
                "ours": lambda n_rows=n_rows, config=config: ours(model, n_rows, config),
                "transformers": lambda n_rows=n_rows: theirs(peer, n_rows, given.length),
            },
            given.rounds,
            warm_up=0,
        )
        n_tokens = n_rows * (given.length - 1)
        record = {
            "ratio": round(timings["transformers"].seconds / timings["ours"].seconds, 2),
            "ratio_means": f"tokens/s ours over transformers, {n_rows} x {given.length} tokens",
            "precision": given.precision,
            "threads": n_threads,
            "parameters": {"ours": model.n_parameters, "transformers": peer.num_parameters()},
            **{
                side: {"tokens_per_second": round(n_tokens / timing.seconds), **timing.as_json()}
                for side, timing in timings.items()
            },
        }
        name = "single" if n_rows == 1 else f"batch of {n_rows}"
        report.save("sampling_peers", name, record, given.results, PACKAGES)


def ours(model: Any, n_rows: int, config: SamplingConfig) -> None:
    pieces = sample(
        model, [torch.tensor([FIRST])] * n_rows, range(n_rows), 0, config, end_id=NEVER, pad_id=RGA_PAD,
        batch_size=n_rows,
    )  # fmt: skip
    assert {len(piece) for piece in pieces} == {config.max_tokens}


def build_peer() -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=RGA_VOCAB_SIZE, n_positions=1024, n_embd=RGA.d_model, n_layer=RGA.n_layers, n_head=RGA.n_heads,
        n_inner=RGA.d_ff, activation_function="gelu", bos_token_id=FIRST, eos_token_id=None,
    )  # fmt: skip
    return GPT2LMHeadModel(config).eval()


@torch.inference_mode()
def theirs(peer: Any, n_rows: int, length: int) -> None:
    start = torch.full((n_rows, 1), FIRST)
    ids = peer.generate(
        start, attention_mask=torch.ones_like(start), max_length=length, do_sample=True, top_k=0, temperature=1.0,
        pad_token_id=RGA_PAD,
    )  # fmt: skip
    assert ids.shape == (n_rows, length)


if __name__ == "__main__":
    main()
