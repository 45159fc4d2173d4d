"""Machine code of the kernels for CUDA, read with no GPU: ``python -m longwave.kernels.machine_code [--write FILE]``.

Compiles every kernel ahead of time and reads its machine code: registers, spills, shared memory, instructions a time
step, and the bounds that follow from these. A static analysis, not a measurement: what a GPU does may be slower than
each bound, by latencies most of all. Ends with status 1 where a kernel spills.
"""

import argparse
import functools
import importlib
import importlib.metadata
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime import JITFunction

from longwave.kernels import cluster, dense
from longwave.kernels.device import AHEAD, BLOCK
from longwave.kernels.indrnn import triton as indrnn
from longwave.kernels.linoss import triton as linoss
from longwave.kernels.operation import OPERATIONS, Operation
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
# Bytes that a multiprocessor reads in a clock.
FROM_L1, FROM_L2 = 128, 64
# H and B of the dense cells: those of the recipes, and some beyond.
DENSE = {
    "antisymmetric_rnn": [(64, 64), (128, 50)],
    "cornn": [(64, 64), (128, 50), (128, 500), (256, 120)],
    "fastgrnn": [(64, 64), (128, 50)],
    "fastrnn": [(64, 64), (128, 50)],
    "gated_antisymmetric_rnn": [(128, 50)],
    "gru": [(128, 50), (256, 128)],
    "leaky_relu_rnn": [(64, 64), (128, 50), (128, 128)],
    "lem": [(32, 8), (128, 128)],
    "lstm": [(128, 50), (256, 128)],
    "modrelu_rnn": [(128, 50), (170, 128), (190, 128), (360, 128), (512, 128), (1024, 128)],
    "rnn": [(64, 64), (128, 50), (1000, 50)],
    "ugrnn": [(64, 64), (128, 50)],
}


class Case(NamedTuple):
    """One kernel as it is launched."""

    label: str  # of the row
    kernel: JITFunction | Operation  # of Triton, or the operation that a cluster computes
    dtype: str  # of the sequences; all else is float32
    constants: dict  # the kernel's constexprs
    options: dict  # of the launch, as num_warps
    columns: int  # (batch, unit) columns of a program
    rounds: tuple[float, ...]  # of each nested loop, outermost first, the rounds in one time step; of diagonal cells
    bytes: float  # that one column reads from and writes to the HBM in one step
    plan: dense.Plan | cluster.Plan | None = None  # of dense cells


def cases(gpu: GPU, quick: bool = False) -> Iterator[Case]:
    """The kernels as they are launched on ``gpu``; ``quick`` leaves each dense cell one size."""
    # UnICORNN's outer loop, over segments of hundreds of steps, does not count.
    for name, module, rounds in (("unicornn", unicornn, (0, 1 / AHEAD)), ("indrnn", indrnn, (1 / AHEAD,))):
        for dtype, size in (("fp32", 4), ("bf16", 2)):
            for direction, count in (("forward", 2), ("backward", 3)):
                kernel = getattr(module, f"{name}_{direction}_kernel")
                launch = ({"BLOCK": BLOCK, "AHEAD": AHEAD}, {"num_warps": 1}, BLOCK, rounds, count * size)
                yield Case(f"{name} {direction}, {dtype}", kernel, dtype, *launch)
    yield from linoss_cases()
    for name, sizes in DENSE.items():
        for hidden, batch in sizes[:1] if quick else sizes:
            for backward in (False, True):
                yield dense_case(name, hidden, batch, backward, gpu)


