"""Presets: the published sizes and rates, and every small one through training, stopping, scoring and composing."""

import hashlib
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from models.config import DecoderConfig, OptimizerConfig, SamplingConfig, WarmupCosineSchedule
from models.registry import build_model, build_shapes
from models.training import beta1, build_optimizer, eval_step, learning_rate, train_step
from tasks.checkpoints import CheckpointFolder, load_model
from tasks.config.evaluation import EvaluateConfig
from tasks.config.generation import GenerateConfig
from tasks.config.pipeline import PipelineConfig
from tasks.config.presets import PRESETS, build_preset, preset_facts, preset_rows, preset_summary
from tasks.config.serialization import digest
from tasks.config.training import TrainConfig
from tasks.dataset.versions import DatasetVersion, resolve_dataset
from tasks.errors import BadScore, ConfigError
from tasks.evaluation.evaluate import evaluate_model
from tasks.generation import selection
from tasks.generation.batch_files import check_piece
from tasks.generation.generate import generate_batch, read_request
from tasks.generation.prompts import read_prompts
from tasks.generation.selection import units_of
from tasks.music.midi.read_midi import read_midi
from tasks.music.midi.writer import write_midi
from tasks.music.tokenizers.optimus.characters import OptimusTxtConfig
from tasks.music.tokenizers.optimus.int_tokenizer import OptimusIntTokenizer
from tasks.music.tokenizers.optimus.text_tokenizer import OptimusTxtTokenizer
from tasks.music.tokenizers.registry import build_tokenizer, needs_vocabulary
from tasks.storage.home import Home
from tasks.tracking.mlflow_tracker import ModelVersion
from tasks.training.job import make_job
from tasks.training.worker import run_steps
from tests.builders import make_score
from tests.samples import short_training, small_corpus, small_dataset

TINY = [name for name in PRESETS if name.endswith("_tiny")]


def each_tiny_but(*nightly: str) -> pytest.MarkDecorator:
    """Parametrise by all small presets, some of which only `make nightly` tries."""
    names = [pytest.param(name, marks=pytest.mark.nightly) if name in nightly else name for name in TINY]
    return pytest.mark.parametrize("name", names)


# Of these another one has the same model family and encoding.
ALIKE = ("music_transformer_large_tiny", "rga_multi_tiny", "mmm_encoder_vae_tiny", "hourglass_flat_tiny")
# Decoders stop and go on in `test_train.py`.
DECODERS = tuple(name for name in TINY if isinstance(build_preset(name).train.model, DecoderConfig))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    return Home.at(tmp_path_factory.mktemp("presets"))


@pytest.fixture(scope="module")
def corpus(home: Home) -> Path:
    return small_corpus(home.root / "midi")


def dataset_of(name: str, home: Home, corpus: Path) -> DatasetVersion:
    """Return the dataset of a preset, built once for all that share it."""
    config = build_preset(name).dataset
    built = f"for_{digest(config)[:8]}"
    if (home.datasets / built).exists():
        return resolve_dataset(home, built)
    return small_dataset(
        home, corpus, name=built, encoding=config.encoding, windows=config.windows, augment=config.augment
    )


def shortened(config: PipelineConfig, **changes: object) -> TrainConfig:
    return replace(
        config.train, n_steps=4, batch_size=2, validation_windows=2, eval_interval=2, checkpoint_interval=2,
        log_interval=1, cpus_per_worker=1, **changes,  # type: ignore[arg-type]
    )  # fmt: skip


def trained(home: Home, config: TrainConfig, dataset: DatasetVersion, folder: str) -> Path:
    run_steps(make_job(config, dataset, home.root / folder / config.preset))
    last = CheckpointFolder(home.root / folder / config.preset / "checkpoints").find("last")
    assert last is not None
    return last


def test_sizes_are_the_published_ones() -> None:
    rows = {row["name"]: row for row in preset_rows()}
    sizes = {name: (row["vocab_size"], row["n_parameters"]) for name, row in rows.items()}
    assert sizes["music_transformer"] == (416, 1_095_200)
    assert sizes["music_transformer_large"] == (416, 6_525_344)
    assert sizes["rga"] == sizes["rga_multi"] == (390, 10_785_792)
    assert sizes["mmm_vae"] == (320, 1_747_338)
    assert sizes["mmm_encoder_vae"] == (320, 1_550_474)
    for name, n_parameters, at, each in (
        ("char_gpt", 19_177_472, 0, 1024),
        ("hourglass", 33_795_676, 348, 1537),
        ("hourglass_flat", 58_047_324, 348, 1537),
    ):  # fmt: skip
        vocab_size, found = sizes[name]
        assert found == n_parameters + (vocab_size - at) * each


