"""Completion of values in a shell: names of presets, encodings, datasets and models, with nothing heavy imported."""

import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

TABLES = """
CREATE TABLE model_versions (name, version, creation_time, run_id, current_stage);
INSERT INTO model_versions VALUES
    ('small-rga', 1, 1, '', 'None'), ('small-rga', 2, 2, '', 'None'), ('small-vae', 1, 3, '', 'None'),
    ('large', 1, 4, '', 'None');
CREATE TABLE model_version_tags (name, version, key, value);
CREATE TABLE registered_model_aliases (name, version, alias);
INSERT INTO registered_model_aliases VALUES ('small-rga', 2, 'champion');
"""  # the part of MLflow's that is read


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("orchestrion train --preset hourglass_f", {"hourglass_flat", "hourglass_flat_tiny"}),
        ("orchestrion rebuild --encoding optimus", {"optimus_int", "optimus_txt"}),
        ("orchestrion train --dataset m", {"mine", "mixed"}),
        ("orchestrion train --dataset mine@", {"mine@0123"}),
        ("orchestrion generate --model sm", {"small-rga", "small-vae"}),
        ("orchestrion compare small-rga@", {"small-rga@1", "small-rga@2", "small-rga@champion"}),
    ],
)
def test_values_are_offered_without_torch(line: str, offered: set[str], tmp_path: Path) -> None:
    for name in ("mine/versions/0123", "mine/versions/4567", "mixed", "other"):
        (tmp_path / "datasets" / name).mkdir(parents=True)
    (tmp_path / "datasets" / "mine" / "versions" / "0123" / "manifest.json").touch()
    (tmp_path / "mlflow").mkdir()
    with closing(sqlite3.connect(tmp_path / "mlflow" / "mlflow.db")) as database:
        database.executescript(TABLES)
    code = (
        "import sys\nsys.argv = ['orchestrion']\nfrom flows.cli.main import main\ntry:\n    main()\nfinally:\n"
        "    heavy = {'torch', 'ray', 'prefect', 'mlflow'} & set(sys.modules)\n"
        "    print(sorted(heavy), file=sys.stderr)\n"
    )
    words = {"_ORCHESTRION_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(line.count(" "))}
    environment = os.environ | words | {"ORCHESTRION_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert set(done.stdout.split()) == offered, done.stderr
    assert done.stderr.strip().endswith("[]")
