"""The time loop of a dense cell in Triton, as ``dense.h`` is in C: a cell adds what is pointwise (its ``triton.py``).

A program runs the whole loop on a few rows of the batch, and waits for no other. The states of its rows, and the
products of a phase, lie in working space of its own, which its L1 cache holds. Weights are loaded into registers before
the loop, as many as fit; the others are read again at each step, in a ring that runs one group of tiles ahead.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F

from longwave.kernels import cluster
from longwave.kernels.derivatives import refuse_second_derivatives
from longwave.kernels.operation import Operation

# A thread has this many weights of a tile: a load of 16 bytes.
ACROSS = 4
# Tiles that a thread's 255 registers hold beside all else, those of the ring among them.
MOST_TILES = 40
# Tiles that are read ahead: with eight warps 16 kB, as much as L2 delivers in its latency.
GROUP = 4
# Of a program; at 255 registers a thread a multiprocessor holds as many.
MOST_WARPS = 8
MOST_ROWS = 4
# With tensor cores, whose least matrix has 16 rows.
TF32_ROWS, TF32_TILES, TF32_GROUP = 16, 16, 2
# Units that the pointwise part takes at once.
MOST_UNITS = 256
# Bytes of the ring that the L1 cache holds. A larger one comes from L2, which feeds a third of the multiprocessors.
L1 = 160 * 1024
FED_BY_L2 = 1 / 3
# Where the interpreter runs, which has none.
MULTIPROCESSORS = 132


class Product(NamedTuple):
    """The product of one phase, vectors (rows, depth) times weights (depth, width), and the tiles of the weights."""

    vectors: int  # the first block of H that is multiplied
    results: int  # the first block of H that comes out
    outputs: int  # the number of these
    depth: int
    width: int
    columns: int  # of tiles
    tiles: int  # of a column
    resident: int  # of these
    first: int  # of the resident tiles


class Plan(NamedTuple):
    """What a kernel is compiled for: the declaration, and how the work is divided."""

    phases: tuple[Product, ...]
    states: int
    gates: int
    products: int
    units: int
    tape: int
    hidden: int
    resident: int  # tiles in registers
    groups: int  # of tiles in the ring
    rows: int  # of a program
    padded: int  # rows, or as many as give each thread something pointwise
    block: int  # units that the pointwise part takes at once
    deep: int  # a tile is (deep, wide)
    wide: int
    group: int  # tiles
    tf32: bool  # whether tensor cores multiply
    # Of the backward pass:
    d_y: bool = False  # whether the sequence has a gradient
    d_pre: bool = False  # whether the gradient of pre is not that of the products
    d_unit: bool = False  # whether the units' gradients are wanted

    @property
    def ring(self) -> int:
        """Bytes of the weights that a program reads in each step."""
        return self.groups * self.group * self.deep * self.wide * 4

    @property
    def reads_l2(self) -> bool:
        """Whether float32 weights come from L2: tensor cores have rows enough to make up for it."""
        return self.ring > L1 and not self.tf32


@triton.jit
def load_blocks(pointer, COUNT: tl.constexpr, step, inside):
    blocks = ()
    for i in tl.static_range(COUNT):
        blocks += (tl.load(pointer + i * step, mask=inside, other=0.0).to(tl.float32),)
    return blocks


@triton.jit
def store_blocks(pointer, blocks, step, inside):
    for i in tl.static_range(len(blocks)):
        tl.store(pointer + i * step, blocks[i], mask=inside)


@triton.jit
def load_tiles(weights, COUNT: tl.constexpr, P: tl.constexpr):
    inside = tl.arange(0, P.deep)[None, :, None] * P.wide + tl.arange(0, P.wide)[None, None, :]
    tiles = ()
    for i in tl.static_range(COUNT):
        tiles += (tl.load(weights + i * (P.deep * P.wide) + inside),)
    return tiles


@triton.jit
def load_vectors(vectors, first, DEPTH: tl.constexpr, INSIDE: tl.constexpr, P: tl.constexpr):
    """What a tile is multiplied with, (rows, deep)."""
    k = first + tl.arange(0, P.deep)[None, :]
    return tl.load(vectors + k) if INSIDE else tl.load(vectors + k, mask=k < DEPTH, other=0.0)


@triton.jit
def add_product(total, tile, piece, P: tl.constexpr):
    if P.tf32:
        return tl.dot(piece, tl.reshape(tile, (P.deep, P.wide)), total, input_precision="tf32")
    else:
        return total + tile * piece[:, :, None]


@triton.jit
def multiply_column(
    vectors, results, resident, ring, ahead, group, column, FIRST: tl.constexpr, ADD: tl.constexpr, W: tl.constexpr,
    P: tl.constexpr,
):  # fmt: skip
    # Without tensor cores a thread adds up its own terms; only then the sum goes over the threads.
    total = tl.full((P.rows, P.wide) if P.tf32 else (P.rows, P.deep, P.wide), 0.0, tl.float32)
    for j in tl.static_range(W.resident):
        piece = load_vectors(vectors, j * P.deep, W.depth, (j + 1) * P.deep <= W.depth, P)
        total = add_product(total, resident[FIRST + j], piece, P)
    if W.resident < W.tiles:
        for j in range(W.resident, W.tiles, P.group):
            now = ahead
            group = tl.where(group + 1 < P.groups, group + 1, 0)
            ahead = load_tiles(ring + group * (P.group * P.deep * P.wide), P.group, P)
            for i in tl.static_range(P.group):
                piece = load_vectors(vectors, (j + i) * P.deep, W.depth, W.tiles * P.deep <= W.depth, P)
                total = add_product(total, now[i], piece, P)
    unit = column * P.wide + tl.arange(0, P.wide)[None, :]
    result = total
    if not P.tf32:
        # tl.sum, which is not interpreted where triton was imported to compile.
        result = tl.reduce(total, 1, tl.standard._sum_combine)
    if ADD:
        result += tl.load(results + unit, mask=unit < W.width, other=0.0)
    tl.store(results + unit, result, mask=unit < W.width)
    return ahead, group


@triton.jit
def multiply(vectors, results, resident, ring, ahead, group, ADD: tl.constexpr, W: tl.constexpr, P: tl.constexpr):
    """results = or += vectors times the weights of a phase; returns the ring's next tiles and the group they are of."""
    if W.resident > 0:
        for column in tl.static_range(W.columns):
            ahead, group = multiply_column(
                vectors, results, resident, ring, ahead, group, column, W.first + column * W.resident, ADD, W, P
            )
    else:
        for column in range(W.columns):
            ahead, group = multiply_column(vectors, results, resident, ring, ahead, group, column, 0, ADD, W, P)
    # All threads have written what each reads next.
    tl.debug_barrier()
    return ahead, group