def dense_case(name: str, hidden: int, batch: int, backward: bool, gpu: GPU) -> Case:
    operation = OPERATIONS[name]
    cell = getattr(importlib.import_module(f"longwave.kernels.{operation.folder}.triton"), name)
    flags = {"d_y": True, "d_pre": cell.own_d_pre, "d_unit": operation.units > 0} if backward else {}
    p, warps = dense.plan(operation, hidden, batch, gpu.multiprocessors, backward, **flags)
    kernel = dense.dense_backward_kernel if backward else dense.dense_forward_kernel
    constants = {"STEP": cell.backward_step if backward else cell.forward_step, "P": p}
    launch, columns = dense.options(warps), p.rows * hidden
    if gpu.architecture >= 10 * cluster.CAPABILITY[0] and p.reads_l2:
        split = cluster.plan(operation, hidden, batch, gpu.multiprocessors, backward)
        if split:
            kernel, constants, p = operation, {}, split
            launch, columns = {"num_warps": split.threads // 32}, split.rows * hidden / split.cluster
    # Backward the sequence and its gradient, the tape, the gradients of the products and of pre.
    blocks = 1 + operation.tape + operation.gates
    if backward:
        products = sum(operation.products.values())
        blocks = 2 + operation.tape + products + operation.gates * cell.own_d_pre
    label = f"{name} {'backward' if backward else 'forward'}, H = {hidden}, B = {batch}"
    return Case(label, kernel, "fp32", constants, launch, columns, (), blocks * 4, p)


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


def compiled(case: Case, gpu: GPU) -> tuple[bytes, int]:
    """The machine code of ``case``, compiled as the launcher would on ``gpu``, and its bytes of shared memory."""
    if isinstance(case.kernel, Operation):
        source = cluster.source(case.kernel, case.plan, torch.float32)
        return cluster.translated(source, gpu.architecture), case.plan.shared
    signature, attributes = {}, {}
    for index, name in enumerate(case.kernel.arg_names):
        if name in case.constants:
            signature[name] = "constexpr"
        elif name in ("steps", "batch", "columns", "hidden", "segment", "segments"):
            signature[name] = "i32"
        else:
            sequence = name in ("pre", "grad_pre") or name.endswith("_all")
            signature[name] = "*" + (case.dtype if sequence else "fp32")
        # As PyTorch's allocator aligns.
        if signature[name].startswith("*"):
            attributes[(index,)] = [["tt.divisibility", 16]]
    source = ASTSource(case.kernel, signature, constexprs=case.constants, attrs=attributes)
    kernel = triton.compile(source, GPUTarget("cuda", gpu.architecture, 32), case.options)
    return kernel.asm["cubin"], kernel.metadata.shared


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


def loops(instructions: list[tuple[int, str]]) -> list[tuple[int, int]]:
    """The first and the last address of each loop, in the order of the code.

    A loop is closed by a branch backwards; a branch to itself pads the end of the code.
    """
    ends = {}
    for address, text in instructions:
        branch = re.search(r"\bBRA\S* .*?0x([0-9a-f]+)", text)
        if branch and (target := int(branch[1], 16)) < address:
            ends[target] = max(address, ends.get(target, 0))
    return sorted(ends.items())


def body(instructions: list[tuple[int, str]], loop: tuple[int, int]) -> list[str]:
    return [text for address, text in instructions if loop[0] <= address <= loop[1]]


def diagonal_step(case: Case, instructions: list[tuple[int, str]]) -> float:
    """Instructions of a time step: those of each nested loop less those of the loops inside it, times its rounds."""
    sizes = [len(body(instructions, loop)) for loop in loops(instructions)]
    if len(sizes) != len(case.rounds):
        raise RuntimeError(f"{case.label}: {len(sizes)} loops, expected {len(case.rounds)}")
    return sum((n - inner) * r for n, inner, r in zip(sizes, [*sizes[1:], 0], case.rounds, strict=True))


def dense_step(case: Case, instructions: list[tuple[int, str]]) -> int:
    """Instructions of a time step: the largest loop, whose inner ones go round the ring or over the units."""
    p, found = case.plan, loops(instructions)
    time = max(found, key=lambda loop: loop[1] - loop[0])
    inner = [body(instructions, loop) for loop in found if time[0] < loop[0] and loop[1] <= time[1]]
    over_units = [code for code in inner if any(re.search(r"\bSTG\b", text) for text in code)]
    rings = [code for code in inner if code not in over_units]
    # In the order of the code. One round is no loop; more are none where the compiler unrolls them all.
    phases = p.phases[::-1] if case.kernel is dense.dense_backward_kernel else p.phases
    trips = [n for w in phases if (n := (w.tiles - w.resident) // p.group) > 1 for _ in range(w.columns)]
    if len(set(trips)) == 1:
        trips = trips[: len(rings)]
    if len(rings) not in (0, len(trips)) or len(over_units) > len(p.phases):
        raise RuntimeError(f"{case.label}: {len(inner)} loops in the time loop")
    count = len(body(instructions, time)) + sum(map(len, over_units)) * (triton.cdiv(p.hidden, p.block) - 1)
    for code, n in zip(rings, trips, strict=False):
        # The multiplications tell how many groups of tiles a round has, where it is unrolled.
        terms = sum(text.startswith("FFMA") + text.startswith("FFMA2") for text in code)
        groups = terms // (dense.ACROSS * p.group * p.rows)
        count += len(code) * (n // groups - 1)
    return count


def cluster_step(case: Case, instructions: list[tuple[int, str]]) -> int:
    """Instructions of a time step: the largest loop, whose inner ones read weights from shared memory."""
    found = loops(instructions)
    time = max(found, key=lambda loop: loop[1] - loop[0])
    inner = [body(instructions, loop) for loop in found if time[0] < loop[0] and loop[1] <= time[1]]
    phases = case.plan.phases[::-1] if case.plan.backward else case.plan.phases
    trips = [n for phase in phases if (n := (phase.length - phase.resident) // 4) > 1]
    if len(inner) != len(trips):
        raise RuntimeError(f"{case.label}: {len(inner)} loops in the time loop, expected {len(trips)}")
    count = len(body(instructions, time))
    return count + sum(len(code) * (n - 1) for code, n in zip(inner, trips, strict=True))


def weight_clocks(p: dense.Plan | cluster.Plan | None) -> float:
    """In which a program reads what weights are not in registers."""
    if isinstance(p, cluster.Plan):
        return p.in_shared / FROM_L1
    size = p.ring if p else 0
    return size / (FROM_L1 if size <= dense.L1 else FROM_L2)


def figures(case: Case, gpu: GPU) -> dict[str, float]:
    """One row of the table on one card, by the title of the column."""
    code, shared = compiled(case, gpu)
    instructions, registers = disassembly(code)
    split = isinstance(case.plan, cluster.Plan)
    count = (cluster_step if split else dense_step if case.plan else diagonal_step)(case, instructions)
    warps = case.options["num_warps"]
    issue = gpu.multiprocessors * SCHEDULERS * gpu.clock * case.columns / (count * warps)
    return {
        "registers": registers,
        "spills": sum(bool(re.search(r"\b(STL|LDL)\b", text)) for _, text in instructions),
        "shared, bytes": shared,
        "blocks": case.plan.cluster if split else 1,
        "warps": warps,
        "rows": case.plan.rows if case.plan else 1,
        "instructions": count,
        "ns": max(count * max(1, warps / SCHEDULERS), weight_clocks(case.plan)) / gpu.clock * 1e9,
        "G/s by issue": issue / 1e9,
        "bytes": case.bytes,
        "G/s by HBM": gpu.bandwidth / case.bytes / 1e9,
    }


def table(gpus: Sequence[GPU], quick: bool = False) -> tuple[str, int]:
    """The table in Markdown, with what it assumes, and the number of spills in it."""
    rows, spills = [], 0
    for on_each in zip(*(cases(gpu, quick) for gpu in gpus), strict=True):
        found = [figures(case, gpu) for case, gpu in zip(on_each, gpus, strict=True)]
        spills += sum(figure["spills"] for figure in found)
        columns = [[f"{figure[title]:,.0f}" for figure in found] for title in found[0]]
        # One value where all cards agree.
        cells = [values[0] if len(set(values)) == 1 else " / ".join(values) for values in columns]
        rows.append(f"| {on_each[0].label} | {' | '.join(cells)} |")
    cards = "; ".join(
        f"{g.name} (sm_{g.architecture}) {g.multiprocessors} multiprocessors at {g.clock / 1e9:.2f} GHz, "
        f"{g.bandwidth / 1e12:.2f} TB/s"
        for g in gpus
    )
    text = f"""**Static analysis, not a measurement**: nothing here has run on a GPU.
Compiled by Triton {triton.__version__} and NVRTC {importlib.metadata.version("nvidia-cuda-nvrtc")}.
Where a cell has three values they are for {" / ".join(g.name for g in gpus)}.
Assumed, from nominal figures: {cards}; {SCHEDULERS} schedulers a multiprocessor, each issuing one warp instruction a
clock; every guarded instruction runs; each byte of a sequence crosses the HBM once.

- *blocks*: of threads that share one program's work: from 2 on a cluster, compiled by NVRTC.
- *rows*: of the batch, of one program.
- *instructions*: of one warp in one time step, from the machine code of the time loop.
- *ns*: the least that a step can take where each block has a multiprocessor to itself, by its issue slots, or by what
  it reads of the weights in each step, {FROM_L1} bytes a clock from L1 or shared memory, {FROM_L2} from L2. Latencies,
  what the blocks of a cluster exchange, and further turns where not all programs run at once come on top.
- *G/s*: the most billions of (column, step) pairs a second on the whole card, by issue slots and by memory bandwidth.
- *bytes*: of sequences, that a column reads and writes in a step.

| kernel | {" | ".join(found[0])} |
|---|{"---|" * len(found[0])}
"""
    return text + "\n".join(rows), spills


def main():
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__.splitlines()[0])
    parser.add_argument("--write", type=Path, metavar="FILE", help=f"also put the table between {START} and {END}")
    parser.add_argument("--quick", action="store_true", help="one card, and one size of each dense cell")
    chosen = parser.parse_args()
    path, quick = chosen.write, chosen.quick
    if path and quick:
        parser.error("--write: is of the whole table; omit --quick")
    if os.environ.get("TRITON_INTERPRET") == "1":
        sys.exit(f"{COMMAND} compiles, which TRITON_INTERPRET=1 prevents: unset it")
    markdown, spills = table([gpu for gpu in GPUS if gpu.name == "H100"] if quick else GPUS, quick)
    print(markdown)
    if path:
        before, rest = path.read_text().split(START)
        path.write_text(f"{before}{START}\n{markdown}\n{END}{rest.split(END)[1]}")
    if spills:
        sys.exit(f"{spills} spills")


if __name__ == "__main__":
    main()
