"""The Neural RDE's steps in Triton: one program a block of batch rows, serial over blocks and stages, for any size.

What another thread of the program reads passes through memory, behind a barrier: the tape (steps, stages, B, H + layers
W) has for each stage and row the h that the field is asked at, and the outputs of its hidden layers after their
activations; the record of gradients likewise that of F(h) x, and those of the hidden layers before them. The gradients
of the weights are matrix products of the two.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from longwave.kernels.device import tanh
from longwave.kernels.nrde import outputs_like, register
from longwave.kernels.nrde.reference import SOLVERS

# Rows are independent; tl.dot takes no fewer than 16, of rows or of terms. Three tiles of units are the 96 of a field
# three times as wide as 32 units.
TILING = {"BLOCK_B": 16, "BLOCK_N": 32, "BLOCK_K": 16}
# There are few programs, one to a multiprocessor: left to itself the compiler spills to make room for more.
OPTIONS = {"num_warps": 4, "maxnreg": 255}
# Rows of a record, at least, whose weight gradients are one product.
SEGMENT = 4096


@triton.jit
def product(acc, source, stride, terms, weight, column, columns, here, PRECISION: tl.constexpr, BLOCK_K: tl.constexpr):
    """acc + rows (rows, terms) times a tile of the columns of a weight (terms, columns); ``source`` has row starts."""
    for k_0 in range(0, terms, BLOCK_K):
        k = k_0 + tl.arange(0, BLOCK_K)
        rows = tl.load(source + k[None, :], mask=here & (k[None, :] < terms), other=0.0)
        inside = (k[:, None] < terms) & (column < columns)
        tile = tl.load(weight + k[:, None] * stride + column, mask=inside, other=0.0)
        acc = tl.dot(rows, tile, acc, input_precision=PRECISION)
    return acc


@triton.jit
def combine(
    base, scale, slopes, stage_stride, weights, step, low, high, out, row, batch, hidden, record,
    BLOCK_N: tl.constexpr,
):  # fmt: skip
    """out = scale * base + the sum over low <= j < high of weights[j * step] * slopes[j]; out has row starts."""
    for unit_0 in range(0, hidden, BLOCK_N):
        unit = (unit_0 + tl.arange(0, BLOCK_N))[None, :]
        here = (row < batch) & (unit < hidden)
        total = scale * tl.load(base + row * hidden + unit, mask=here, other=0.0)
        for j in range(low, high):
            slope = tl.load(slopes + j * stage_stride + row * hidden + unit, mask=here, other=0.0)
            total += tl.load(weights + j * step) * slope
        tl.store(out + unit, total, mask=here)


@triton.jit
def hidden_layers(
    at, first, b_first, inner, b_inner, row, batch, hidden, width, inner_count, layers,
    PRECISION: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """All hidden layers of the h in a tape, after their activations; ``at`` has row starts."""
    for layer in range(layers):
        m = tl.maximum(layer - 1, 0) % tl.maximum(inner_count, 1)
        for unit_0 in range(0, width, BLOCK_N):
            unit = (unit_0 + tl.arange(0, BLOCK_N))[None, :]
            here = (row < batch) & (unit < width)
            acc = tl.full((row.shape[0], BLOCK_N), 0.0, tl.float32)
            if layer == 0:
                acc += tl.load(b_first + unit, mask=unit < width, other=0.0)
                acc = product(acc, at, width, hidden, first, unit, width, row < batch, PRECISION, BLOCK_K)
            else:
                acc += tl.load(b_inner + m * width + unit, mask=unit < width, other=0.0)
                source = at + hidden + (layer - 1) * width
                weight = inner + m * width * width
                acc = product(acc, source, width, width, weight, unit, width, row < batch, PRECISION, BLOCK_K)
            # Not tl.maximum, which drops a NaN.
            acc = tl.where(layer == layers - 1, tanh(acc), tl.where(acc < 0.0, 0.0, acc))
            tl.store(at + hidden + layer * width + unit, acc, mask=here)
        tl.debug_barrier()


@triton.jit
def contract(
    at, last, b_last, x, sign, out, row, batch, hidden, width, channels, layers,
    PRECISION: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """out = sign * F(h) x, from the hidden layers in a tape; the matrix stays in registers."""
    z = at + hidden + (layers - 1) * width
    for unit_0 in range(0, hidden, BLOCK_N):
        unit = (unit_0 + tl.arange(0, BLOCK_N))[None, :]
        here = (row < batch) & (unit < hidden)
        total = tl.full((row.shape[0], BLOCK_N), 0.0, tl.float32)
        for d in range(channels):
            acc = tl.full((row.shape[0], BLOCK_N), 0.0, tl.float32)
            acc += tl.load(b_last + d * hidden + unit, mask=unit < hidden, other=0.0)
            weight = last + d * width * hidden
            acc = product(acc, z, hidden, width, weight, unit, hidden, row < batch, PRECISION, BLOCK_K)
            total += tl.load(x + row * channels + d, mask=row < batch, other=0.0) * acc
        tl.store(out + row * hidden + unit, sign * total, mask=here)


@triton.jit
def field_backward(
    at, grad, first, inner, last, x, out, row, batch, hidden, width, channels, inner_count, layers,
    PRECISION: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Gradients of all hidden layers, in a record that has that of F(h) x, and ``out``, that of h."""
    on = hidden + (layers - 1) * width
    for unit_0 in range(0, width, BLOCK_N):
        unit = (unit_0 + tl.arange(0, BLOCK_N))[None, :]
        here = (row < batch) & (unit < width)
        total = tl.full((row.shape[0], BLOCK_N), 0.0, tl.float32)
        for d in range(channels):
            acc = tl.full((row.shape[0], BLOCK_N), 0.0, tl.float32)
            weight = last + d * hidden * width
            acc = product(acc, grad, width, hidden, weight, unit, width, row < batch, PRECISION, BLOCK_K)
            total += tl.load(x + row * channels + d, mask=row < batch, other=0.0) * acc
        y = tl.load(at + on + unit, mask=here, other=0.0)
        tl.store(grad + on + unit, total * (1.0 - y * y), mask=here)
    tl.debug_barrier()
    for back in range(layers - 1):
        layer = layers - 1 - back
        m = (layer - 1) % tl.maximum(inner_count, 1)
        on = hidden + (layer - 1) * width
        for unit_0 in range(0, width, BLOCK_N):
            unit = (unit_0 + tl.arange(0, BLOCK_N))[None, :]
            here = (row < batch) & (unit < width)
            acc = tl.full((row.shape[0], BLOCK_N), 0.0, tl.float32)
            weight = inner + m * width * width
            acc = product(acc, grad + on + width, width, width, weight, unit, width, row < batch, PRECISION, BLOCK_K)
            y = tl.load(at + on + unit, mask=here, other=0.0)
            tl.store(grad + on + unit, tl.where(y <= 0.0, 0.0, acc), mask=here)
        tl.debug_barrier()
    for unit_0 in range(0, hidden, BLOCK_N):
        unit = (unit_0 + tl.arange(0, BLOCK_N))[None, :]
        acc = tl.full((row.shape[0], BLOCK_N), 0.0, tl.float32)
        acc = product(acc, grad + hidden, hidden, width, first, unit, hidden, row < batch, PRECISION, BLOCK_K)
        tl.store(out + row * hidden + unit, acc, mask=(row < batch) & (unit < hidden))


