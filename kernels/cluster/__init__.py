"""The time loop of a dense cell on clusters of CUDA thread blocks, for weights that one multiprocessor does not hold.

Each block of a cluster keeps a part of the weights on its multiprocessor for the whole sequence, and computes a part of
the units; after each step the blocks write the states into the shared memory of one another (``dense.h``). The cell is
the ``cpu.c`` of its operation, compiled by NVRTC at first use: Triton compiles no sum over the blocks of a cluster.
"""

import ctypes
import functools
import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from longwave.kernels.library import BuildError, Source
from longwave.kernels.operation import Operation

FOLDER = Path(__file__).parent
THREADS = 256
# Of a thread, for weights; its other 110 are for sums and states. Less where it reads further weights in each step.
REGISTERS, FEWER_REGISTERS = 144, 128
# Bytes of shared memory of a block, of compute capability 9.0 and 10.0; `choose` asks the card.
SHARED = 227 * 1024
# Blocks of a cluster. More than 8 a card need not allow: `loaded` asks it.
CLUSTERS = (2, 4, 8, 16)
PORTABLE = 8
MOST_ROWS = 8
# The first compute capability with clusters.
CAPABILITY = (9, 0)
# Clusters lie within groups of multiprocessors whose numbers (16 or 18 on an H100) are no multiple of all sizes.
USABLE = 15 / 16

# Whether clusters are used at all: benchmarks also time what runs without them.
ENABLED = True

log = logging.getLogger("longwave")


class Phase(NamedTuple):
    """The product of one phase: vectors of ``inputs`` blocks of H, in slices; ``outputs`` blocks of the result."""

    first_state: int
    inputs: int
    first_product: int
    outputs: int
    groups: int  # of four columns
    slices: int
    length: int  # of a slice
    resident: int  # of these, in registers

    @property
    def depth(self) -> int:
        return self.slices * self.length


NO_PHASE = Phase(0, 0, 0, 0, 1, 0, 0, 0)


class Plan(NamedTuple):
    """Division of the work, which a kernel is compiled for."""

    hidden: int
    cluster: int  # blocks
    width: int  # units of a block
    rows: int  # of the batch, of a cluster
    phases: tuple[Phase, ...]
    backward: bool
    threads: int

    @property
    def results(self) -> int:
        return max(phase.slices * self.rows * 4 * phase.groups for phase in self.phases)

    @property
    def in_shared(self) -> int:
        """Bytes of the weights of a block that are not in registers."""
        return 16 * self.threads * sum(phase.length - phase.resident for phase in self.phases)

    @property
    def shared(self) -> int:
        """Bytes of shared memory of a block: vectors, results, and weights."""
        vectors = sum(phase.depth for phase in self.phases) * self.rows * (2 if len(self.phases) == 1 else 1)
        return 4 * (vectors + self.results) + self.in_shared

    @property
    def entry(self) -> str:
        """The name of the kernel."""
        return "backward" if self.backward else "forward"

    def options(self) -> list[str]:
        """Options of the compiler, beside those of the operation."""
        numbers = {"HIDDEN": self.hidden, "CLUSTER": self.cluster, "WIDTH": self.width, "ROWS": self.rows}
        numbers |= {"THREADS": self.threads, "RESULTS_SIZE": self.results}
        for i, phase in enumerate([*self.phases, NO_PHASE][:2]):
            values = phase._asdict() | {"depth": phase.depth}
            numbers |= {f"{key.upper()}_{i}": value for key, value in values.items()}
        return [f"-D{key}={value}" for key, value in numbers.items()] + ["-DBACKWARD"] * self.backward


