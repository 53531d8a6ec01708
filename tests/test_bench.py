"""The bench scripts: their models are the presets', they run anywhere, and the results they left can be read."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tasks.config.presets import build_preset

BENCH = Path(__file__).resolve().parent.parent / "bench"
SCRIPTS = sorted(BENCH.glob("bench_*.py"))
RESULTS = sorted((BENCH / "results").glob("*.json"))


def script(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCH))  # as python does with the folder of a script
    spec = importlib.util.spec_from_file_location(name, BENCH / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: p.stem)
def test_each_script_says_how_it_is_run(path: Path) -> None:
    assert f"python bench/{path.name}" in path.read_text()


def test_the_models_are_those_of_the_presets(monkeypatch: pytest.MonkeyPatch) -> None:
    steps, sampling = script("bench_train_step", monkeypatch), script("bench_sampling", monkeypatch)
    for name, (model, batch_size, seq_len) in steps.PRESETS.items():
        train = build_preset(name).train
        assert (model, batch_size, seq_len) == (train.model, train.batch_size, train.seq_len), name
    for name, model in sampling.MODELS.items():
        assert model == build_preset(name).train.model, name
    gpu = script("bench_gpu", monkeypatch)
    for name in gpu.SAMPLED:
        assert gpu.preset_model(name)[0] == build_preset(name).train.model, name


def test_ingest_runs_on_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tasks.ingest.sources.sample_corpus import write_sample_corpus

    write_sample_corpus(tmp_path / "music", n_pieces=3)
    arguments = ["bench/bench_ingest.py", "--source", str(tmp_path / "music"), "--results", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", [*arguments, "--rounds", "1"])
    script("bench_ingest", monkeypatch).main()
    case = json.loads((tmp_path / "out" / "ingest.json").read_text())["cases"]["music"]
    assert case["files"] == 3
    assert case["notes"] == case["symusic_notes"] > 0
    assert str(tmp_path) not in json.dumps(case)


@pytest.mark.slow
def test_the_gpu_script_runs_whole_on_a_cpu_with_five_packages(tmp_path: Path) -> None:
    absent = ("ray", "prefect", "mlflow", "symusic", "typer", "pydantic", "numba", "scipy", "pandas", "matplotlib")
    arguments = ["--device", "cpu", "--tiny", "--rounds", "1", "--results", str(tmp_path)]
    # None in `sys.modules` makes an import fail.
    code = (
        f"import runpy, sys; sys.modules.update(dict.fromkeys({absent}));"
        f"sys.path.insert(0, {str(BENCH)!r}); sys.argv = ['bench_gpu.py', *{arguments}];"
        f"runpy.run_path({str(BENCH / 'bench_gpu.py')!r}, run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    case = json.loads((tmp_path / "gpu.json").read_text())["cases"]["cpu, tiny"]
    assert case["failed_checks"] == case["left_out"] == []
    assert len(case["checks"]) == 12
    assert set(case["attention"]["64"]) == {"plain", "fused 32", "blocks", "skew", "bias"}
    assert all(facts["tokens_per_second"] > 0 for facts in case["training"].values())
    assert {name: facts["tokens"] - facts["wanted"] for name, facts in case["sampling"].items()} == {
        f"{preset}, {n} at once": 0 for preset in ("rga", "orchestrion_small") for n in (1, 3)
    }


@pytest.mark.parametrize("path", RESULTS, ids=lambda p: p.stem)
def test_results_say_what_ran_where(path: Path) -> None:
    result = json.loads(path.read_text())
    assert result["bench"] == path.stem
    assert (BENCH / f"bench_{path.stem}.py").exists()
    for case in result["cases"].values():
        assert {"ratio", "command", "commit", "versions", "machine"} <= set(case)
        times_nothing = path.stem in ("evidence", "memory", "precision")
        assert times_nothing or "median" in json.dumps(case) or "rounds" in json.dumps(case)
    assert "/" not in "".join(result["cases"])
    assert str(BENCH.parent.parent) + "/" not in path.read_text()
