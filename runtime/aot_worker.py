"""JSON jobs on stdin -> compiled kernels as JSON on stdout; run as a script, in its own process.

A separate process because Triton decides at import whether it interprets, and because a failed
assertion in LLVM ends the process that called it. Imports nothing of attnc.
"""

import base64
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any


def main() -> None:
    """Compile each job; a job that fails gives ``{"error": ...}``."""
    try:
        import triton
    except ImportError as missing:
        json.dump({"missing": str(missing)}, sys.stdout)
        return
    jobs = json.load(sys.stdin)
    # Triton and its tools may print; only JSON goes to the real stdout.
    real = os.dup(1)
    os.dup2(2, 1)
    results = []
    for job in jobs:
        try:
            results.append(compile_job(job))
        except Exception as error:
            results.append({"error": f"{type(error).__name__}: {error}"})
    with os.fdopen(real, "w") as stdout:
        json.dump({"triton": triton.__version__, "results": results}, stdout)


def compile_job(job: dict[str, Any]) -> dict[str, Any]:
    """Compile one kernel and read back what the assembler made of it."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = getattr(load(job["path"]), job["name"])
    names = list(kernel.arg_names)
    attributes = {(names.index(n),): [["tt.divisibility", 16]] for n in job["aligned"]}
    source = ASTSource(kernel, job["signature"], job["constexprs"], attributes)
    backend, arch, warp = job["target"]
    started = time.perf_counter()
    compiled = triton.compile(source, target=GPUTarget(backend, arch, warp), options=job["options"])
    seconds = time.perf_counter() - started
    if backend == "hip":
        assembly, binary = compiled.asm["amdgcn"], compiled.asm["hsaco"]
        facts = {
            "registers": metadata_entry(assembly, "vgpr_count"),
            "spill_bytes": 4 * metadata_entry(assembly, "vgpr_spill_count")
            + metadata_entry(assembly, "private_segment_fixed_size"),
            "sass": assembly,
        }
    else:
        assembly, binary = compiled.asm["ptx"], compiled.asm["cubin"]
        facts = read_cubin(binary)
    return {
        **facts,
        "assembly": assembly,
        "binary": base64.b64encode(binary).decode(),
        "shared_bytes": compiled.metadata.shared,
        "seconds": seconds,
    }


def load(path: str) -> Any:
    """Import a file by path (Triton needs the source of a kernel in a real file)."""
    spec = importlib.util.spec_from_file_location("attnc_aot_kernel", path)
    if spec is None or spec.loader is None:
        raise ImportError(path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def metadata_entry(assembly: str, name: str) -> int:
    """Read one number of the AMD kernel metadata."""
    found = re.search(rf"\.{name}:\s+(\d+)", assembly)
    if found is None:
        raise ValueError(f"the assembly has no .{name}")
    return int(found[1])


def read_cubin(cubin: bytes) -> dict[str, Any]:
    """Return registers, spilled bytes and SASS, by the tools in Triton's wheel."""
    import triton.backends.nvidia as nvidia

    tools = Path(nvidia.__file__).parent / "bin"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        usage = tool(tools / "cuobjdump", "-res-usage", str(path))
        sass = tool(tools / "nvdisasm", "-c", str(path))
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", usage)
    if found is None:
        raise ValueError(f"cuobjdump said: {usage[-500:]}")
    return {
        "registers": int(found[1]),
        "spill_bytes": int(found[2]) + int(found[3]),
        "sass": sass,
    }


def tool(*command: Any) -> str:
    """Run one of the CUDA tools."""
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{Path(command[0]).name} failed: {done.stderr.strip()[-500:]}")
    return done.stdout


if __name__ == "__main__":
    main()
