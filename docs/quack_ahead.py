"""Compiles QuACK's kernels ahead, on a machine without a GPU: quack/kernels.tar.xz of a MARLIN_BENCH_PEERS folder.

    pip install 'marlin-bench[quack]' 'nvidia-cutlass-dsl[cu13]' triton
    python docs/quack_ahead.py FOLDER 73728x18432 4096x4096 -M 1,16,32,64,128,256,1024

Layers are KxN. QuACK itself compiles (for sm_90a, about 3 s each, gcc links), with the tile of its own rule for each M;
kernels that the folder already has stay. A kernel of QuACK holds its layer's sizes, so that each layer has its own.
"""

import argparse
import contextlib
import os
import subprocess
import tarfile
import tempfile
from pathlib import Path

os.environ.update(QUACK_ARCH="90", CUTE_DSL_ARCH="sm_90a", CUDA_VISIBLE_DEVICES="", QUACK_CACHE_ENABLED="1")
CACHE = Path(tempfile.mkdtemp())
os.environ["QUACK_CACHE_DIR"] = str(CACHE)

import nvidia_cutlass_dsl  # noqa: E402
import torch  # noqa: E402
import tvm_ffi  # noqa: E402
from quack.cache.async_compile import _install_gpu_blind_device_attrs, _pin_dsl_arch  # noqa: E402
from quack.gemm_w4 import gemm_w4a16  # noqa: E402
from quack.operand_transform.host import pick_w4_cfg  # noqa: E402
from torch._subclasses.fake_tensor import FakeTensorMode  # noqa: E402

from marlin_bench.backends.peers.quack import PREBUILT, prebuilt_tile  # noqa: E402


def compiled(K, N, M):
    """The object file of one product, [M, K] by [K, N]."""
    before = set(CACHE.rglob("*.o"))
    bf16 = torch.bfloat16
    # without a driver QuACK stops when it asks for the number of SMs, after it has compiled
    with FakeTensorMode(), contextlib.suppress(Exception):
        blob = torch.empty(N // 64, K // 64, 128, 16, dtype=torch.uint8)
        strip = torch.empty(N // 64, K // 64, 32, 2, dtype=bf16)
        out = torch.empty(M, N, dtype=bf16)
        gemm_w4a16(torch.empty(M, K, dtype=bf16), blob, strip, out=out, wformat="int4")
    (fresh,) = set(CACHE.rglob("*.o")) - before  # ValueError: it did not compile
    return fresh


def link(source, target):
    """A library that finds its runtimes by their names."""
    runtime = Path(next(iter(nvidia_cutlass_dsl.__path__))) / "cu13" / "lib"
    folders = [f"-L{runtime}", f"-L{Path(tvm_ffi.__file__).parent / 'lib'}"]
    subprocess.run(
        ["gcc", "-shared", "-s", "-o", target, source, *folders, "-lcute_dsl_runtime", "-ltvm_ffi"], check=True
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="what MARLIN_BENCH_PEERS names")
    parser.add_argument("layers", nargs="+", metavar="KxN")
    parser.add_argument("-M", dest="batches", default="1,16,32,64,128,256,1024", help="batch sizes, such as 1,16,64")
    asked = parser.parse_args()
    _pin_dsl_arch("sm_90a")
    _install_gpu_blind_device_attrs()
    packed = asked.folder / PREBUILT
    kernels = Path(tempfile.mkdtemp())
    if packed.exists():
        with tarfile.open(packed) as archive:
            archive.extractall(kernels, filter="data")
    for layer in asked.layers:
        K, N = map(int, layer.split("x"))
        for M in map(int, asked.batches.split(",")):
            tile = prebuilt_tile(M, N, K)
            if tile != tuple(pick_w4_cfg(M, N, K // 64)):
                raise SystemExit(f"QuACK takes {pick_w4_cfg(M, N, K // 64)} for M {M}, N {N}, K {K}, not {tile}")
            name = f"{K}x{N}_{'_'.join(map(str, tile))}.so"
            if not any(kernels.rglob(name)):
                link(compiled(K, N, M), kernels / name)
                print(name, flush=True)
    packed.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(packed, "w:xz") as archive:
        for file in sorted(kernels.rglob("*.so")):
            archive.add(file, file.name)
    print(f"{packed}: {len(list(kernels.rglob('*.so')))} kernels")
