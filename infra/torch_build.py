"""Says which build of torch is installed and how large it is; exit code 1 if it is not the one asked for.

python infra/torch_build.py [cpu|cuda]
"""

import sys
from importlib.metadata import distributions
from pathlib import Path

import torch


def installed_bytes() -> int:
    """Return the bytes of torch, Triton and NVIDIA's libraries."""
    parts = [one for one in distributions() if one.name.lower().startswith(("torch", "triton", "nvidia", "cuda"))]
    files = [Path(str(file.locate())) for one in parts for file in one.files or ()]
    return sum(path.stat().st_size for path in files if path.is_file())


def main(asked: str) -> int:
    """Print one line and return the exit code."""
    got = "cuda" if torch.version.cuda else "cpu"
    kind = f"for CUDA {torch.version.cuda}" if got == "cuda" else "for CPUs alone"
    print(f"torch {torch.__version__}, {kind}, {installed_bytes() / 1e9:.2f} GB with its libraries")
    if asked in ("", got):
        return 0
    print(
        f"TORCH_BUILD={asked}, but pip got the {got} build; name an index that has the {asked} build in pip's own"
        " configuration, the build secret `pip`, or by the build argument TORCH_INDEX",
        file=sys.stderr,
    )
    return 1


if __name__ == "__main__":
    sys.exit(main("".join(sys.argv[1:])))
