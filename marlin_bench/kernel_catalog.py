"""Every kernel build that CI compiles: sources, macros, architectures, and the registers and shared memory they take.

A kernel adds itself in one place, `_ENTRIES`: its builds for an architecture, and the architectures. `make kernels`
compiles all of them without a GPU and compares with kernels/resources.json, so that a change which costs occupancy
shows in review; `marlin-bench kernels` prints the table. `python -m marlin_bench.kernel_catalog` rewrites it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context

from marlin_bench import marlin_choice, marlin_config, marlin_hopper_choice, marlin_sparse_config
from marlin_bench.cuda_source import BuildError, build_to_cache, kernels_folder

SHARED_BYTES_PER_BLOCK = {
    "sm_80": 163 * 1024,
    "sm_86": 99 * 1024,
    "sm_89": 99 * 1024,
    "sm_90": 227 * 1024,
    "sm_90a": 227 * 1024,
}
"""Shared memory that a block may opt in to (CUDA programming guide, compute capabilities)."""

Defines = Mapping[str, int | str]


@dataclass(frozen=True)
class KernelBuild:
    """One build: kernels/<source>.cu with `defines` for `arch`; `name` tells it from the other builds of the source."""

    source: str
    name: str
    arch: str
    defines: Defines
    dynamic_shared_bytes: int = 0

    @property
    def key(self) -> str:
        """What the build is called in kernels/resources.json."""
        return f"{self.source} {self.name} {self.arch}".replace("  ", " ")


@dataclass(frozen=True)
class BuildResources:
    """What a build takes: registers a thread, static and dynamic shared memory a CTA in bytes."""

    registers: int
    static_shared_bytes: int
    dynamic_shared_bytes: int


def _marlin(arch: str) -> Iterator[KernelBuild]:
    """Every tile with plain operands, and with the heaviest ones where registers are allotted differently."""
    plain = marlin_config.Operands()
    zeros = marlin_config.Operands(group_size=32, zero_points=True)
    heavy = marlin_config.Operands(group_size=32, zero_points=True, bf16=True)
    for tile in marlin_config.TILES:
        archs = ("sm_90a",) if tile.needs_sm90a else ("sm_90", "sm_90a")
        if tile.ring and arch not in archs:
            continue
        for label, operands in (("fp16 g128", plain), ("fp16 g32 zp", zeros), ("bf16 g32 zp", heavy)):
            if operands is not plain and arch in ("sm_86", "sm_89", "sm_90"):
                continue  # the same registers as sm_80 or sm_90a
            if not marlin_choice.suits(tile, operands):
                continue
            try:
                build = marlin_config.build_for(tile, operands, SHARED_BYTES_PER_BLOCK[arch])
            except marlin_config.ConfigError:
                continue
            yield KernelBuild(build.source, f"{tile} {label}", arch, build.defines, build.shared_bytes)


def _marlin_hopper(arch: str) -> Iterator[KernelBuild]:
    """Every build that the measured table can lead to, and the rule's for other kinds of weights."""
    for tiling, kind in marlin_hopper_choice.reachable_builds():
        label = "bf16" if kind.bf16 else "fp16"
        label += f" g{kind.group_size or 'K'}" + (" zp" if kind.zero_points else "")
        name = f"{tiling.name} {label}"
        yield KernelBuild("marlin_hopper", name, arch, tiling.defines(kind), tiling.shared_bytes(kind))


def _marlin_sparse(arch: str) -> Iterator[KernelBuild]:
    """Every tile with plain operands, and in BF16 where registers are scarcest; clusters one and several a tile."""
    plain = marlin_config.Operands()
    heavy = marlin_config.Operands(group_size=64, bf16=True)
    for tile in marlin_sparse_config.TILES:
        for label, operands in (("fp16 g128", plain), ("bf16 g64", heavy)):
            if arch != "sm_90a" and (operands is heavy or tile.needs_sm90a):
                continue
            try:
                build = marlin_sparse_config.build_for(tile, operands, SHARED_BYTES_PER_BLOCK[arch])
            except marlin_config.ConfigError:
                continue
            yield KernelBuild("marlin_sparse", f"{tile} {label}", arch, build.defines, build.shared_bytes)
            if tile.cluster > 1:
                build = replace(build, several_clusters=True)
                yield KernelBuild("marlin_sparse", f"{tile} several {label}", arch, build.defines, build.shared_bytes)


def _single(source: str) -> Callable[[str], Iterator[KernelBuild]]:
    """A kernel with one build and no macros."""

    def builds(arch: str) -> Iterator[KernelBuild]:
        yield KernelBuild(source, "", arch, {})

    return builds


_ENTRIES: tuple[tuple[Callable[[str], Iterable[KernelBuild]], tuple[str, ...]], ...] = (
    # builds of a kernel on an architecture, and the architectures it is built for
    (_single("naive_w4a16"), ("sm_80", "sm_90a")),
    (_marlin, ("sm_80", "sm_86", "sm_89", "sm_90", "sm_90a")),
    (_marlin_hopper, ("sm_90a",)),
    (_marlin_sparse, ("sm_80", "sm_86", "sm_89", "sm_90a")),
    (_single("sparse_ceiling"), ("sm_80", "sm_90a")),
)


def kernel_builds() -> list[KernelBuild]:
    """All builds, in the order of the table."""
    return [build for builds, archs in _ENTRIES for arch in archs for build in builds(arch)]


def compile_build(build: KernelBuild) -> BuildResources:
    """Compiles with NVRTC, needs no GPU; BuildError when it fails, spills or serialises a wgmma pipeline."""
    entries = build_to_cache(build.source, build.arch, build.defines).resources
    return BuildResources(
        registers=max(entry.registers for entry in entries),
        static_shared_bytes=max(entry.static_shared_bytes for entry in entries),
        dynamic_shared_bytes=build.dynamic_shared_bytes,
    )


def recorded_resources() -> dict[str, BuildResources]:
    """kernels/resources.json: what each build took when it was last reviewed."""
    stored = json.loads((kernels_folder() / "resources.json").read_text(encoding="utf-8"))
    return {key: BuildResources(**values) for key, values in stored.items()}


def resource_table() -> list[tuple[str, int, int]]:
    """(build, registers a thread, shared memory a CTA in bytes) of every recorded build, for `marlin-bench kernels`."""
    return [
        (key, taken.registers, taken.static_shared_bytes + taken.dynamic_shared_bytes)
        for key, taken in recorded_resources().items()
    ]


def _compiled() -> Iterator[tuple[KernelBuild, BuildResources]]:
    """Every build in order with what it takes, compiled by as many processes as there are cores."""
    builds = kernel_builds()
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        try:
            yield from zip(builds, pool.map(compile_build, builds), strict=True)
        finally:
            pool.shutdown(cancel_futures=True)  # one that fails ends the rest


def check_builds() -> Iterator[str]:
    """Compiles every build and yields its name; BuildError for one that takes something else than recorded."""
    recorded = recorded_resources()
    for build, taken in _compiled():
        if taken != recorded.get(build.key):
            raise BuildError(
                f"{build.key} takes {taken}, kernels/resources.json says {recorded.get(build.key)}: review the"
                " difference, then rewrite it with `python -m marlin_bench.kernel_catalog`"
            )
        yield build.key


def record_resources() -> None:
    """Compiles everything and rewrites kernels/resources.json."""
    taken = {build.key: asdict(resources) for build, resources in _compiled()}
    lines = ",\n".join(f"  {json.dumps(key)}: {json.dumps(values)}" for key, values in taken.items())
    (kernels_folder() / "resources.json").write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")


if __name__ == "__main__":
    record_resources()