@triton.jit(do_not_specialize=["steps", "batch"])
def dense_forward_kernel(
    pre,  # (T, B, gates * H)
    weights,  # as `pack` has packed them
    units,  # (units, H)
    state,  # (states, B, H)
    y_all,  # (T, B, H)
    tape_all,  # (T, B, tape * H): all states but the first, then the cell's own
    space,  # (programs, rows, (states + products) * H)
    steps,
    batch,
    STEP: tl.constexpr,
    P: tl.constexpr,
):
    H: tl.constexpr = P.hidden
    SINGLE: tl.constexpr = P.hidden <= P.block
    OWN: tl.constexpr = P.tape - P.states + 1
    local = tl.arange(0, P.padded)[:, None]
    row = tl.program_id(0) * P.rows + local
    space += tl.program_id(0) * (P.rows * (P.states + P.products) * H)
    states = space + local * (P.states * H)
    products = space + P.rows * P.states * H + local * (P.products * H)
    vectors = space + tl.arange(0, P.rows)[:, None] * (P.states * H)
    results = space + P.rows * P.states * H + tl.arange(0, P.rows)[:, None] * (P.products * H)
    # T * B * H can exceed 2^31.
    stride = batch.to(tl.int64) * H
    pre += row * (P.gates * H)
    y_all += row * H
    tape_all += row * (P.tape * H)
    for first in range(0, H, P.block):
        unit = first + tl.arange(0, P.block)[None, :]
        own = (local < P.rows) & (unit < H)
        store_blocks(states + unit, load_blocks(state + row * H + unit, P.states, stride, own & (row < batch)), H, own)
    resident = load_tiles(weights, P.resident, P)
    ring = weights + P.resident * P.deep * P.wide
    ahead = ()
    group = 0
    if P.groups > 0:
        ahead = load_tiles(ring, P.group, P)
    if SINGLE:
        unit = tl.arange(0, P.block)[None, :]
        own = (local < P.rows) & (unit < H)
        here = own & (row < batch)
        u = load_blocks(units + unit, P.units, H, unit < H)
        pre_ahead = load_blocks(pre + unit, P.gates, H, here)
    tl.debug_barrier()
    for n in range(steps):
        if SINGLE:
            pre_now = pre_ahead
            pre_ahead = load_blocks(pre + P.gates * stride + unit, P.gates, H, here & (n + 1 < steps))
        for phase in tl.static_range(len(P.phases)):
            ahead, group = multiply(
                vectors + P.phases[phase].vectors * H, results + P.phases[phase].results * H, resident, ring, ahead,
                group, False, P.phases[phase], P,
            )  # fmt: skip
            for first in range(0, H, P.block):
                if not SINGLE:
                    unit = first + tl.arange(0, P.block)[None, :]
                    own = (local < P.rows) & (unit < H)
                    here = own & (row < batch)
                    u = load_blocks(units + unit, P.units, H, unit < H)
                    pre_now = load_blocks(pre + unit, P.gates, H, here)
                s = load_blocks(states + unit, P.states, H, own)
                product = load_blocks(products + P.phases[phase].results * H + unit, P.phases[phase].outputs, H, own)
                tape = ()
                if phase > 0:
                    tape = load_blocks(tape_all + (P.states - 1) * H + unit, OWN, H, here)
                s, tape = STEP(phase, s, product, pre_now, tape, u)
                tl.static_assert((len(s) == P.states) & ((len(tape) == OWN) | (len(P.phases) > 1)))
                store_blocks(states + unit, s, H, own)
                if phase == 0:
                    store_blocks(tape_all + (P.states - 1) * H + unit, tape, H, here)
                else:
                    store_blocks(tape_all + (P.tape - len(tape)) * H + unit, tape, H, here)
                if phase == len(P.phases) - 1:
                    tl.store(y_all + unit, s[0], mask=here)
                    store_blocks(tape_all + unit, s[1:], H, here)
            tl.debug_barrier()
        pre += P.gates * stride
        y_all += stride
        tape_all += P.tape * stride


