"""Machine code of the Triton kernels, read with no GPU: ``python -m longwave.kernels.machine_code [--write FILE]``.

Compiles every kernel ahead of time and reads its machine code: registers, spills, shared memory, instructions a time
step, and the bounds that follow from these. A static analysis, not a measurement: what a GPU does may be slower than
each bound, by latencies most of all. Ends with status 1 where a kernel spills.
"""

import argparse
import functools
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime import JITFunction

from longwave.kernels.cornn import triton as cornn
from longwave.kernels.device import AHEAD, BLOCK
from longwave.kernels.indrnn import triton as indrnn
from longwave.kernels.linoss import triton as linoss
from longwave.kernels.unicornn import triton as unicornn

COMMAND = "python -m longwave.kernels.machine_code"
START, END = f"<!-- {COMMAND} -->", "<!-- end -->"


class GPU(NamedTuple):
    """The nominal figures of a card, SXM where there is a choice, at its boost clock."""

    name: str
    architecture: int
    multiprocessors: int
    clock: float  # Hz
    bandwidth: float  # bytes/s, of the HBM


GPUS = (
    GPU("A100", 80, 108, 1.41e9, 2.04e12),
    GPU("H100", 90, 132, 1.98e9, 3.35e12),
    GPU("B200", 100, 148, 1.97e9, 8.0e12),
)
# Warp instructions that a multiprocessor issues in a clock; a single warp issues one at most.
SCHEDULERS = 4


class Case(NamedTuple):
    """One kernel as it is launched."""

    label: str  # of the row
    kernel: JITFunction
    dtype: str  # of the sequences; all else is float32
    constants: dict  # the kernel's constexprs
    options: dict  # of the launch, as num_warps
    columns: int  # (batch, unit) columns of a program
    rounds: tuple[float, ...]  # of each nested loop, outermost first, the rounds in one time step
    bytes: float  # that one column reads from and writes to the HBM in one step
    specialised: bool = False  # compiled for a width that 16 divides


def cases() -> Iterator[Case]:
    # UnICORNN's outer loop, over segments of hundreds of steps, does not count.
    for name, module, rounds in (("unicornn", unicornn, (0, 1 / AHEAD)), ("indrnn", indrnn, (1 / AHEAD,))):
        for dtype, size in (("fp32", 4), ("bf16", 2)):
            for direction, count in (("forward", 2), ("backward", 3)):
                kernel = getattr(module, f"{name}_{direction}_kernel")
                launch = ({"BLOCK": BLOCK, "AHEAD": AHEAD}, {"num_warps": 1}, BLOCK, rounds, count * size)
                yield Case(f"{name} {direction}, {dtype}", kernel, dtype, *launch)
    yield from linoss_cases()
    for hidden in (32, 64, 128, 256):
        launch = cornn.tiling(hidden)
        constants = {key: value for key, value in launch.items() if key.isupper()}
        options = {key: value for key, value in launch.items() if key.islower()}
        tiles, depth = (triton.cdiv(hidden, constants[block]) for block in ("BLOCK_H", "BLOCK_K"))
        rest = (options, cornn.BLOCK_B * hidden, (1, tiles, tiles * depth))
        for label, kernel, extra, count in (
            ("forward", cornn.cornn_forward_kernel, {}, 4),
            ("backward", cornn.cornn_backward_kernel, {"SCALARS": False}, 3),
            ("backward and of dt, gamma, epsilon", cornn.cornn_backward_kernel, {"SCALARS": True}, 5),
        ):
            yield Case(f"cornn {label}, H = {hidden}", kernel, "fp32", constants | extra, *rest, count * 4, True)


def linoss_cases() -> Iterator[Case]:
    constants, options = {"BLOCK": BLOCK, "AHEAD": AHEAD}, {"num_warps": 1}
    forward, scan = linoss.linoss_forward_kernel, "linoss scan,"
    for dtype, size in (("fp32", 4), ("bf16", 2)):
        # The states that are kept are 8 bytes every AHEAD steps.
        for label, kernel, extra, count in (
            ("linoss forward", forward, {"SEQUENCE": True}, 2 * size + 8 / AHEAD),
            ("linoss backward", linoss.linoss_backward_kernel, {}, 3 * size + 8 / AHEAD),
            (f"{scan} ends of the segments", forward, {"SEQUENCE": False}, size),
            (f"{scan} gradients at their starts", linoss.linoss_adjoint_kernel, {}, size),
        ):
            yield Case(f"{label}, {dtype}", kernel, dtype, constants | extra, options, BLOCK, (1 / AHEAD,), count)
    for label, backward in (("forward", False), ("backward", True)):
        # The power is made once.
        rest = (constants | {"BACKWARD": backward}, options, BLOCK, (0, 1 / AHEAD), 16)
        yield Case(f"{scan} {label}, joining a segment", linoss.linoss_join_kernel, "fp32", *rest)