@pytest.mark.parametrize("name", PRESETS)
def test_the_sizes_are_those_of_the_model(name: str) -> None:
    config = build_preset(name)
    encoding = config.dataset.encoding
    row = preset_facts(name)
    vocab_size, n_parameters = row["vocab_size"], row["n_parameters"]
    if not needs_vocabulary(encoding):
        assert build_tokenizer(encoding).vocab_size == vocab_size
    assert build_shapes(config.train.model, vocab_size).n_parameters == n_parameters
    parts = preset_summary(name)["parameters"]
    assert parts.pop("total") == sum(parts.values()) == n_parameters


def test_one_preset_is_shown_whole() -> None:
    facts = preset_facts("mmm_vae")
    assert facts["settings"]["train"]["model"]["channels"] == [128, 256]
    assert facts["shapes"]["compression_ratio"] == 0.5
    assert facts["shapes"]["bottleneck_shape"] == [256, 128]
    assert "shapes" not in preset_facts("rga")
    with pytest.raises(ConfigError, match="unknown preset 'vae'"):
        preset_facts("vae")


def test_each_preset_has_a_twin() -> None:
    assert {name.removesuffix("_tiny") for name in TINY} == set(PRESETS) - set(TINY)
    for name in TINY:
        whole, twin = build_preset(name.removesuffix("_tiny")), build_preset(name)
        assert (twin.dataset, type(twin.train.model)) == (whole.dataset, type(whole.train.model))


@pytest.mark.slow
def test_a_song_of_readable_characters_is_learned_by_heart() -> None:
    rows = [(500 * place, 500, 60 + (5 * place) % 13, 80) for place in range(40)]
    notes = make_score(rows).notes
    config = OptimusTxtConfig()
    tokenizer = OptimusTxtTokenizer(config.with_symbols(config.symbols(notes)))
    song = torch.from_numpy(tokenizer.encode(notes).ids.astype("int64"))[None]
    assert 150 < song.shape[1] < 256
    torch.manual_seed(0)
    shape = build_preset("char_gpt_tiny").train.model
    model = build_model(replace(shape, d_model=48, n_layers=2, d_ff=96), tokenizer.vocab_size, tokenizer.pad_id)  # type: ignore[call-arg]
    optimizer = build_optimizer(OptimizerConfig(), model)
    n_targets = song.shape[1] - 1
    for step in range(1, 101):
        train_step(model, optimizer, song, step=step, learning_rate=5e-3, max_grad_norm=1.0, n_targets=n_targets)
    assert eval_step(model, song).nll_sum / n_targets < 0.1


@pytest.mark.nightly
def test_twenty_pieces_are_learned_by_heart(tmp_path: Path) -> None:
    tokenizer = OptimusIntTokenizer()
    encoded = [tokenizer.encode(read_midi(path).notes).ids for path in sorted(small_corpus(tmp_path, 24).glob("*.mid"))]
    pieces = torch.tensor([ids[:400].tolist() for ids in encoded if len(ids) >= 400][:20])
    assert pieces.shape == (20, 400)
    torch.manual_seed(0)
    shape = build_preset("rga_tiny").train.model
    shape = replace(shape, d_model=64, n_layers=2, d_ff=64, max_positions=512, max_relative_distance=512)  # type: ignore[call-arg]
    model = build_model(shape, tokenizer.vocab_size, tokenizer.pad_id)
    optimizer, schedule = build_optimizer(OptimizerConfig(), model), WarmupCosineSchedule(max_lr=6e-3, warmup_steps=20)
    for step in range(1, 461):
        batch = pieces[torch.randperm(20)[:5]]
        rate = learning_rate(schedule, step, 64, 460)
        train_step(model, optimizer, batch, step=step, learning_rate=rate, max_grad_norm=1.0, n_targets=5 * 399)
    metrics = eval_step(model, pieces)
    assert metrics.n_correct >= 0.99 * 20 * 399
    assert metrics.nll_sum <= 0.05 * 20 * 399


@pytest.mark.parametrize(
    ("name", "step", "rate"),
    [
        ("rga", 4000, 6.987712e-04),
        ("rga", 224_041, 9.336869e-05),
        ("rga", 448_082, 6.602163e-05),
        ("music_transformer", 2000, 1.976424e-3),
        ("char_gpt", 1, 6e-4),
        ("char_gpt", 10**6, 6e-4),
        ("mmm_vae", 500, 5e-5),
        ("mmm_vae", 1000, 1e-4),
        ("mmm_vae", 50_000, 1e-5),
        ("mmm_vae", 60_000, 1e-5),
    ],
)
def test_learning_rates_are_the_published_ones(name: str, step: int, rate: float) -> None:
    config = build_preset(name).train
    assert learning_rate(config.schedule, step, config.model.d_model, config.n_steps) == pytest.approx(rate, rel=1e-6)


