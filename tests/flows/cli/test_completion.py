"""Completion of values in a shell: names of presets, encodings and datasets, with nothing heavy imported."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("orchestrion train --preset hourglass_f", {"hourglass_flat", "hourglass_flat_tiny"}),
        ("orchestrion rebuild --encoding optimus", {"optimus_int", "optimus_txt"}),
        ("orchestrion train --dataset m", {"mine", "mixed"}),
        ("orchestrion train --dataset mine@", {"mine@0123"}),
    ],
)
def test_values_are_offered_without_torch(line: str, offered: set[str], tmp_path: Path) -> None:
    for name in ("mine/versions/0123", "mine/versions/4567", "mixed", "other"):
        (tmp_path / "datasets" / name).mkdir(parents=True)
    (tmp_path / "datasets" / "mine" / "versions" / "0123" / "manifest.json").touch()
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
