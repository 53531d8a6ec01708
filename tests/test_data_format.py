"""docs/data-format.md and docs/operations.md say what is so: their tables are the schemas, and their snippets run."""

import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks.dataset.analyse import ANALYSIS_SCHEMA
from tasks.dataset.versions import DatasetVersion
from tasks.storage.home import Home
from tasks.storage.parquet import LEDGER_SCHEMA, SCHEMA_NUMBER, SONG_SCHEMA, TOKEN_SCHEMA
from tests.made_pages import with_reasons
from tests.samples import small_corpus, small_dataset

DOCS = Path(__file__).resolve().parent.parent / "docs"
PAGE = (DOCS / "data-format.md").read_text()
OPERATIONS = (DOCS / "operations.md").read_text()
SECTIONS = {"The ledger": LEDGER_SCHEMA, "Songs": SONG_SCHEMA, "Analysis": ANALYSIS_SCHEMA, "Tokens": TOKEN_SCHEMA}


def section(title: str) -> str:
    """Return the part of the page under the heading that begins so."""
    return next(part for part in re.split(r"^## ", PAGE, flags=re.M) if part.startswith(title))


def snippets(text: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", text, flags=re.S)


def written_type(kind: pa.DataType) -> str:
    if pa.types.is_list(kind):
        return f"list of {written_type(kind.value_type)}"
    return {"double": "float64"}.get(str(kind), str(kind))


@pytest.mark.parametrize("title", SECTIONS)
def test_tables_are_the_schemas(title: str) -> None:
    rows = re.findall(r"^\| `(\w+)` \| ([\w ]+?) \|", section(title), flags=re.M)
    assert rows == [(field.name, written_type(field.type)) for field in SECTIONS[title]]


def test_the_table_of_reasons_is_made_from_them() -> None:
    assert "| `not_midi` | reader |" in section("Reasons")
    assert with_reasons(PAGE) == PAGE, "run `make docs`"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> DatasetVersion:
    folder = tmp_path_factory.mktemp("format")
    home = Home.at(folder / ".orchestrion")
    return small_dataset(home, small_corpus(folder / "corpus", with_flaws=True), name="sample")


def test_manifest_keys_are_those_of_the_page(dataset: DatasetVersion) -> None:
    text = section("The manifest")
    rows = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \| (.*) \|$", text, flags=re.M)
    keys = {key: meaning for names, meaning in rows for key in re.findall(r"`(\w+)`", names)}
    assert set(keys) == set(dataset.manifest)
    for key in ("counts", "encoder"):
        assert set(dataset.manifest[key]) <= set(re.findall(r"`(\w+)`", keys[key]))
    assert set(dataset.manifest["splits"]["train"]) <= set(re.findall(r"`(\w+)`", keys["splits"]))
    assert dataset.manifest["schema"] == SCHEMA_NUMBER
    assert f"number of this format, {SCHEMA_NUMBER}" in text


def test_files_carry_the_metadata_of_the_page(dataset: DatasetVersion) -> None:
    files = {
        "The ledger": dataset.ledger,
        "Songs": dataset.folder / dataset.manifest["songs"][0],
        "Analysis": dataset.folder / dataset.manifest["analysis"][0],
        "Tokens": dataset.token_shards("train")[0],
    }
    for title, path in files.items():
        said = re.search(r"Metadata\s+of\s+the\s+schema:(.*?)\.\s", section(title), flags=re.S)
        assert said, title
        with path.open("rb") as handle:
            keys = {key.decode() for key in pq.read_schema(handle).metadata or {}}
        assert keys == set(re.findall(r"`(\w+)`", said[1])), title


def test_snippets_read_a_version(dataset: DatasetVersion, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(dataset.folder.parents[2])
    names: dict[str, Any] = {}
    seen: dict[str, dict[str, Any]] = {}
    for code in snippets(PAGE):
        library = next((name for name in ("duckdb", "polars", "pandas", "pyarrow.compute") if name in code), "json")
        exec(compile(code, f"data-format.md, {library}", "exec"), names)
        seen[library] = dict(names)
    counts = dataset.manifest["counts"]
    assert seen["json"]["manifest"] == dataset.manifest
    arrow, pandas = seen["pyarrow.compute"], seen["pandas"]
    assert len(arrow["rejected"]) == counts["n_rejected"] > 0
    assert len(arrow["flat_ids"]) == sum(arrow["tokens"]["n_tokens"].to_pylist())
    assert len(pandas["tokens"]) == dataset.manifest["splits"]["train"]["n_rows"]
    assert list(pandas["tokens"]) == TOKEN_SCHEMA.names
    assert {"duckdb", "polars"} <= set(seen)
    assert len(pandas["notes"]) == counts["n_notes"]
    assert set(pandas["seconds_by_split"].index) == {"train", "validation", "test"}


def test_operations_names_the_places_of_a_home() -> None:
    table = OPERATIONS.split("## The home folder")[1].split("##")[0]
    home = Home.at("home")
    places = [
        home.datasets,
        home.runs,
        home.generations,
        home.mlflow,
        home.prefect,
        home.cache,
        home.sample_corpus,
        home.services,
    ]
    assert [place.name for place in places if f"`{place.name}" not in table] == []
    assert f"{256} MiB" in table


def test_every_promise_names_a_test_that_is_there() -> None:
    table = OPERATIONS.partition("## What is promised")[2].partition("\n## ")[0]
    named = re.findall(r"\| `([\w/.]+?)(?:::(\w+))?` \|$", table, flags=re.M)
    assert len(named) > 50
    for file, name in named:
        assert not name or f"def {name}(" in (DOCS.parent / "tests" / file).read_text(), f"{file}::{name}"
        assert (DOCS.parent / "tests" / file).exists(), file