def plan(
    operation: Operation,
    hidden: int,
    batch: int,
    multiprocessors: int,
    backward: bool = False,
    clusters: Sequence[int] = CLUSTERS,
    threads: int = THREADS,
    registers: Sequence[int] = (REGISTERS, FEWER_REGISTERS),
    shared: int = SHARED,
    most_rows: int = MOST_ROWS,
) -> Plan | None:
    """Division of the work over clusters, or None if no cluster holds the weights."""

    def divided(cluster: int, rows: int, room: int) -> Plan | None:
        # In whole groups of four columns.
        width, left, phases = 4 * math.ceil(hidden / (4 * cluster)), room // 16 * 4, []
        for first_state, states, first_product, products in operation.phases():
            inputs, outputs = (products, states) if backward else (states, products)
            groups = outputs * width // 4
            if groups > threads:
                return None
            # Slices in whole numbers of four terms.
            length = 4 * math.ceil(inputs * hidden / (4 * (threads // groups)))
            slices, resident = math.ceil(inputs * hidden / length), min(length, left)
            left -= resident
            phases.append(Phase(first_state, inputs, first_product, outputs, groups, slices, length, resident))
        return Plan(hidden, cluster, width, rows, tuple(phases), backward, threads)

    for room, size in [(room, size) for room in registers for size in clusters if size <= multiprocessors]:
        p = divided(size, 1, room)
        # First without weights in shared memory, by as few blocks as will do; then with them.
        if not p or p.shared > shared or (room == registers[0] and (p.in_shared or size > PORTABLE)):
            continue
        # As few rows as take the fewest turns of all clusters that run at once.
        at_once = max(1, int(multiprocessors * USABLE) // size)
        turns = math.ceil(batch / (at_once * most_rows))
        rows = math.ceil(batch / (turns * at_once))
        return next(p for rows in range(rows, 0, -1) if (p := divided(size, rows, room)).shared <= shared)
    return None


def pack(matrices: Sequence[Tensor], p: Plan) -> Tensor:
    """The matrices (depth, outputs * H) of all phases as [block][phase][k of a slice][thread][4 columns].

    Slices take turns by four terms, so that threads of one warp read neighbouring numbers.
    """
    parts = []
    for matrix, phase in zip(matrices, p.phases, strict=True):
        columns = matrix.unflatten(1, (phase.outputs, p.hidden))
        columns = F.pad(columns, (0, p.cluster * p.width - p.hidden, 0, 0, 0, phase.depth - len(matrix)))
        fours = columns.unflatten(2, (p.cluster, p.width)).unflatten(0, (phase.length // 4, phase.slices, 4))
        groups = fours.permute(4, 0, 2, 1, 3, 5).reshape(p.cluster, phase.length, phase.slices * phase.groups, 4)
        parts.append(F.pad(groups, (0, 0, 0, p.threads - phase.slices * phase.groups)))
    return torch.cat(parts, dim=1)


class Loop(ctypes.Structure):
    """The argument of a kernel: ``Loop`` in ``dense.h``."""

    _fields_ = [
        *((name, ctypes.c_longlong) for name in ("steps", "batch")),
        *((name, ctypes.c_void_p) for name in ("pre", "weights", "units", "state", "y", "tape", "d_y")),
        *((name, ctypes.c_void_p) for name in ("d_product", "d_pre", "d_state", "d_unit")),
    ]


def source(operation: Operation, p: Plan, dtype: torch.dtype) -> Source:
    """The C file of a cell and what it is compiled with; ``dtype`` is that of ``pre``."""
    options = (*operation.source.options, *p.options(), f"-DPRE_{str(dtype).removeprefix('torch.').upper()}")
    return Source(f"{operation.name}_cluster", operation.source.path, options, FOLDER)


def checked(function: Callable, *arguments) -> Any:
    """The result of a function of NVRTC or of CUDA's driver.

    Raises:
        BuildError: where it fails.
    """
    status, *values = function(*arguments)
    if status.value:
        raise BuildError(f"{function.__name__}: {status.name}")
    return values[0] if values else None


def translated(given: Source, architecture: int) -> bytes:
    """The machine code for an architecture such as 90, by NVRTC.

    Raises:
        BuildError: where NVRTC refuses.
        ImportError, RuntimeError: where it is not there.
    """
    from cuda.bindings import nvrtc

    text, header = given.path.read_bytes(), (FOLDER / "dense.h").read_bytes()
    program = checked(nvrtc.nvrtcCreateProgram, text, given.path.name.encode(), 1, [header], [b"dense.h"])
    options = [option.encode() for option in (*given.options, f"--gpu-architecture=sm_{architecture}")]
    try:
        (outcome,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
        if outcome.value:
            printed = bytearray(checked(nvrtc.nvrtcGetProgramLogSize, program))
            checked(nvrtc.nvrtcGetProgramLog, program, printed)
            lines = [line for line in printed.decode().splitlines() if "error" in line] or [outcome.name]
            raise BuildError(lines[0])
        code = bytearray(checked(nvrtc.nvrtcGetCUBINSize, program))
        checked(nvrtc.nvrtcGetCUBIN, program, code)
        return bytes(code)
    finally:
        nvrtc.nvrtcDestroyProgram(program)


@functools.cache
def loaded(given: Source, p: Plan, device: int):
    """A kernel on a card, ready to be launched; or why it is not, which is kept as well, in one line."""
    try:
        code = translated(given, int("{}{}".format(*torch.cuda.get_device_capability(device))))
        from cuda.bindings import driver

        function = checked(driver.cuModuleGetFunction, checked(driver.cuModuleLoadData, code), p.entry.encode())
        attribute = driver.CUfunction_attribute
        for key, value in (
            (attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, p.shared),
            (attribute.CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED, int(p.cluster > PORTABLE)),
        ):
            checked(driver.cuFuncSetAttribute, function, key, value)
        size = driver.CUlaunchAttribute()
        size.id = driver.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION
        size.value.clusterDim.x, size.value.clusterDim.y, size.value.clusterDim.z = p.cluster, 1, 1
        launch = driver.CUlaunchConfig()
        launch.gridDimX, launch.gridDimY, launch.gridDimZ = p.cluster, 1, 1
        launch.blockDimX, launch.blockDimY, launch.blockDimZ = p.threads, 1, 1
        launch.sharedMemBytes, launch.attrs, launch.numAttrs = p.shared, [size], 1
        if not checked(driver.cuOccupancyMaxActiveClusters, function, launch):
            raise BuildError(f"the card has no room for a cluster of {p.cluster} blocks")
        return function
    # Without their libraries, the bindings raise what they like.
    except (BuildError, ImportError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        _tell(given.name, reason)
        return reason


@functools.cache
def _tell(name: str, reason: str):
    log.warning("No clusters for %s, whose weights are read from L2: %s", name, reason)


def choose(operation: Operation, dtype: torch.dtype, like: Tensor, backward: bool = False) -> Plan | None:
    """The plan for a sequence ``like`` (T, B, H) on its card, where there are clusters and they hold the weights.

    ``dtype`` is that of ``pre``, float32 in the backward pass.
    """
    if not ENABLED or not like.is_cuda or torch.version.hip:
        return None
    _, batch, hidden = like.shape
    return _chosen(operation, dtype, hidden, batch, backward, like.get_device())


# Once for each size, since a training step asks twice a layer.
@functools.cache
def _chosen(operation: Operation, dtype: torch.dtype, hidden: int, batch: int, backward: bool, device: int):
    if torch.cuda.get_device_capability(device) < CAPABILITY:
        return None
    card = torch.cuda.get_device_properties(device)
    shared = card.shared_memory_per_block_optin
    p = plan(operation, hidden, batch, card.multi_processor_count, backward, shared=shared)
    if p is None:
        return None
    with torch.cuda.device(device):
        return None if isinstance(loaded(source(operation, p, dtype), p, device), str) else p


def run(operation: Operation, p: Plan, like: Tensor, **tensors: Tensor | None) -> None:
    """Runs a kernel with the steps and the batch of ``like`` (T, B, H), and with tensors by their names in ``Loop``."""
    steps, batch, _ = like.shape
    pointers = {key: tensor.data_ptr() for key, tensor in tensors.items() if tensor is not None}
    loop, given = Loop(steps, batch, **pointers), source(operation, p, tensors.get("pre", like).dtype)
    with torch.cuda.device_of(like):
        launch(given, p, loop, math.ceil(batch / p.rows), like.get_device())


def launch(given: Source, p: Plan, loop: Loop, clusters: int, device: int) -> None:
    """Launches a kernel on the current stream of a card."""
    from cuda.bindings import driver

    stream = torch.cuda.current_stream().cuda_stream
    arguments = (ctypes.c_void_p * 1)(ctypes.addressof(loop))
    grid, block = (clusters * p.cluster, 1, 1), (p.threads, 1, 1)
    function = loaded(given, p, device)
    checked(driver.cuLaunchKernel, function, *grid, *block, p.shared, stream, ctypes.addressof(arguments), 0)