@triton.jit(do_not_specialize=["steps", "blocks", "batch", "inner_count", "layers"])
def nrde_forward_kernel(
    x,  # (blocks, B, D)
    state,  # (B, H)
    first,  # (H, W): from, to
    b_first,  # (W)
    inner,  # (count, W, W): from, to
    b_inner,  # (count, W)
    last,  # (D, W, H)
    b_last,  # (D, H)
    weights,  # (S + 1, S): the solver's, the last row those of all slopes
    slopes,  # (S, B, H)
    sequence,  # (steps, B, H)
    tape,  # (steps, S, B, H + layers W), of 1 step where none is kept
    steps, blocks, batch, hidden, width, channels, inner_count, layers,
    STAGES: tl.constexpr, KEEP: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_B: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    row = (tl.program_id(0) * BLOCK_B + tl.arange(0, BLOCK_B))[:, None]
    record = hidden + layers * width
    # The number of all elements can exceed 2^31.
    states = batch.to(tl.int64) * hidden
    before = state
    for n in range(steps):
        for s in range(STAGES):
            at = tape + ((n * STAGES * KEEP + s) * batch.to(tl.int64) + row) * record
            combine(before, 1.0, slopes, states, weights + s * STAGES, 1, 0, s, at, row, batch, hidden, record, BLOCK_N)
            tl.debug_barrier()
            hidden_layers(
                at, first, b_first, inner, b_inner, row, batch, hidden, width, inner_count, layers,
                PRECISION, BLOCK_N, BLOCK_K,
            )  # fmt: skip
            control = x + tl.minimum(n, blocks - 1) * batch.to(tl.int64) * channels
            contract(
                at, last, b_last, control, 1.0, slopes + s * states, row, batch, hidden, width, channels, layers,
                PRECISION, BLOCK_N, BLOCK_K,
            )  # fmt: skip
            tl.debug_barrier()
        after = sequence + n * states
        ends = weights + STAGES * STAGES
        combine(
            before, 1.0, slopes, states, ends, 1, 0, STAGES, after + row * hidden, row, batch, hidden, record, BLOCK_N
        )
        tl.debug_barrier()
        before = after


@triton.jit(do_not_specialize=["start", "steps", "blocks", "batch", "inner_count", "layers"])
def nrde_backward_kernel(
    x,  # (blocks, B, D)
    first,  # (H, W): from, to
    b_first,  # (W)
    inner,  # (count, W, W): from, to
    b_inner,  # (count, W)
    last,  # (D, W, H)
    b_last,  # (D, H)
    first_back,  # (W, H): to, from
    inner_back,  # (count, W, W): to, from
    last_back,  # (D, H, W)
    weights,  # (S + 1, S), as above
    slopes,  # (S, B, H), of h
    slopes_a,  # (S, B, H), of a
    sequence,  # (steps, B, H), as the next
    grad_sequence,
    tape,  # (steps of the segment, S, B, H + layers W), as the next
    grad,
    a,  # (B, H), the gradient of the state after the segment, turned into that before it
    start, steps, blocks, batch, hidden, width, channels, inner_count, layers,
    STAGES: tl.constexpr, ADJOINT: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_B: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    row = (tl.program_id(0) * BLOCK_B + tl.arange(0, BLOCK_B))[:, None]
    record = hidden + layers * width
    states = batch.to(tl.int64) * hidden
    ends = weights + STAGES * STAGES
    ones = ends + STAGES
    for back in range(steps):
        n = steps - 1 - back
        control = x + tl.minimum(start + n, blocks - 1) * batch.to(tl.int64) * channels
        for unit_0 in range(0, hidden, BLOCK_N):
            unit = (unit_0 + tl.arange(0, BLOCK_N))[None, :]
            here = (row < batch) & (unit < hidden)
            total = tl.load(a + row * hidden + unit, mask=here, other=0.0)
            total += tl.load(grad_sequence + (start + n) * states + row * hidden + unit, mask=here, other=0.0)
            tl.store(a + row * hidden + unit, total, mask=here)
        tl.debug_barrier()
        for r in range(STAGES):
            s = r if ADJOINT else STAGES - 1 - r
            on = ((n * STAGES + s) * batch.to(tl.int64) + row) * record
            if ADJOINT:
                here = weights + s * STAGES
                end = sequence + (start + n) * states
                combine(end, 1.0, slopes, states, here, 1, 0, s, tape + on, row, batch, hidden, record, BLOCK_N)
                combine(a, 1.0, slopes_a, states, here, 1, 0, s, grad + on, row, batch, hidden, record, BLOCK_N)
                tl.debug_barrier()
                hidden_layers(
                    tape + on, first, b_first, inner, b_inner, row, batch, hidden, width, inner_count, layers,
                    PRECISION, BLOCK_N, BLOCK_K,
                )  # fmt: skip
                contract(
                    tape + on, last, b_last, control, -1.0, slopes + s * states, row, batch, hidden, width, channels,
                    layers, PRECISION, BLOCK_N, BLOCK_K,
                )  # fmt: skip
            else:
                # Of slope s, of which the state after the step and the later stages are made.
                combine(
                    a, tl.load(ends + s), slopes_a, states, weights + s, STAGES, s + 1, STAGES, grad + on,
                    row, batch, hidden, record, BLOCK_N,
                )  # fmt: skip
                tl.debug_barrier()
            field_backward(
                tape + on, grad + on, first_back, inner_back, last_back, control, slopes_a + s * states,
                row, batch, hidden, width, channels, inner_count, layers, PRECISION, BLOCK_N, BLOCK_K,
            )  # fmt: skip
            tl.debug_barrier()
        of_stage = ends if ADJOINT else ones
        combine(a, 1.0, slopes_a, states, of_stage, 1, 0, STAGES, a + row * hidden, row, batch, hidden, record, BLOCK_N)
        tl.debug_barrier()


def launch(kernel, like: Tensor, tensors: tuple, *numbers: int, **constants) -> None:
    """Runs a kernel, one program for each block of rows of ``like`` (steps, B, H)."""
    batch = like.shape[1]
    precision = "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32"
    # Triton launches on the current device, which need not be that of the tensors.
    if batch:
        with torch.cuda.device_of(like):
            grid = (triton.cdiv(batch, TILING["BLOCK_B"]),)
            kernel[grid](*tensors, *numbers, **constants, PRECISION=precision, **TILING, **OPTIONS)


def split(parameters: Tensor, hidden: int, channels: int, width: int, inner: int) -> list[Tensor]:
    """Weight and bias of the first layer, of the inner ones and of the last one, as views."""
    sizes = [width * hidden, width, *[width * width, width] * inner, hidden * channels * width, hidden * channels]
    first, b_first, *middle, last, b_last = parameters.split(sizes)
    inner_weights = torch.stack(middle[::2]) if inner else parameters.new_empty(0)
    inner_biases = torch.stack(middle[1::2]) if inner else parameters.new_empty(0)
    return [
        first.view(width, hidden),
        b_first,
        inner_weights.view(inner, width, width),
        inner_biases.view(inner, width),
        last.view(hidden, channels, width),
        b_last.view(hidden, channels),
    ]


def solver_weights(solver: str, like: Tensor) -> Tensor:
    """(S + 2, S): the table, its rows filled with zeros, the weights of all slopes, and ones."""
    rows, ends = SOLVERS[solver]
    table = [[*row, *[0.0] * (len(ends) - len(row))] for row in (*rows, ends, [1.0] * len(ends))]
    return like.new_tensor(table)


def ahead(layers: list[Tensor]) -> list[Tensor]:
    """The layers as the forward pass reads them: along a row lie the units of a tile."""
    first, b_first, inner, b_inner, last, b_last = layers
    turned = (first.T, b_first, inner.mT, b_inner, last.permute(1, 2, 0), b_last.T)
    return [tensor.contiguous() for tensor in turned]


def forward(x, state, parameters, width, inner, repeats, solver, adjoint, repeat_last, keep) -> tuple[Tensor, Tensor]:
    x, state, parameters = (tensor.contiguous() for tensor in (x, state, parameters))
    numbers = (width, inner, repeats, solver, adjoint, repeat_last)
    outputs = sequence, tape = outputs_like(x, state, parameters, *numbers, keep)
    stages, (blocks, batch, channels), hidden = len(SOLVERS[solver][1]), x.shape, state.shape[1]
    layers = 1 + inner * repeats
    if not keep:
        tape = state.new_empty(1, stages, batch, hidden + layers * width)
    tensors = (*ahead(split(parameters, hidden, channels, width, inner)), solver_weights(solver, x))
    slopes = state.new_empty(stages, batch, hidden)
    sizes = (len(sequence), blocks, batch, hidden, width, channels, inner, layers)
    launch(
        nrde_forward_kernel,
        sequence,
        (x, state, *tensors, slopes, sequence, tape),
        *sizes,
        STAGES=stages,
        KEEP=int(keep),
    )
    return outputs


def backward(
    x, parameters, sequence, tape, gradient, width, inner, repeats, solver, adjoint, repeat_last, wanted
) -> tuple[Tensor, Tensor, Tensor]:
    x, parameters, sequence, tape, gradient = (t.contiguous() for t in (x, parameters, sequence, tape, gradient))
    (blocks, _, channels), (steps, batch, hidden) = x.shape, sequence.shape
    stages, layers = len(SOLVERS[solver][1]), 1 + inner * repeats
    own = split(parameters, hidden, channels, width, inner)
    turned = (own[0], own[2], own[4].transpose(0, 1).contiguous())
    weights, slopes = solver_weights(solver, x), x.new_empty(2, stages, batch, hidden)
    a, sums = x.new_zeros(batch, hidden), [torch.zeros_like(tensor) for tensor in own]
    d_x = torch.zeros_like(x) if wanted else x.new_empty(0)
    most = -(-SEGMENT // (stages * max(batch, 1)))
    for end in range(steps, 0, -most):
        start = max(end - most, 0)
        grad = x.new_empty(end - start, stages, batch, hidden + layers * width)
        part = torch.empty_like(grad) if adjoint else tape[start:end]
        tensors = (x, *ahead(own), *turned, weights, *slopes, sequence, gradient, part, grad, a)
        sizes = (start, end - start, blocks, batch, hidden, width, channels, inner, layers)
        launch(nrde_backward_kernel, sequence, tensors, *sizes, STAGES=stages, ADJOINT=adjoint)
        if adjoint:
            grad *= weights[stages, :, None, None]
        controls = x[start:end] if end <= blocks else torch.cat([x[start:], x[-1:]])
        _add(sums, grad, part, controls, width)
        if wanted:
            of_step = _of_x(own, grad, part, width)
            inside = min(end, blocks) - start
            d_x[start : start + inside] += of_step[:inside]
            if end > blocks:
                d_x[-1] += of_step[-1]
    d_first, d_b_first, d_inner, d_b_inner, d_last, d_b_last = sums
    middle = [gradient for pair in zip(d_inner, d_b_inner, strict=True) for gradient in pair]
    return d_x, a, torch.cat([d.flatten() for d in (d_first, d_b_first, *middle, d_last, d_b_last)])


def _columns(record: Tensor, hidden: int, width: int) -> tuple[Tensor, ...]:
    """What a tape or a record of gradients has of h, and of each hidden layer: (rows, H), (rows, W) ..."""
    record = record.flatten(0, 2)
    return record.split([hidden, *[width] * ((record.shape[1] - hidden) // width)], dim=1)


def _add(sums: list[Tensor], grad: Tensor, tape: Tensor, controls: Tensor, width: int) -> None:
    """Adds the weight gradients of a segment, in one order: no atomics."""
    d_first, d_b_first, d_inner, d_b_inner, d_last, d_b_last = sums
    hidden, channels, _ = d_last.shape
    g, *d_layers = _columns(grad, hidden, width)
    h, *outputs = _columns(tape, hidden, width)
    d_first += d_layers[0].T @ h
    d_b_first += d_layers[0].sum(0)
    for i, (d, y) in enumerate(zip(d_layers[1:], outputs[:-1], strict=True)):
        d_inner[i % len(d_inner)] += d.T @ y
        d_b_inner[i % len(d_inner)] += d.sum(0)
    controls = controls.unsqueeze(1).expand(-1, grad.shape[1], -1, -1).reshape(-1, 1, channels)
    outer = (g.unsqueeze(2) * controls).flatten(1)  # (rows, H * D)
    d_last += (outer.T @ outputs[-1]).view_as(d_last)
    d_b_last += outer.sum(0).view_as(d_b_last)


def _of_x(layers: list[Tensor], grad: Tensor, tape: Tensor, width: int) -> Tensor:
    """The gradient of x at each step of a segment, (steps, B, D)."""
    *_, last, b_last = layers
    g, z = _columns(grad, len(last), width)[0], _columns(tape, len(last), width)[-1]
    parts = [((g @ last[:, d]) * z).sum(1) for d in range(last.shape[1])]
    return (torch.stack(parts, 1) + g @ b_last).view(*grad.shape[:3], -1).sum(1)


register("nrde_triton", None, forward, backward)
