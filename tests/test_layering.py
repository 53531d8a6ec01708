"""The arrows of the architecture, read from the imports: flows -> tasks -> models, and tasks -> tasks/music."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FRAMEWORKS = {"ray", "prefect", "mlflow"}
PROJECT = {"flows", "tasks", "models", "tests", "bench"}
# the only files that may import a package, wherever it is used otherwise
OWNERS = {
    "mlflow": {"tasks/tracking/mlflow_tracker.py", "tasks/tracking/mlflow_server.py"},
    "symusic": {"tasks/music/midi/second_reader.py", "tasks/music/tokenizers/miditok_adapter.py"},
}


def imports_of(path: Path) -> list[tuple[int, str]]:
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.append((node.lineno, node.module or ""))
    return found


def sources(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def violations(path: Path, forbidden: set[str]) -> list[str]:
    return [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for line, name in imports_of(path)
        if name.split(".")[0] in forbidden or name in forbidden
    ]


@pytest.mark.parametrize("path", sources("models"), ids=lambda p: p.name)
def test_models_need_torch_numpy_and_safetensors_alone(path: Path) -> None:
    allowed = {"torch", "numpy", "safetensors", "models"} | set(sys.stdlib_module_names)
    wrong = [
        f"{path.name}:{line} imports {name}" for line, name in imports_of(path) if name.split(".")[0] not in allowed
    ]
    assert wrong == []


@pytest.mark.parametrize("path", sources("tasks/music"), ids=lambda p: p.name)
def test_music_knows_no_framework_and_no_stage(path: Path) -> None:
    wrong = violations(path, FRAMEWORKS | {"torch", "models", "flows", "pyarrow"})
    inward = [
        f"{path.name}:{line} imports {name}"
        for line, name in imports_of(path)
        if name.split(".")[0] == "tasks" and not name.startswith(("tasks.music", "tasks.errors"))
    ]
    assert wrong + inward == []


@pytest.mark.parametrize("path", sources("tasks"), ids=lambda p: p.name)
def test_tasks_do_not_import_flows(path: Path) -> None:
    assert violations(path, {"flows", "tests", "bench"}) == []


@pytest.mark.parametrize("path", sources("flows"), ids=lambda p: p.name)
def test_flows_leave_the_heavy_work_to_tasks(path: Path) -> None:
    forbidden = {"ray", "mlflow", "symusic", "models", "tests", "bench"}
    if path.name != "doctor.py":  # it looks for the accelerator
        forbidden |= {"torch"}
    assert violations(path, forbidden) == []


@pytest.mark.parametrize("package", OWNERS)
def test_one_file_owns_a_foreign_package(package: str) -> None:
    users = {
        str(path.relative_to(ROOT))
        for folder in ("flows", "tasks", "models")
        for path in sources(folder)
        if violations(path, {package})
    }
    assert users <= OWNERS[package]


def test_only_one_file_starts_ray() -> None:
    starters = [str(p.relative_to(ROOT)) for p in sources("tasks") + sources("flows") if "ray.init(" in p.read_text()]
    assert starters == ["tasks/runtime/ray_node.py"]


def test_nothing_is_unpickled_or_evaluated() -> None:
    suspicious = (
        "pickle.load", "torch.load(", "cloudpickle.load", "eval(", "exec(", "shell=True", "joblib.load", "read_pickle",
        "np.load(", "allow_pickle", "yaml.load(", "yaml.unsafe_load", "weights_only=False", "shelve.",
        "marshal.load", "dill.",
    )  # fmt: skip
    found = [
        f"{path.relative_to(ROOT)}: {call}"
        for folder in ("flows", "tasks", "models")
        for path in sources(folder)
        for call in suspicious
        if call in path.read_text().replace("model.eval(", "").replace(".eval(", "")
    ]
    assert found == []