def compiled(case: Case, gpu: GPU):
    """The kernel of ``case``, compiled as the launcher would have it compiled on ``gpu``."""
    signature, attributes = {}, {}
    for index, name in enumerate(case.kernel.arg_names):
        if name in case.constants:
            signature[name] = "constexpr"
        elif name in ("steps", "batch", "columns", "hidden", "segment", "segments"):
            signature[name] = "i32"
        else:
            sequence = name in ("pre", "grad_pre") or name.endswith("_all")
            signature[name] = "*" + (case.dtype if sequence else "fp32")
        # As PyTorch's allocator aligns, and as Triton specialises a width that 16 divides.
        if signature[name].startswith("*") or (name == "hidden" and case.specialised):
            attributes[(index,)] = [["tt.divisibility", 16]]
    source = ASTSource(case.kernel, signature, constexprs=case.constants, attrs=attributes)
    return triton.compile(source, GPUTarget("cuda", gpu.architecture, 32), case.options)


@functools.cache
def disassembly(cubin: bytes) -> tuple[list[tuple[int, str]], int]:
    """The instructions, each with its address, and the registers of a thread."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "-sass", "-res-usage", file.name]
        code = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    instructions = [(int(address, 16), text) for address, text in re.findall(r"/\*([0-9a-f]{4,})\*/\s+([^;]+);", code)]
    return instructions, int(re.search(r"REG:(\d+)", code)[1])


def loops(instructions: list[tuple[int, str]]) -> list[int]:
    """The instructions of each nested loop less those of the loops inside it, outermost first.

    A loop is closed by a branch backwards; a branch to itself pads the end of the code.
    """
    ends = {}
    for address, text in instructions:
        branch = re.search(r"\bBRA\S* .*?0x([0-9a-f]+)", text)
        if branch and (target := int(branch[1], 16)) < address:
            ends[target] = max(address, ends.get(target, 0))
    sizes = [sum(start <= address <= end for address, _ in instructions) for start, end in sorted(ends.items())]
    return [size - inner for size, inner in zip(sizes, [*sizes[1:], 0], strict=True)]


def figures(case: Case, gpu: GPU) -> dict[str, float]:
    """One row of the table on one card, by the title of the column."""
    kernel = compiled(case, gpu)
    instructions, registers = disassembly(kernel.asm["cubin"])
    own = loops(instructions)
    if len(own) != len(case.rounds):
        raise RuntimeError(f"{case.label} on sm_{gpu.architecture}: {len(own)} loops, expected {len(case.rounds)}")
    count = sum(size * rounds for size, rounds in zip(own, case.rounds, strict=True))
    warps = case.options["num_warps"]
    issue = gpu.multiprocessors * SCHEDULERS * gpu.clock * case.columns / (count * warps)
    return {
        "registers": registers,
        "spills": sum(bool(re.search(r"\b(STL|LDL)\b", text)) for _, text in instructions),
        "shared, bytes": kernel.metadata.shared,
        "warps": warps,
        "instructions": count,
        "ns": count * max(1, warps / SCHEDULERS) / gpu.clock * 1e9,
        "G/s by issue": issue / 1e9,
        "bytes": case.bytes,
        "G/s by HBM": gpu.bandwidth / case.bytes / 1e9,
    }


def table() -> tuple[str, int]:
    """The table in Markdown, with what it assumes, and the number of spills in it."""
    rows, spills = [], 0
    for case in cases():
        found = [figures(case, gpu) for gpu in GPUS]
        spills += sum(figure["spills"] for figure in found)
        columns = [[f"{figure[title]:,.0f}" for figure in found] for title in found[0]]
        # One value where all cards agree.
        cells = [values[0] if len(set(values)) == 1 else " / ".join(values) for values in columns]
        rows.append(f"| {case.label} | {' | '.join(cells)} |")
    cards = "; ".join(
        f"{g.name} (sm_{g.architecture}) {g.multiprocessors} multiprocessors at {g.clock / 1e9:.2f} GHz, "
        f"{g.bandwidth / 1e12:.2f} TB/s"
        for g in GPUS
    )
    text = f"""**Static analysis, not a measurement**: nothing here has run on a GPU.
Compiled by Triton {triton.__version__}. Where a cell has three values they are for {" / ".join(g.name for g in GPUS)}.
Assumed, from nominal figures: {cards}; {SCHEDULERS} schedulers a multiprocessor, each issuing one warp instruction a
clock; every guarded instruction runs; each byte of a sequence crosses the HBM once.

- *instructions*: of one warp in one time step, from the machine code of the time loop.
- *ns*: the least that a step can take where one program has a multiprocessor to itself. Latencies come on top.
- *G/s*: the most billions of (column, step) pairs a second on the whole card, by issue slots and by memory bandwidth.
- *bytes*: of sequences, that a column reads and writes in a step.

| kernel | {" | ".join(found[0])} |
|---|{"---|" * len(found[0])}
"""
    return text + "\n".join(rows), spills


def main():
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__.splitlines()[0])
    parser.add_argument("--write", type=Path, metavar="FILE", help=f"also put the table between {START} and {END}")
    path = parser.parse_args().write
    if os.environ.get("TRITON_INTERPRET") == "1":
        sys.exit(f"{COMMAND} compiles, which TRITON_INTERPRET=1 prevents: unset it")
    markdown, spills = table()
    print(markdown)
    if path:
        before, rest = path.read_text().split(START)
        path.write_text(f"{before}{START}\n{markdown}\n{END}{rest.split(END)[1]}")
    if spills:
        sys.exit(f"{spills} spills")


if __name__ == "__main__":
    main()
