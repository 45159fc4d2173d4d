"""Machine code of the Neural RDE's Triton kernels: ``python -m longwave.kernels.nrde.machine_code``, with no GPU.

Compiles them for rk4 and prints a table in Markdown, of registers, spills, shared memory, instructions, and the least
time that a stage can take. A static analysis, not a measurement. Ends with status 1 where a kernel spills.
"""

import re
import sys

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from longwave.kernels.machine_code import GPUS, disassembly
from longwave.kernels.nrde.triton import OPTIONS, TILING, nrde_backward_kernel, nrde_forward_kernel

NUMBERS = ("start", "steps", "blocks", "batch", "hidden", "width", "channels", "inner_count", "layers")
# Of a recipe: D, H and W, with one inner layer.
CHANNELS, HIDDEN, WIDTH = 28, 32, 96
# Multiply-adds in float32 that a multiprocessor does in a clock.
LANES = 128
# Each with the times that the field's weights are multiplied in a stage.
KERNELS = {
    "forward": (nrde_forward_kernel, {"KEEP": 1}, 1),
    "backward": (nrde_backward_kernel, {"ADJOINT": False}, 1),
    "backward, adjoint": (nrde_backward_kernel, {"ADJOINT": True}, 2),
}


def compiled(kernel, constants: dict, architecture: int):
    """The kernel as the launcher has it compiled, of widths that 16 divides."""
    constants = {"STAGES": 4, "PRECISION": "ieee"} | TILING | constants
    kinds = {name: "i32" if name in NUMBERS else "*fp32" for name in kernel.arg_names}
    kinds |= dict.fromkeys(constants, "constexpr")
    aligned = [(i,) for i, name in enumerate(kernel.arg_names) if kinds[name] == "*fp32" or name in ("hidden", "width")]
    source = ASTSource(kernel, kinds, constexprs=constants, attrs={key: [["tt.divisibility", 16]] for key in aligned})
    return triton.compile(source, GPUTarget("cuda", architecture, 32), OPTIONS)


def main():
    weights = HIDDEN * WIDTH + WIDTH * WIDTH + WIDTH * HIDDEN * CHANNELS
    titles = ("kernel", "registers", "spills", "shared, bytes", "instructions", "microseconds a stage")
    print(f"| {' | '.join(titles)} |\n|{'---|' * len(titles)}")
    total = 0
    for label, (kernel, constants, times) in KERNELS.items():
        columns = []
        for gpu in GPUS:
            binary = compiled(kernel, constants, gpu.architecture)
            instructions, registers = disassembly(binary.asm["cubin"])
            spills = sum(bool(re.search(r"\b(STL|LDL)\b", text)) for _, text in instructions)
            bound = times * TILING["BLOCK_B"] * weights / LANES / gpu.clock * 1e6
            columns.append((registers, spills, f"{binary.metadata.shared:,}", f"{len(instructions):,}", f"{bound:.1f}"))
            total += spills
        # One value where all cards agree.
        cells = [str(v[0]) if len(set(v)) == 1 else " / ".join(map(str, v)) for v in zip(*columns, strict=True)]
        print(f"| nrde {label} | {' | '.join(cells)} |")
    if total:
        sys.exit(f"{total} spills")


if __name__ == "__main__":
    main()
