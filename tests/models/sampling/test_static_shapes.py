"""Sampling in replayed steps of static shapes, as on CUDA: the ids are those of plain steps."""

import gc
import math
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from models import loops
from models.config import SamplingConfig
from models.decoder.model import Decoder
from models.sampling import sampler as sampler_module
from models.sampling.choice import Chooser, Penalty
from models.sampling.grammar_mask import GrammarTables
from models.sampling.sample import FULL_EVERY, sample
from models.sampling.sampler import Request, Sampler
from models.sampling.sliding_context import SlidingContext
from tests.models.sampling.test_sample import CONFIGS, endless, run
from tests.models.sampling.test_sliding_context import build_limited
from tests.models.toy_music import END, PAD, build_decoder, build_grammar, build_prompts
from tests.pretend_device import pretended_device

Write = Callable[..., list[list[int]]]


class Recorder(TorchDispatchMode):
    """Keeps all operations, to repeat them on the tensors that were there before: what a CUDA graph does."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = function(*args, **(kwargs or {}))
        self.operations.append((function, args, kwargs or {}, found))
        return found

    def replay(self) -> None:
        again: dict[int, Tensor] = {}
        for function, *given, before in self.operations:
            args, kwargs = tree_map_only(Tensor, lambda tensor: again.get(id(tensor), tensor), given)
            for old, new in zip(tree_leaves(before), tree_leaves(function(*args, **kwargs)), strict=True):
                if isinstance(old, Tensor):
                    again[id(old)] = new


class Recordings:
    """`Graphs` of recorders."""

    def __init__(self, device: torch.device) -> None:
        self.recorders: dict[tuple[int, ...], Recorder] = {}

    def run(self, function: Callable[..., None], *numbers: int) -> None:
        if numbers in self.recorders:
            self.recorders[numbers].replay()
            return
        with Recorder() as self.recorders[numbers]:
            function(*numbers)


@pytest.fixture
def run_static(monkeypatch: pytest.MonkeyPatch) -> Write:
    def run_with(*args: Any, look_every: int = 16, replays: bool = False, **settings: Any) -> list[list[int]]:
        with monkeypatch.context() as patch:
            patch.setattr(sampler_module, "is_static", lambda model: isinstance(model, Decoder))
            if replays:
                patch.setattr(sampler_module, "Graphs", Recordings)
                patch.setattr(loops, "ARE_COMPILED", False)
            patch.setattr(sampler_module, "LOOK_EVERY", look_every)
            patch.setattr(sampler_module, "KEYS_AT_ONCE", 16)
            return run(*args, **settings)

    return run_with


@pytest.mark.slow
@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_pieces_are_those_of_plain_steps(config: SamplingConfig, run_static: Write) -> None:
    settings: dict[str, Any] = {"n": 5, "grammar": build_grammar()}
    assert run_static(config, batch_size=3, look_every=7, **settings) == run(config, **settings)


@pytest.mark.slow
@pytest.mark.parametrize(("batch_size", "look_every"), [(1, 16), (3, 6), (3, 1), (9, 16)])
def test_contexts_slide_and_rows_are_refilled(batch_size: int, look_every: int, run_static: Write) -> None:
    config, tables = SamplingConfig(max_tokens=40, top_k=9), GrammarTables.from_numpy(build_grammar(), max_open=4)
    settings: dict[str, Any] = {"n": 6, "grammar": tables, "decoder": build_limited().double()}
    plain = run(config, **settings)
    assert max(map(len, plain)) > 2 * 16  # the model's context
    assert run_static(config, batch_size=batch_size, look_every=look_every, **settings) == plain


@pytest.mark.slow
def test_replayed_steps_read_all_that_changes(run_static: Write) -> None:
    config = SamplingConfig(
        max_tokens=40, top_k=9, min_new_tokens=8, presence_penalty=0.3, temperature_points=((2, 1.0), (30, 2.0))
    )
    settings: dict[str, Any] = {"n": 5, "grammar": build_grammar()}
    assert run_static(config, batch_size=2, replays=True, **settings) == run(config, **settings)


def test_bias_schedules_and_entropies_are_those_of_plain_steps(run_static: Write) -> None:
    entropies: list[list[Any]] = [[], []]
    settings: dict[str, Any] = {
        "bias_V": torch.linspace(-1.0, 1.0, 15, dtype=torch.float64),
        "temperature": lambda n: 1.0 + n / 50,
        "top_k": lambda n: 3 + n // 2,
    }
    plain = run(SamplingConfig(max_tokens=30), **settings, entropies=entropies[0])
    assert run_static(SamplingConfig(max_tokens=30), batch_size=4, **settings, entropies=entropies[1]) == plain
    for one, other in zip(*entropies, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("look_every", [7, 16])
def test_a_full_piece_ends_where_it_was_asked(look_every: int, run_static: Write) -> None:
    asked: list[list[tuple[int, int]]] = [[], []]

    def is_full(of: int) -> Callable[[int, Tensor], bool]:
        def ask(place: int, ids: Tensor) -> bool:
            asked[of].append((place, len(ids)))
            return place == 2 and len(ids) > FULL_EVERY + 10

        return ask

    settings: dict[str, Any] = {"n": 4, "decoder": endless().double(), "batch_size": 3}
    config = SamplingConfig(max_tokens=2 * FULL_EVERY + 20)
    plain = run(config, **settings, is_full=is_full(0))
    assert len(plain[2]) == len(build_prompts(3)[2]) + 2 * FULL_EVERY
    assert run_static(config, **settings, look_every=look_every, is_full=is_full(1)) == plain
    assert sorted(asked[0]) == sorted(asked[1])


def test_a_stop_and_an_interrupt_leave_beginnings(run_static: Write) -> None:
    config = SamplingConfig(max_tokens=60, temperature=0.5)
    settings: dict[str, Any] = {"n": 6, "batch_size": 4}
    whole = run(config, **settings)
    n_seen: list[int] = []
    stopped = run_static(config, **settings, look_every=5, on_step=lambda n: n_seen.append(n) or len(n_seen) == 3)
    assert all(piece == full[: len(piece)] for piece, full in zip(stopped, whole, strict=True))
    assert sum(map(len, stopped)) == sum(map(len, build_prompts(6))) + n_seen[-1]

    def interrupt(n_drawn: int) -> None:
        if n_drawn >= 20:
            raise KeyboardInterrupt

    complete, partial = dict[int, list[int]](), dict[int, list[int]]()
    with pytest.raises(KeyboardInterrupt):
        run_static(
            config, **settings, look_every=3, on_step=interrupt,
            on_piece=lambda piece: complete.update({piece.place: piece.ids.tolist()}),
            on_partial=lambda piece: partial.update({piece.place: piece.ids.tolist()}),
        )  # fmt: skip
    assert partial
    assert not partial.keys() & complete.keys()
    for place, ids in (partial | complete).items():
        assert ids == whole[place][: len(ids)]


def test_dead_ends_and_diverged_models_are_errors(run_static: Write) -> None:
    dead_end = build_grammar()
    dead_end.next_state_SV[2] = -1
    with pytest.raises(ValueError, match=r"the grammar allows no id here \(piece 0, position 2\)"):
        run_static(SamplingConfig(max_tokens=99), grammar=dead_end, prompts=[torch.tensor([1, 14])], piece_indices=[0])
    decoder = build_decoder().double()
    nn.init.constant_(decoder.get_parameter("head.bias")[5:6], math.nan)
    with pytest.raises(ValueError, match=r"logits are not finite.*\(piece 0, position 1\)"):
        run_static(SamplingConfig(max_tokens=9), decoder=decoder)


@pytest.mark.slow
def test_all_that_a_decoder_needs_lies_on_its_device(monkeypatch: pytest.MonkeyPatch) -> None:
    plain_sample: Any = sample
    settings: dict[str, Any] = {"end_id": END, "pad_id": PAD, "batch_size": 3, "bias_V": torch.zeros(15)}
    config = SamplingConfig(
        max_tokens=40, top_k=9, presence_penalty=0.3, min_new_tokens=4, temperature_points=((2, 1.0), (30, 2.0)),
        precision="float32",
    )  # fmt: skip
    tables = GrammarTables.from_numpy(build_grammar(), max_open=4, clock_from=1)
    model, found = build_limited().double().eval(), list[list[list[int]]]()
    with torch.no_grad(), pretended_device(monkeypatch):
        for device in ("cpu", "meta"):
            model.to(device)
            pieces = plain_sample.__wrapped__(  # without inference mode, which the device does not have
                model, build_prompts(5), range(5), 5, config, tables, entropies=[], **settings
            )
            found.append([piece.tolist() for piece in pieces])
    assert found[0] == found[1]


def test_a_call_leaves_no_memory_behind(run_static: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even until a collection of garbage: caches on a GPU are large."""
    seen: list[weakref.ref[Sampler]] = []
    prepare = Sampler.prepare

    def watched(self: Sampler) -> tuple[int, int]:
        seen.append(weakref.ref(self))
        return prepare(self)

    monkeypatch.setattr(Sampler, "prepare", watched)
    gc.disable()
    try:
        run_static(SamplingConfig(max_tokens=20))
        assert seen[0]() is None
    finally:
        gc.enable()