@triton.jit
def load_kept(state, y_all, tape_all, d_y_all, n, stride, row, unit, here, P: tl.constexpr):
    """The states before step n, its tape, and the gradient of its output."""
    cell = row * P.hidden + unit
    tape_cell = row * (P.tape * P.hidden) + unit
    first = here & (n == 0)
    later = here & (n > 0)
    kept = (
        tl.load(state + cell, mask=first, other=0.0) + tl.load(y_all + (n - 1) * stride + cell, mask=later, other=0.0),
    )
    for i in tl.static_range(P.states - 1):
        before = tl.load(state + (i + 1) * stride + cell, mask=first, other=0.0)
        before += tl.load(tape_all + (n - 1) * (P.tape * stride) + i * P.hidden + tape_cell, mask=later, other=0.0)
        kept += (before,)
    here = here & (n >= 0)
    kept += load_blocks(tape_all + n * (P.tape * stride) + tape_cell, P.tape, P.hidden, here)
    if P.d_y:
        kept += (tl.load(d_y_all + n * stride + cell, mask=here, other=0.0),)
    return kept


@triton.jit(do_not_specialize=["steps", "batch"])
def dense_backward_kernel(
    weights,  # as `pack` has packed them, transposed
    units,  # (units, H)
    state,  # (states, B, H)
    y_all,  # (T, B, H)
    tape_all,  # (T, B, tape * H)
    d_y_all,  # (T, B, H)
    d_product_all,  # (T, B, products * H)
    d_pre_all,  # (T, B, gates * H)
    d_state,  # (states, B, H), of the final states, turned into that of the initial ones
    d_unit,  # (units, B, H), zeros, summed up over T
    space,  # (programs, rows, (states + products) * H)
    steps,
    batch,
    STEP: tl.constexpr,
    P: tl.constexpr,
):
    H: tl.constexpr = P.hidden
    SINGLE: tl.constexpr = P.hidden <= P.block
    LAST: tl.constexpr = len(P.phases) - 1
    local = tl.arange(0, P.padded)[:, None]
    row = tl.program_id(0) * P.rows + local
    space += tl.program_id(0) * (P.rows * (P.states + P.products) * H)
    states = space + local * (P.states * H)
    products = space + P.rows * P.states * H + local * (P.products * H)
    results = space + tl.arange(0, P.rows)[:, None] * (P.states * H)
    vectors = space + P.rows * P.states * H + tl.arange(0, P.rows)[:, None] * (P.products * H)
    stride = batch.to(tl.int64) * H
    for first in range(0, H, P.block):
        unit = first + tl.arange(0, P.block)[None, :]
        own = (local < P.rows) & (unit < H)
        d_s = load_blocks(d_state + row * H + unit, P.states, stride, own & (row < batch))
        store_blocks(states + unit, d_s, H, own)
    resident = load_tiles(weights, P.resident, P)
    ring = weights + P.resident * P.deep * P.wide
    ahead = ()
    group = 0
    if P.groups > 0:
        ahead = load_tiles(ring, P.group, P)
    if SINGLE:
        unit = tl.arange(0, P.block)[None, :]
        own = (local < P.rows) & (unit < H)
        here = own & (row < batch)
        u = load_blocks(units + unit, P.units, H, unit < H)
        kept_ahead = load_kept(state, y_all, tape_all, d_y_all, steps - 1, stride, row, unit, here, P)
    tl.debug_barrier()
    for back in range(steps):
        n = steps - 1 - back
        if SINGLE:
            kept = kept_ahead
            kept_ahead = load_kept(state, y_all, tape_all, d_y_all, n - 1, stride, row, unit, here, P)
        for phase in tl.static_range(LAST, -1, -1):
            for first in range(0, H, P.block):
                if not SINGLE:
                    unit = first + tl.arange(0, P.block)[None, :]
                    own = (local < P.rows) & (unit < H)
                    here = own & (row < batch)
                    u = load_blocks(units + unit, P.units, H, unit < H)
                    kept = load_kept(state, y_all, tape_all, d_y_all, n, stride, row, unit, here, P)
                d_s = load_blocks(states + unit, P.states, H, own)
                d_product = ()
                if phase < LAST:
                    d_product = load_blocks(products + unit, P.products, H, own)
                elif P.d_y:
                    d_y = (d_s[0] + kept[P.states + P.tape],)
                    d_s = d_y + d_s[1:]
                d_s, d_product, d_pre, d_u = STEP(
                    phase, kept[: P.states], kept[P.states : P.states + P.tape], u, d_s, d_product
                )
                tl.static_assert((len(d_s) == P.states) & (len(d_product) == P.products) & (len(d_u) == P.units))
                store_blocks(states + unit, d_s, H, own)
                store_blocks(products + unit, d_product, H, own)
                if phase == 0:
                    at = n * (P.products * stride) + row * (P.products * H) + unit
                    store_blocks(d_product_all + at, d_product, H, here)
                    if P.d_pre:
                        at = n * (P.gates * stride) + row * (P.gates * H) + unit
                        store_blocks(d_pre_all + at, d_pre, H, here)
                if P.d_unit:
                    for i in tl.static_range(P.units):
                        at = d_unit + i * stride + row * H + unit
                        tl.store(at, tl.load(at, mask=here, other=0.0) + d_u[i], mask=here)
            tl.debug_barrier()
            ahead, group = multiply(
                vectors + P.phases[phase].vectors * H, results + P.phases[phase].results * H, resident, ring, ahead,
                group, True, P.phases[phase], P,
            )  # fmt: skip
    for first in range(0, H, P.block):
        unit = first + tl.arange(0, P.block)[None, :]
        own = (local < P.rows) & (unit < H)
        store_blocks(
            d_state + row * H + unit, load_blocks(states + unit, P.states, H, own), stride, own & (row < batch)
        )


