"""Finds instructions that touch registers of warpgroup products in flight, in a kernel's machine code.

ptxas has silently broken this rule (docs/kernels/marlin_hopper.md). The main loop is walked twice, so that products
that are in flight over its back edge are seen. Needs nvdisasm: named by NVDISASM, on PATH, or of the package.
"""

import os
import re
import shutil
import subprocess
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, distribution


def _of_the_package():
    """The program of nvidia-cuda-nvdisasm, which brings no entry on PATH; None without the package."""
    try:
        files = distribution("nvidia-cuda-nvdisasm").files or []
    except PackageNotFoundError:
        return None
    return next((str(file.locate()) for file in files if file.name == "nvdisasm"), None)


NVDISASM = os.environ.get("NVDISASM") or shutil.which("nvdisasm") or _of_the_package()
LABEL = re.compile(r"\s*(\.L_\w+):")
INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(.*?);")
BRANCH = re.compile(r"BRA.*`\((\.L_\w+)\)")
PRODUCT = re.compile(r"HGMMA\S*\s+R(\d+), R(\d+)(?:, gdesc\[\w+\], \w+(?:, !UPT)?, R(\d+))?")
PREDICATE = re.compile(r"^@!?U?P\w+\s+")
WITHOUT_RESULT = ("U", "BRA", "WARP", "SYNCS", "ST", "BAR", "NOP", "YIELD", "BSYNC", "BSSY")


@dataclass
class Group:
    """Registers of one committed group of products."""

    operands: set[int] = field(default_factory=set)
    sums: set[int] = field(default_factory=set)


def main_loop(sass: str) -> list[str]:
    """Instructions of the innermost loop around all products."""
    labels, code = {}, []
    for line in sass.splitlines():
        if match := LABEL.match(line):
            labels[match[1]] = len(code)
        if match := INSTRUCTION.search(line):
            code.append(match[1].strip())
    products = [i for i, text in enumerate(code) if "HGMMA" in text]
    loops = [
        (labels[match[1]], i)
        for i, text in enumerate(code)
        if (match := BRANCH.search(text)) and labels.get(match[1], i) <= products[0] and i >= products[-1]
    ]
    begin, end = min(loops, key=lambda loop: loop[1] - loop[0])
    return code[begin : end + 1]


def written(text: str) -> set[int]:
    """Registers that an instruction writes."""
    match = re.match(r"\S+\s+(?:P\w+,\s*)?R(\d+)", text)
    if match is None or text.startswith(("ISETP", "PLOP")):
        return set()
    operation = text.split(maxsplit=1)[0]
    width = 4 if ".128" in operation else 2 if ".64" in operation or "WIDE" in operation else 1
    return set(range(int(match[1]), int(match[1]) + width))


def violations(sass: str, batch_tile: int) -> list[str]:
    """Instructions that write operands, or touch sums, of products in flight."""
    found, committed, current = [], [], Group()
    for instruction in main_loop(sass) * 2:
        text = PREDICATE.sub("", instruction)
        if match := PRODUCT.match(text.replace(".reuse", "")):
            current.sums |= set(range(int(match[1]), int(match[1]) + batch_tile // 2))
            current.operands |= set(range(int(match[2]), int(match[2]) + 4))
            if match[3]:  # positions of a sparse product
                current.operands.add(int(match[3]))
            if "gsb0" in text:
                committed.append(current)
                current = Group()
        elif "DEPBAR" in text and "gsb0" in text:
            pending = int(text.split(",")[1].strip(), 16)
            committed = committed[len(committed) - pending :] if pending else []
        elif not text.startswith(WITHOUT_RESULT):
            groups = [*committed, current]
            sums = set().union(*(group.sums for group in groups))
            operands = set().union(*(group.operands for group in groups))
            touched = {int(register) for register in re.findall(r"\bR(\d+)", text)} | written(text)
            if touched & sums or written(text) & operands:
                found.append(text)
    return found


def disassemble(cubin: bytes, folder) -> str:
    path = folder / "kernel.cubin"
    path.write_bytes(cubin)
    return subprocess.run([NVDISASM, "-c", path], capture_output=True, text=True, check=True).stdout
