"""Compiles the kernels of relative attention for two GPUs, none of which is needed, and prints what the code uses.

python -m tests.models.compiled_kernels
"""

import json
import re
import sys
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from models import relative_attention_triton as kernels

FLOAT32 = ("lse", "delta", "far_sums")
SCALARS = {"scale": "fp32", "factor": "fp32", "dropout": "fp32", "seed": "i64"}
CONSTANTS: dict[str, Any] = {"K": 64, "WIDTH": 64, "PRECISION": "ieee", "DROPS": True}


def compiled(kernel: Any, block: int, capability: int, n_warps: int) -> dict[str, Any]:
    constants = {**CONSTANTS, "N": block}
    parameters = kernel.signature.parameters
    is_pointer = {name: list(parameters).index(name) < list(parameters).index("q_b") for name in parameters}
    signature = {
        name: "constexpr" if name in constants
        else ("*fp32" if name in FLOAT32 else "*bf16") if is_pointer[name]
        else SCALARS.get(name, "i32")
        for name in parameters
    }  # fmt: skip
    names = list(parameters)
    aligned = [i for i, name in enumerate(names) if is_pointer[name] or re.fullmatch(r"\w+_[bhtr]", name)]
    source = ASTSource(
        fn=kernel,
        signature=signature,
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={(i,): [["tt.divisibility", 16]] for i in aligned},
    )
    options = {"num_warps": n_warps, "num_stages": 2}
    code = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    ptx = code.asm["ptx"]
    return {"shared": code.metadata.shared, "atomics": len(re.findall(r"\b(?:atom|red)\.", ptx)), "bytes": len(ptx)}


if __name__ == "__main__":
    found = {}
    for block, capability in ((64, 90), (32, 80)):
        for name in ("forward_kernel", "query_kernel", "key_kernel"):
            n_warps = kernels.n_warps(block, is_forward=name == "forward_kernel")
            found[f"{name}, block {block}"] = compiled(getattr(kernels, name), block, capability, n_warps)
    json.dump(found, sys.stdout)