@torch.inference_mode()
def test_a_step_never_waits_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the meta device a number that the host reads, and a tensor of another device, are errors."""
    monkeypatch.setattr(sampler_module, "is_static", lambda model: True)
    config = SamplingConfig(
        max_tokens=40, top_k=5, top_p=0.9, min_p=0.01, presence_penalty=0.1, min_new_tokens=3,
        temperature_points=((4, 1.5), (9, 0.4)),
    )  # fmt: skip
    tables = GrammarTables.from_numpy(build_grammar(), max_open=4)
    request = Request(
        chooser=Chooser.of(config, 15), penalty=Penalty.of(config), bias_V=torch.zeros(15, dtype=torch.float64),
        grammar=tables, context=SlidingContext.of(config, 16, tables, END), seed=0, max_tokens=40, min_new_tokens=3,
        end_id=END, pad_id=PAD, with_entropies=True, precision="float32", n_threads=1,
    )  # fmt: skip
    sampler = Sampler(build_limited().eval(), request, 3)
    for row, prompt in enumerate(build_prompts(3)):
        sampler.start(row, row, row, prompt)
    sampler.prepare()
    seen = set[int]()
    to_meta(sampler, seen)
    assert len(seen) > 10
    sampler.advance(3, 16)
    with pytest.raises(NotImplementedError, match="meta"):
        sampler.look()


def to_meta(thing: Any, seen: set[int]) -> Any:
    """Move all tensors of an object, and of what it holds, to the meta device; return what takes its place."""
    if isinstance(thing, Tensor):
        return thing.to("meta")
    if isinstance(thing, nn.Module):
        return thing.to("meta")
    if not type(thing).__module__.startswith("models.") or id(thing) in seen:
        return thing
    seen.add(id(thing))
    names = [*getattr(thing, "__dict__", ()), *getattr(type(thing), "__slots__", ())]
    for name in names:
        object.__setattr__(thing, name, to_meta(getattr(thing, name), seen))
    return thing
