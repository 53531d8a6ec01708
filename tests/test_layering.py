"""The arrows of the architecture, read from the imports: flows -> tasks -> models, and tasks -> tasks/music."""

import ast
import sys
from functools import cache
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
    return imports_in(path.read_text())


@cache
def import_nodes(text: str) -> list[ast.Import | ast.ImportFrom]:
    return [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Import | ast.ImportFrom)]


def imports_in(text: str) -> list[tuple[int, str]]:
    found = []
    for node in import_nodes(text):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif node.level == 0:
            found.append((node.lineno, node.module or ""))
    return found


def text_at_start(text: str) -> str:
    """Return the imports of a source that are not inside of functions or classes."""
    at_start = [node for node in ast.parse(text).body if isinstance(node, ast.Import | ast.ImportFrom)]
    return "\n".join(ast.unparse(node) for node in at_start)


# Units of `tasks/` in the order of the pipeline; each may import those above it, `music` only `errors`.
ORDER = (
    "errors", "music", "storage", "runtime", "config", "reporting", "tracking", "ingest", "dataset", "checkpoints",
    "copying", "sampling", "training", "evaluation", "sweep", "generation", "composer", "review", "lineage", "upkeep",
)  # fmt: skip
MOST_UNITS, MOST_LEVELS = 20, 12


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
    if path.name == "relative_attention_triton.py":  # imported on CUDA alone
        allowed |= {"triton"}
    if path == ROOT / "models" / "loops.py":  # where they cannot be imported, nothing is compiled
        allowed |= {"llvmlite", "numba"}
    wrong = [
        f"{path.name}:{line} imports {name}" for line, name in imports_of(path) if name.split(".")[0] not in allowed
    ]
    assert wrong == []


def test_what_only_cuda_needs_is_imported_where_it_runs() -> None:
    on_cuda = {"models/cuda_attention.py", "models/relative_attention_triton.py"}
    at_start = {
        str(path.relative_to(ROOT)): {name for _, name in imports_in(text_at_start(path.read_text()))}
        for path in sources("models")
    }
    wanted = {"triton", *(path.removesuffix(".py").replace("/", ".") for path in on_cuda)}
    assert {path for path, names in at_start.items() if names & wanted} == {"models/relative_attention_triton.py"}


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
    assert violations(path, {"ray", "torch", "mlflow", "symusic", "models", "tests", "bench"}) == []


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
    # A user's tensors of token ids: this reader takes tensors and plain containers alone.
    tensors = (
        ROOT / "tasks/dataset/token_table.py",
        'torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)',
    )
    assert tensors[0].read_text().count(tensors[1]) == 1
    found = [
        f"{path.relative_to(ROOT)}: {call}"
        for folder in ("flows", "tasks", "models")
        for path in sources(folder)
        for call in suspicious
        if call
        in path.read_text().replace(".eval(", "").replace(tensors[1] if path == tensors[0] else "model.eval(", "")
    ]
    assert found == []


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_modules(text: str, known: set[str]) -> set[str]:
    """Return the modules of the project that a source imports, wherever in it the import stands."""
    found = set()
    for node in import_nodes(text):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        else:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in known else str(node.module) for name in names}
    return found & known


def read_graph(planted: dict[str, str] | None = None) -> dict[str, set[str]]:
    """Return module -> modules it imports, for the whole project; `planted` adds text to some of them."""
    texts = {module_of(path): path.read_text() for folder in ("flows", "tasks", "models") for path in sources(folder)}
    for module, text in (planted or {}).items():
        texts[module] += f"\n{text}\n"
    return {module: imported_modules(text, set(texts)) - {module} for module, text in texts.items()}


def unit_of(module: str) -> str:
    """Return the unit of a module of `tasks/`; flows and models are no units here."""
    top, _, rest = module.partition(".")
    return rest.partition(".")[0] if top == "tasks" else ""


def units_of(graph: dict[str, set[str]]) -> dict[str, set[str]]:
    units: dict[str, set[str]] = {}
    for module, imported in graph.items():
        if unit := unit_of(module):
            units.setdefault(unit, set()).update(set(map(unit_of, imported)) - {"", unit})
    return units


def backward_imports(graph: dict[str, set[str]]) -> list[str]:
    """Return the imports of a later stage."""
    return [
        f"{module} imports {other}"
        for module, imported in graph.items()
        for other in imported
        if unit_of(module) and unit_of(other) and ORDER.index(unit_of(other)) > ORDER.index(unit_of(module))
    ]


def find_circle(graph: dict[str, set[str]]) -> list[str]:
    """Return the modules of one import circle, or []."""
    done: set[str] = set()

    def visit(module: str, path: list[str]) -> list[str]:
        if module in path:
            return path[path.index(module) :]
        if module in done:
            return []
        for other in sorted(graph[module]):
            if circle := visit(other, [*path, module]):
                return circle
        done.add(module)
        return []

    return next((circle for module in sorted(graph) if (circle := visit(module, []))), [])


def levels_of(units: dict[str, set[str]]) -> dict[str, int]:
    levels: dict[str, int] = {}
    for unit in ORDER:
        levels[unit] = 1 + max((levels[other] for other in units[unit]), default=0)
    return levels


def test_tasks_hold_the_units_of_the_pipeline_and_no_other() -> None:
    units = units_of(read_graph())
    assert set(units) == set(ORDER)
    assert len(units) <= MOST_UNITS
    assert max(levels_of(units).values()) <= MOST_LEVELS


def test_no_stage_imports_a_later_one() -> None:
    assert backward_imports(read_graph()) == []


def test_there_is_no_import_circle() -> None:
    assert find_circle(read_graph()) == []


def test_planted_violations_are_found() -> None:
    later = read_graph({"tasks.ingest.song_shards": "def f():\n    from tasks.generation import judge"})
    assert backward_imports(later) == ["tasks.ingest.song_shards imports tasks.generation.judge"]
    circle = read_graph({"tasks.storage.files": "from tasks.storage.home import Home"})
    assert sorted(find_circle(circle)) == ["tasks.storage.files", "tasks.storage.home"]
    assert find_circle(read_graph({"models.layers": "import models.registry"}))