def test_the_hourglass_goes_through_one_cycle() -> None:
    schedule = build_preset("hourglass").train.schedule
    rates = {step: learning_rate(schedule, step, 768, 80_000) for step in (1, 16_000, 80_000, 90_000)}
    assert rates == pytest.approx({1: 1.2e-5, 16_000: 3e-4, 80_000: 1.2e-9, 90_000: 1.2e-9}, rel=1e-6)
    betas = [beta1(schedule, step, 80_000) for step in (1, 16_000, 80_000)]
    assert betas == pytest.approx([0.95, 0.85, 0.95])


def test_the_cycle_is_that_of_torch() -> None:
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.Adam([weight], lr=1.0)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-4, total_steps=57, pct_start=0.2)
    schedule = build_preset("hourglass").train.schedule
    for step in range(1, 58):
        group = optimizer.param_groups[0]
        assert learning_rate(schedule, step, 768, 57) == pytest.approx(group["lr"], rel=1e-9)
        assert beta1(schedule, step, 57) == pytest.approx(group["betas"][0], rel=1e-9)
        optimizer.step()
        if step < 57:
            cycle.step()


@pytest.mark.slow
@each_tiny_but(*ALIKE, *DECODERS)
def test_a_stopped_run_goes_on_as_if_it_had_not_been(name: str, home: Home, corpus: Path) -> None:
    dataset, config = dataset_of(name, home, corpus), shortened(build_preset(name))
    whole = load_model(trained(home, config, dataset, "whole"))
    # The same schedule, but the run ends in its middle; what a longer run finds there it goes on from.
    half = replace(config, n_steps=2, schedule=replace(config.schedule, total_steps=4))  # type: ignore[call-arg]
    whole_schedule = replace(config, schedule=half.schedule)
    trained(home, half, dataset, "halves")
    resumed = load_model(trained(home, whole_schedule, dataset, "halves"))
    for (key, value), other in zip(whole.model.state_dict().items(), resumed.model.state_dict().values(), strict=True):
        assert value.equal(other), key