def plan(
    operation: Operation,
    hidden: int,
    batch: int,
    multiprocessors: int,
    backward: bool = False,
    tf32: bool = False,
    **flags: bool,
) -> tuple[Plan, int]:
    """How the work is divided, and the warps of a program; the flags are those of the backward pass."""
    sizes = []
    for first_state, inputs, first_product, outputs in operation.phases():
        states, products = (first_state, inputs), (first_product, outputs)
        sizes.append((products, states) if backward else (states, products))
    depths, widths = ([side[1] * hidden for side in sides] for sides in zip(*sizes, strict=True))
    weights = sum(depth * width for depth, width in zip(depths, widths, strict=True))
    warps = min(triton.next_power_of_2(triton.cdiv(weights, 32 * 64)), MOST_WARPS)
    threads = 32 * warps

    # Wide tiles leave fewer sums to be taken over threads. They may be padded by a sixth at most.
    def padded(wide: int) -> int:
        return sum(depth * triton.cdiv(width, wide) * wide for depth, width in zip(depths, widths, strict=True))

    # Tensor cores take 16 rows: more than a multiprocessor's share of the batch would leave others idle.
    tf32 = tf32 and warps == MOST_WARPS and batch >= TF32_ROWS * multiprocessors
    allowed = [64] if tf32 else [wide for wide in (32, 64, 128, 256, 512, 1024) if wide <= ACROSS * threads]
    wide = max(wide for wide in allowed if 6 * padded(wide) <= 7 * min(map(padded, allowed)))
    deep = ACROSS * threads // wide

    columns = [triton.cdiv(width, wide) for width in widths]
    tiles = [triton.cdiv(depth, deep) for depth in depths]
    total = sum(c * t for c, t in zip(columns, tiles, strict=True))

    # One row feeds the most multiprocessors; more share what is read from L2, or the last wave of programs.
    most, group = (TF32_TILES, TF32_GROUP) if tf32 else (MOST_TILES, GROUP)
    from_l2 = (total - most) * deep * wide * 4 > L1
    fed = max(1, int(multiprocessors * (FED_BY_L2 if from_l2 else 1)))
    rows = min(triton.next_power_of_2(triton.cdiv(batch, fed * (MOST_WARPS // warps))), MOST_ROWS)
    rows = TF32_ROWS if tf32 else rows

    # Each row beyond the first takes the registers of two tiles.
    room = most if tf32 else max(0, most - 2 * (rows - 1))
    share = max(tiles) if total <= room else 0 if tf32 else max(0, room - 2 * group) // sum(columns)
    phases, first, groups = [], 0, 0
    for (vectors, results), depth, width, count, height in zip(sizes, depths, widths, columns, tiles, strict=True):
        read = triton.cdiv(max(height - share, 0), group) * group
        height = max(height, read)
        kept = height - read
        phases.append(Product(vectors[0], *results, depth, width, count, height, kept, first))
        first, groups = first + count * kept, groups + count * read // group

    block = min(max(triton.next_power_of_2(hidden), 32), 64 if tf32 else MOST_UNITS)
    products = sum(operation.products.values())
    numbers = (len(operation.states), operation.gates, products, operation.units, operation.tape)
    shape = (rows, max(rows, threads // block), block, deep, wide, group, tf32)
    return Plan(tuple(phases), *numbers, hidden, first, groups, *shape, **flags), warps


def pack(matrices: Sequence[Tensor], p: Plan, backward: bool) -> Tensor:
    """The tiles of the matrices (depth, width) of all phases: those in registers, then the ring as it is read."""
    resident, ring = [], []
    for matrix, phase in zip(matrices, p.phases, strict=True):
        bottom, right = phase.tiles * p.deep - phase.depth, phase.columns * p.wide - phase.width
        matrix = F.pad(matrix, (0, right, 0, bottom)) if bottom or right else matrix
        tiles = matrix.unflatten(0, (phase.tiles, p.deep)).unflatten(2, (phase.columns, p.wide)).permute(2, 0, 1, 3)
        resident.append(tiles[:, : phase.resident].flatten())
        ring.append(tiles[:, phase.resident :].flatten())
    return torch.cat(resident + (ring[::-1] if backward else ring))


def launch(kernel, p: Plan, warps: int, step: Callable, like: Tensor, *tensors: Tensor) -> None:
    """Runs a kernel with the steps and the batch of ``like`` (T, B, ...), and with working space."""
    steps, batch, _ = like.shape
    programs = triton.cdiv(batch, p.rows)
    space = like.new_empty(programs, p.rows, (p.states + p.products) * p.hidden, dtype=torch.float32)
    # Triton launches on the current device, which need not be that of the tensors.
    with torch.cuda.device_of(like):
        kernel[(programs,)](*tensors, space, steps, batch, step, p, **options(warps))


def options(warps: int) -> dict[str, int]:
    """Of a launch. Left to itself the compiler spills, to make room for more programs than there are."""
    return {"num_warps": warps, "num_stages": 1, "maxnreg": 255}


def multiprocessors(like: Tensor) -> int:
    return torch.cuda.get_device_properties(like.device).multi_processor_count if like.is_cuda else MULTIPROCESSORS


def tf32_allowed() -> bool:
    return torch.backends.cuda.matmul.fp32_precision == "tf32"


def weight_gradient(d_product: Tensor, kept: Tensor, initial: Tensor | None) -> Tensor:
    """One product over the rows of all steps, with the states before each; after each without an initial one."""
    if initial is None:
        return d_product.flatten(0, 1).T @ kept.flatten(0, 1)
    return torch.addmm(d_product[0].T @ initial, d_product[1:].flatten(0, 1).T, kept[:-1].flatten(0, 1))


def fused(operation: Operation, forward_step: Callable, backward_step: Callable, own_d_pre: bool = False) -> Callable:
    """The Triton backend of a dense operation; its operator is ``longwave::<name>_triton``.

    Args:
        operation: declares the numbers, and makes the arguments of the kernel.
        forward_step: ``(phase, state, product, pre, tape, unit) -> (state, tape)``, in tuples of blocks. ``state`` is
            that before, then that after the phase. ``tape`` has the cell's own blocks that the phase before has left,
            and what is returned is added to them.
        backward_step: ``(phase, state, tape, unit, d_state, d_product) -> (d_state, d_product, d_pre, d_unit)``.
            ``state`` is that before the step; ``tape`` has all states but the first after it, then the cell's own
            blocks. ``d_state`` is that after, then that before the phase, the products left out. ``d_product`` is what
            the phase after this one has returned, () in the last. ``d_pre`` is () where it is ``d_product``.
        own_d_pre: whether the gradient of pre is not that of the products.
    """
    name, states, matrices = operation.name, len(operation.states), len(operation.products)
    phases = operation.phases()

    def stack(tensors: Sequence[Tensor], like: Tensor) -> Tensor:
        return torch.stack(list(tensors)) if tensors else like.new_empty(0)

    def divided(p: Plan, pre: torch.dtype, like: Tensor, backward: bool = False) -> cluster.Plan | None:
        """The plan for clusters, where a program would read weights from L2 in each step."""
        return cluster.choose(operation, pre, like, backward) if p.reads_l2 else None

    @torch.library.custom_op(f"longwave::{name}_triton", mutates_args=())
    def forward(pre: Tensor, parameters: Sequence[Tensor], state: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """The sequence, the final states (states, B, H), and the tape."""
        y, final, tape = outputs = results(pre, parameters, state)
        _, batch, hidden = y.shape
        operation.check_parameters(parameters, hidden)
        p, warps = plan(operation, hidden, batch, multiprocessors(pre), tf32=tf32_allowed())
        across, units = [matrix.T for matrix in parameters[:matrices]], stack(parameters[matrices:], y)
        tensors = {"pre": pre.contiguous(), "units": units, "state": stack(state, y), "y": y, "tape": tape}
        if split := divided(p, pre.dtype, y):
            cluster.run(operation, split, y, weights=cluster.pack(across, split), **tensors)
        else:
            pre, *rest = tensors.values()
            launch(dense_forward_kernel, p, warps, forward_step, y, pre, pack(across, p, False), *rest)
        torch.stack([y[-1], *tape[-1].split(hidden, dim=1)[: states - 1]], out=final)
        return outputs

    @forward.register_fake
    def results(pre, parameters, state):
        steps, batch, width = pre.shape
        hidden, new_empty = width // operation.gates, state[0].new_empty
        tape = new_empty(steps, batch, operation.tape * hidden)
        return new_empty(steps, batch, hidden), new_empty(states, batch, hidden), tape

    @torch.library.custom_op(f"longwave::{name}_triton_backward", mutates_args=())
    def backward(
        parameters: Sequence[Tensor],
        state: Sequence[Tensor],
        y: Tensor,
        tape: Tensor,
        d_y: Tensor | None,
        d_final: Tensor | None,
        d_units: bool,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The gradients of the products and of pre, (T, B, ...), of the initial states and of the units, by row.

        That of pre is empty where it is that of the products; those of the units without ``d_units``.
        """
        *_, d_state, d_unit = outputs = gradients(parameters, state, y, tape, d_y, d_final, d_units)
        d_state.zero_() if d_final is None else d_state.copy_(d_final)
        d_unit.zero_()
        _, batch, hidden = y.shape
        flags = {"d_y": d_y is not None, "d_pre": own_d_pre, "d_unit": d_units}
        p, warps = plan(operation, hidden, batch, multiprocessors(y), True, tf32_allowed(), **flags)
        units, kept = stack(parameters[matrices:], y), (stack(state, y), y, tape)
        d_y = None if d_y is None else d_y.contiguous()
        if split := divided(p, torch.float32, y, backward=True):
            names = ("d_product", "d_pre", "d_state", "d_unit")
            tensors = dict(zip(("state", "y", "tape", *names), (*kept, *outputs), strict=True)) | {"d_y": d_y}
            tensors["d_unit"] = d_unit if d_units else None
            weights = cluster.pack(parameters[:matrices], split)
            cluster.run(operation, split, y, weights=weights, units=units, **tensors)
        else:
            kept, weights = (*kept, y if d_y is None else d_y), pack(parameters[:matrices], p, True)
            launch(dense_backward_kernel, p, warps, backward_step, y, weights, units, *kept, *outputs)
        return outputs

    @backward.register_fake
    def gradients(parameters, state, y, tape, d_y, d_final, d_units):
        steps, batch, hidden = y.shape
        d_product = y.new_empty(steps, batch, sum(operation.products.values()) * hidden)
        d_pre = y.new_empty(steps, batch, operation.gates * hidden * own_d_pre)
        return d_product, d_pre, *(y.new_empty(count, batch, hidden) for count in (states, operation.units * d_units))

    def save(ctx, inputs, output):
        pre, parameters, state = inputs
        y, _, tape = output
        ctx.dtype, ctx.parameters = pre.dtype, len(parameters)
        ctx.save_for_backward(*parameters, *state, y, tape)
        # A zero gradient for the tape, which does not leave this file, would take its memory again.
        ctx.set_materialize_grads(False)

    def differentiate(ctx, d_y, d_final, _):
        *tensors, y, tape = ctx.saved_tensors
        parameters, state = tensors[: ctx.parameters], tensors[ctx.parameters :]
        wanted, hidden = ctx.needs_input_grad[1], y.shape[2]
        d_units = any(wanted[matrices:])
        d_product, d_pre, d_state, d_unit = backward(parameters, state, y, tape, d_y, d_final, d_units)
        kept, d_parameters = [y, *tape.split(hidden, dim=2)], []
        for phase, (first, inputs, product, outputs) in enumerate(phases):
            d = d_product[:, :, product * hidden : (product + outputs) * hidden]
            read = range(first, first + inputs) if wanted[phase] else ()
            parts = [weight_gradient(d, kept[i], None if phase else state[i]) for i in read]
            d_parameters.append(torch.cat(parts, dim=1) if parts else None)
        # No atomics: each row has summed over its time, and this sums the rows in a fixed order.
        d_parameters += d_unit.sum(dim=1).unbind(0) if d_units else [None] * operation.units
        return (d_pre if own_d_pre else d_product).to(ctx.dtype), d_parameters, list(d_state.unbind(0))

    forward.register_autograd(differentiate, setup_context=save)
    refuse_second_derivatives(name, backward)

    def kernel(pre: Tensor, parameters: Sequence[Tensor], state: Sequence[Tensor]) -> tuple[Tensor, ...]:
        y, final, _ = forward(pre, parameters, state)
        return y.to(pre.dtype), *final.unbind(0)

    def backend(pre: Tensor, *tensors: Tensor, **options) -> tuple[Tensor, ...]:
        """The sequence, of the type of ``pre``, and the final states; all is computed in float32."""
        tensors = [tensor.float() for tensor in tensors]
        if operation.cpu is not None:
            return operation.cpu(kernel, pre, *tensors, **options)
        return kernel(pre, tensors[:-states], tensors[-states:])

    backend.forward_step, backend.backward_step, backend.own_d_pre = forward_step, backward_step, own_d_pre
    return backend
