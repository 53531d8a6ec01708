"""The fused kernels of relative attention: values and gradients in Triton's interpreter, and code for a GPU."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton", reason="no Triton on this platform")

ROOT = Path(__file__).resolve().parents[2]


def run(module: str, **environment: str) -> Any:
    command, variables = [sys.executable, "-m", module], {**os.environ, **environment}
    done = subprocess.run(command, check=False, cwd=ROOT, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
def test_values_and_gradients_are_those_of_the_formula() -> None:
    found = run("tests.models.interpreted_kernels", TRITON_INTERPRET="1")
    assert len(found) == 7
    for case, errors in found.items():
        limit = 2e-3 if "float16" in case else 2e-6
        assert max(errors.values()) < limit, (case, errors)


@pytest.mark.nightly
def test_code_for_gpus_fits_their_shared_memory_and_has_no_atomics(tmp_path: Path) -> None:
    found = run("tests.models.compiled_kernels", TRITON_CACHE_DIR=str(tmp_path))
    assert len(found) == 6
    for kernel, facts in found.items():
        # of a program on an H100 (capability 9.0), and on the smallest card from 8.0 on
        most = 227 * 1024 if "block 64" in kernel else 99 * 1024
        assert facts["shared"] <= most, kernel
        assert facts["atomics"] == 0, kernel
        assert facts["bytes"] > 10_000, kernel