@pytest.mark.slow
@each_tiny_but(*ALIKE)
def test_each_model_is_scored_and_composes(
    name: str, home: Home, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset, config = dataset_of(name, home, corpus), build_preset(name)
    checkpoint = trained(home, shortened(config), dataset, "whole")
    loaded = load_model(checkpoint)
    scoring = EvaluateConfig(seq_len=config.evaluate.seq_len, n_samples=2, sample_tokens=24)
    metrics = evaluate_model(loaded, dataset, scoring).metrics
    assert all(math.isfinite(value) for value in metrics.values()), metrics
    facts = dataset.manifest["splits"]["test"]
    assert metrics["n_tokens"] == facts["n_tokens"] - facts["n_rows"]
    assert metrics["nll_per_token"] < math.log(loaded.tokenizer.vocab_size) + 3
    model = ModelVersion(
        name=name, version="1", run_id="0" * 16, checkpoint=checkpoint, dataset=dataset.reference, preset=name,
        model_id="m-1",
    )  # fmt: skip
    sampling = SamplingConfig(max_tokens=40)
    settings = replace(config.generate, n_pieces=3, batch_size=2, audio="none", sampling=sampling)
    batch = generate_batch(read_request(home, model, checkpoint, settings))
    assert batch.manifest["n_pieces"] == 3
    monkeypatch.setattr(selection, "units_of", lambda *given: units_of(*given)[::-1])
    assert generate_batch(read_request(home, model, checkpoint, settings)).manifest == batch.manifest


def notes_of(midi: bytes) -> list[tuple[int, int]]:
    try:
        notes = read_midi(midi).notes
    except BadScore as error:
        return {"no_notes": []}[error.reason]
    return list(zip(notes.onset.tolist(), notes.pitch.tolist(), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mmm_vae_tiny", "mmm_encoder_vae_tiny"])
def test_pieces_are_written_from_latents_of_prompts(name: str, home: Home, corpus: Path) -> None:
    dataset = dataset_of(name, home, corpus)
    checkpoint = trained(home, shortened(build_preset(name)), dataset, "whole")
    model = ModelVersion(
        name=name, version="1", run_id="0" * 16, checkpoint=checkpoint, dataset=dataset.reference, preset=name,
        model_id="m-1",
    )  # fmt: skip
    start, end = sorted(corpus.rglob("*.mid"))[:2]
    settings = GenerateConfig(audio="none", sampling=SamplingConfig(max_tokens=64, greedy=True))

    def compose(n_pieces: int, **changes: object) -> tuple[list[list[tuple[int, int]]], list[dict[str, object]]]:
        config = replace(settings, n_pieces=n_pieces, **changes)  # type: ignore[arg-type]
        folder = generate_batch(read_request(home, model, checkpoint, config)).folder / "pieces"
        latents = [json.loads(path.read_text())["latent"] for path in sorted(folder.glob("*.json"))]
        return [notes_of(path.read_bytes()) for path in sorted(folder.glob("*.mid"))], latents

    (first,), (facts,) = compose(1, prompt=str(start), latents="prompt")
    (last,), _ = compose(1, prompt=str(end), latents="prompt")
    path, steps = compose(4, prompt=str(start), prompt_to=str(end), latents="path", batch_size=3)
    assert (path[0], path[-1]) == (first, last)
    assert facts["of"] == "prompt"
    assert [source["name"] for source in facts["sources"]] == [start.name]
    assert facts["sources"][0]["sha256"] == hashlib.sha256(start.read_bytes()).hexdigest()
    assert [step["share"] for step in steps] == pytest.approx([0, 1 / 3, 2 / 3, 1])
    assert all([source["name"] for source in step["sources"]] == [start.name, end.name] for step in steps)
    assert all(0 <= source["note_f1"] <= 1 for step in steps for source in step["sources"])
    drawn, nothing = compose(2, sampling=SamplingConfig(max_tokens=300))
    assert drawn[0] != drawn[1]
    assert nothing == [None, None]


@pytest.mark.slow
def test_a_path_is_a_table_of_distances(home: Home, corpus: Path) -> None:
    name = "mmm_vae_tiny"
    dataset = dataset_of(name, home, corpus)
    checkpoint = trained(home, shortened(build_preset(name)), dataset, "path")
    model = ModelVersion(
        name=name, version="1", run_id="0" * 16, checkpoint=checkpoint, dataset=dataset.reference, preset=name,
        model_id="m-1",
    )  # fmt: skip
    start, end = map(str, sorted(corpus.rglob("*.mid"))[:2])
    settings = GenerateConfig(
        audio="none", prompt=start, prompt_to=end, latents="path", n_pieces=3, sampling=SamplingConfig(max_tokens=337)
    )
    for config, n_rows in ((settings, 3), (replace(settings, n_pieces=2, chain_bars=7), 2 * 3)):
        batch = generate_batch(read_request(home, model, checkpoint, config))
        table = batch.manifest["path"]
        assert table == json.loads(batch.results.read_text())["path"]
        rows = table["rows"]
        assert len(rows) == n_rows
        assert [row["share"] for row in rows[:3]] == [0, 0.5, 1]
        assert [row["latent_to_start"] for row in rows[:3]] == sorted(row["latent_to_start"] for row in rows[:3])
        assert table["steps_on_way"]["latent"] == [n_rows * 2 // 3] * 2
        page = batch.gallery.read_text()
        assert page.count('<th scope="row">0000</th>') == (1 if n_rows == 3 else 3)
        assert "Distances along the path of latents" in page
    assert not any(row["ended_with_eos"] for row in json.loads(batch.results.read_text())["pieces"])
    loaded = load_model(checkpoint)
    for path in sorted((batch.folder / "pieces").glob("*.json")):
        sidecar = json.loads(path.read_text())
        chain = sidecar["latent"]["chain"]
        assert (chain["joins"], chain["window_bars"], chain["hop_bars"]) == ([4, 6], 4, 2)
        assert sidecar["ended_by"] == "limit"
        notes = read_midi(path.with_suffix(".mid").read_bytes())
        ends = (notes.notes.onset + notes.notes.duration) / notes.ticks_per_quarter
        assert ends.max() <= 7 * 4
        assert check_piece(path)["validity"]["ok"]
    with pytest.raises(ConfigError, match="chain_bars=3 is no more than one window of 4 bars"):
        read_prompts(loaded, replace(config, chain_bars=3))


@pytest.mark.slow
def test_tracks_are_written_in_turn(home: Home, corpus: Path) -> None:
    name = "mmm_vae_tiny"
    checkpoint = trained(home, shortened(build_preset(name)), dataset_of(name, home, corpus), "tracks")
    model = ModelVersion(
        name=name, version="1", run_id="0" * 16, checkpoint=checkpoint, dataset="d@1", preset=name, model_id="m-1"
    )
    settings = GenerateConfig(audio="none", n_pieces=3, n_tracks=2, sampling=SamplingConfig(max_tokens=337))
    folder = generate_batch(read_request(home, model, checkpoint, settings)).folder / "pieces"
    sidecars = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    assert any(sidecar["ended"] for sidecar in sidecars)
    assert all(sidecar["ended"] or "of 2 tracks are whole" in sidecar["warnings"][0] for sidecar in sidecars)
    loaded, prompt = load_model(checkpoint), str(next(corpus.rglob("*.mid")))
    for settings, said in (
        (GenerateConfig(n_tracks=200), "n_tracks=200 outside 1-128"),
        (GenerateConfig(sampling=SamplingConfig(context_tokens=100)), "generate.sampling: context_tokens=100 is below"),
        (GenerateConfig(prompt=prompt, prompt_tokens=400), "400 tokens leave none to draw of 337, the longest piece"),
    ):
        with pytest.raises(ConfigError, match=said):
            read_prompts(loaded, settings)


@pytest.mark.slow
def test_a_melody_is_accompanied_by_more_tracks(home: Home, corpus: Path, tmp_path: Path) -> None:
    dataset = dataset_of("mmm_vae_tiny", home, corpus)
    checkpoint = trained(home, short_training(n_steps=2), dataset, "accompaniment")
    model = ModelVersion(
        name="d", version="1", run_id="0" * 16, checkpoint=checkpoint, dataset="d@1", preset="d", model_id="m-1"
    )
    melody = tmp_path / "melody.mid"
    melody.write_bytes(
        write_midi(make_score([(480 * i, 480, 60 + i % 5, 90) for i in range(12)], ticks_per_quarter=480))
    )
    settings = GenerateConfig(
        audio="none", n_pieces=2, prompt=str(melody), prompt_notes=1000, n_tracks=3,
        sampling=SamplingConfig(max_tokens=2000),
    )  # fmt: skip
    folder = generate_batch(read_request(home, model, checkpoint, settings)).folder / "pieces"
    for path in sorted(folder.glob("*.mid")):
        piece, sidecar = read_midi(path.read_bytes()), json.loads(path.with_suffix(".json").read_text())
        first = piece.notes.track == 0
        onsets = piece.notes.onset[first] / piece.ticks_per_quarter
        assert piece.notes.pitch[first].tolist() == [60 + i % 5 for i in range(12)]
        assert onsets.tolist() == list(range(12))
        assert sidecar["prompt"]["n_file_notes"] == 12
        assert sidecar["ended"] or "of 3 tracks are whole" in sidecar["warnings"][0]


@pytest.mark.slow
def test_models_that_do_not_go_with_a_dataset_are_refused(home: Home, corpus: Path) -> None:
    dataset = dataset_of("music_transformer_tiny", home, corpus)
    vae = shortened(build_preset("mmm_vae_tiny"))
    with pytest.raises(ConfigError, match="token_dropout_by=4 is a word of mmm, but the dataset is in oore"):
        make_job(vae, dataset, home.root / "x")
    model = replace(vae.model, token_dropout=0.0, row_mode="generation")  # type: ignore[call-arg]
    with pytest.raises(
        ConfigError, match="row_mode='generation' needs an encoding whose pieces all begin with one word"
    ):
        make_job(replace(vae, model=model), dataset, home.root / "x")
    words = dataset_of("mmm_vae_tiny", home, corpus)
    model = replace(vae.model, token_dropout_by=60_000)  # type: ignore[call-arg]
    with pytest.raises(ConfigError, match=r"train\.model: token_dropout_by=60000 is neither"):
        make_job(replace(vae, model=model), words, home.root / "x")
    with pytest.raises(ValueError, match="kl_reduction='sum' is over a whole batch"):
        replace(vae, grad_accumulation_steps=2, model=replace(vae.model, kl_reduction="sum"))  # type: ignore[call-arg]


def test_latents_of_nothing_are_refused(home: Home, corpus: Path) -> None:
    dataset = dataset_of("music_transformer_tiny", home, corpus)
    loaded = load_model(trained(home, shortened(build_preset("music_transformer_tiny")), dataset, "used"))
    with pytest.raises(ConfigError, match="'decoder' model has no latents"):
        read_prompts(loaded, GenerateConfig(latents="prompt", prompt=str(corpus)))
    with pytest.raises(ConfigError, match="n_tracks=2: encoding oore does not write track by track"):
        read_prompts(loaded, GenerateConfig(n_tracks=2))
    with pytest.raises(ValueError, match=r"prompt_to='a\.mid' is the end of a path, but latents='prior'"):
        GenerateConfig(prompt_to="a.mid")
