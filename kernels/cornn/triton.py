"""coRNN in Triton: one program a block of batch rows, serial over T, for any H."""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from longwave.kernels.cornn.reference import z_step
from longwave.kernels.derivatives import refuse_second_derivatives
from longwave.kernels.device import tanh

# Rows are independent; tl.dot takes no fewer than 16, of rows or of terms.
BLOCK_B = 16
BLOCK_K = 16


@triton.jit(do_not_specialize=["steps", "batch"])
def cornn_forward_kernel(
    pre,  # (T, B, H)
    w_y,  # (H, H), transposed: from, to
    w_z,  # (H, H), transposed
    dt,  # (H)
    dt_z,  # (H), the step of z
    gamma,  # (H)
    epsilon,  # (H)
    y_0,  # (B, H)
    z_0,  # (B, H)
    y_all,  # (T, B, H), as the two below
    z_all,
    force_all,
    steps,
    batch,
    hidden,
    BLOCK_B: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    row = (tl.program_id(0) * BLOCK_B + tl.arange(0, BLOCK_B))[:, None]
    # T * B * H can exceed 2^31.
    stride = batch.to(tl.int64) * hidden
    y_before = y_0
    z_before = z_0
    for _ in range(steps):
        for unit_0 in range(0, hidden, BLOCK_H):
            unit = (unit_0 + tl.arange(0, BLOCK_H))[None, :]
            here = (row < batch) & (unit < hidden)
            cell = row * hidden + unit
            drive = tl.load(pre + cell, mask=here, other=0.0)
            # The state goes through memory, for a tile of it cannot be cut from registers.
            for k_0 in range(0, hidden, BLOCK_K):
                k = k_0 + tl.arange(0, BLOCK_K)
                state = row * hidden + k[None, :]
                state_here = (row < batch) & (k[None, :] < hidden)
                weight = k[:, None] * hidden + unit
                weight_here = (k[:, None] < hidden) & (unit < hidden)
                y = tl.load(y_before + state, mask=state_here, other=0.0)
                drive = tl.dot(y, tl.load(w_y + weight, mask=weight_here, other=0.0), drive, input_precision="ieee")
                z = tl.load(z_before + state, mask=state_here, other=0.0)
                drive = tl.dot(z, tl.load(w_z + weight, mask=weight_here, other=0.0), drive, input_precision="ieee")
            force = tanh(drive)
            dt_here = tl.load(dt + unit, mask=unit < hidden, other=0.0)
            y = tl.load(y_before + cell, mask=here, other=0.0)
            z = tl.load(z_before + cell, mask=here, other=0.0)
            pull = tl.load(gamma + unit, mask=unit < hidden, other=0.0) * y
            pull += tl.load(epsilon + unit, mask=unit < hidden, other=0.0) * z
            z += tl.load(dt_z + unit, mask=unit < hidden, other=0.0) * (force - pull)
            tl.store(force_all + cell, force, mask=here)
            tl.store(z_all + cell, z, mask=here)
            tl.store(y_all + cell, y + dt_here * z, mask=here)
        # The threads of the next step read what other threads of this one wrote.
        tl.debug_barrier()
        y_before = y_all
        z_before = z_all
        pre += stride
        y_all += stride
        z_all += stride
        force_all += stride


@triton.jit(do_not_specialize=["steps", "batch"])
def cornn_backward_kernel(
    w_y,  # (H, H)
    w_z,  # (H, H)
    dt,  # (H)
    dt_z,  # (H), the step of z
    gamma,  # (H)
    epsilon,  # (H)
    y_0,  # (B, H)
    z_0,  # (B, H)
    y_all,  # (T, B, H)
    z_all,  # (T, B, H)
    force_all,  # (T, B, H)
    grad_y_all,  # (T, B, H)
    grad_pre,  # (T, B, H)
    grad_y,  # (B, H), that of the final y, turned into that of y_0
    grad_z,  # (B, H), likewise
    grad_dt,  # (B, H), zeros, summed up over T, as the three below
    grad_dt_z,
    grad_gamma,
    grad_epsilon,
    steps,
    batch,
    hidden,
    SCALARS: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    row = (tl.program_id(0) * BLOCK_B + tl.arange(0, BLOCK_B))[:, None]
    stride = batch.to(tl.int64) * hidden
    # One round more than there are steps: the last only takes the gradient through W to the initial state.
    for back in range(steps + 1):
        n = steps - 1 - back
        here_n = n * stride
        # Nothing comes through W into the last step.
        width = tl.where(back > 0, hidden, 0)
        for unit_0 in range(0, hidden, BLOCK_H):
            unit = (unit_0 + tl.arange(0, BLOCK_H))[None, :]
            here = (row < batch) & (unit < hidden)
            cell = row * hidden + unit
            along_y = tl.load(grad_y + cell, mask=here, other=0.0)
            along_z = tl.load(grad_z + cell, mask=here, other=0.0)
            for k_0 in range(0, width, BLOCK_K):
                k = k_0 + tl.arange(0, BLOCK_K)
                state = row * hidden + k[None, :]
                state_here = (row < batch) & (k[None, :] < hidden)
                weight = k[:, None] * hidden + unit
                weight_here = (k[:, None] < hidden) & (unit < hidden)
                drive = tl.load(grad_pre + here_n + stride + state, mask=state_here, other=0.0)
                along_y = tl.dot(drive, tl.load(w_y + weight, mask=weight_here, other=0.0), along_y, "ieee")
                along_z = tl.dot(drive, tl.load(w_z + weight, mask=weight_here, other=0.0), along_z, "ieee")
            if n >= 0:
                dt_here = tl.load(dt + unit, mask=unit < hidden, other=0.0)
                gamma_here = tl.load(gamma + unit, mask=unit < hidden, other=0.0)
                epsilon_here = tl.load(epsilon + unit, mask=unit < hidden, other=0.0)
                force = tl.load(force_all + here_n + cell, mask=here, other=0.0)
                along_y += tl.load(grad_y_all + here_n + cell, mask=here, other=0.0)
                along_z += dt_here * along_y
                along_force = tl.load(dt_z + unit, mask=unit < hidden, other=0.0) * along_z
                tl.store(grad_pre + here_n + cell, along_force * (1.0 - force * force), mask=here)
                if SCALARS:
                    z_after = tl.load(z_all + here_n + cell, mask=here, other=0.0)
                    y = tl.load(y_0 + cell, mask=here & (n == 0), other=0.0)
                    y += tl.load(y_all + here_n - stride + cell, mask=here & (n > 0), other=0.0)
                    z = tl.load(z_0 + cell, mask=here & (n == 0), other=0.0)
                    z += tl.load(z_all + here_n - stride + cell, mask=here & (n > 0), other=0.0)
                    along_dt = tl.load(grad_dt + cell, mask=here, other=0.0) + along_y * z_after
                    along_dt_z = along_z * (force - gamma_here * y - epsilon_here * z)
                    along_dt_z += tl.load(grad_dt_z + cell, mask=here, other=0.0)
                    along_gamma = tl.load(grad_gamma + cell, mask=here, other=0.0) - along_force * y
                    along_epsilon = tl.load(grad_epsilon + cell, mask=here, other=0.0) - along_force * z
                    tl.store(grad_dt + cell, along_dt, mask=here)
                    tl.store(grad_dt_z + cell, along_dt_z, mask=here)
                    tl.store(grad_gamma + cell, along_gamma, mask=here)
                    tl.store(grad_epsilon + cell, along_epsilon, mask=here)
                along_y -= gamma_here * along_force
                along_z -= epsilon_here * along_force
            tl.store(grad_y + cell, along_y, mask=here)
            tl.store(grad_z + cell, along_z, mask=here)
        # The threads of the next round read what other threads of this one wrote.
        tl.debug_barrier()


def tiling(hidden: int) -> dict[str, int]:
    """Block sizes and options of the launch for ``hidden`` units."""
    block = min(max(triton.next_power_of_2(hidden), 32), 128)
    return {
        "BLOCK_B": BLOCK_B,
        "BLOCK_H": block,
        "BLOCK_K": BLOCK_K,
        "num_warps": 8 if block >= 64 else 4,
        "num_stages": 2,
        # There are few programs, one to a multiprocessor: left to itself the compiler spills to make room for more.
        "maxnreg": 255,
    }


def launch(kernel, like: Tensor, tensors: Sequence[Tensor], *flags: bool) -> None:
    """Runs a kernel on sequences of the shape of ``like`` (T, B, H), one program for each block of rows."""
    steps, batch, hidden = like.shape
    # Triton launches on the current device, which need not be that of the tensors.
    with torch.cuda.device_of(like):
        kernel[(triton.cdiv(batch, BLOCK_B),)](*tensors, steps, batch, hidden, *flags, **tiling(hidden))


@torch.library.custom_op("longwave::cornn_triton", mutates_args=())
def forward(
    pre: Tensor,
    w_y: Tensor,
    w_z: Tensor,
    dt: Tensor,
    dt_z: Tensor,
    gamma: Tensor,
    epsilon: Tensor,
    y_0: Tensor,
    z_0: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """y for every step; the final y and z; and for the backward z and the tanh for every step."""
    y_all, z_all, force_all = sequences = [torch.empty_like(pre) for _ in range(3)]
    # Along a row of the transposed weights lie the units of a tile, which neighbouring threads read together.
    weights = (w_y.T.contiguous(), w_z.T.contiguous())
    launch(cornn_forward_kernel, pre, (pre, *weights, dt, dt_z, gamma, epsilon, y_0, z_0, *sequences))
    return y_all, y_all[-1].clone(), z_all[-1].clone(), z_all, force_all


@forward.register_fake
def _(pre, w_y, w_z, dt, dt_z, gamma, epsilon, y_0, z_0):
    y_all, z_all, force_all = (torch.empty_like(pre) for _ in range(3))
    return y_all, torch.empty_like(y_0), torch.empty_like(z_0), z_all, force_all


@torch.library.custom_op("longwave::cornn_triton_backward", mutates_args=())
def backward(saved: Sequence[Tensor], cotangents: Sequence[Tensor], scalars: bool) -> tuple[Tensor, Tensor]:
    """The gradient of pre, and those of y_0, z_0, dt, dt_z, gamma and epsilon by batch row, (6, B, H).

    Without ``scalars`` the last four are zero.
    """
    grad_y_all, grad_y_last, grad_z_last = cotangents
    grad_pre = torch.empty_like(grad_y_all)
    grads = torch.stack([grad_y_last, grad_z_last, *(torch.zeros_like(grad_y_last) for _ in range(4))])
    launch(cornn_backward_kernel, grad_pre, (*saved, grad_y_all, grad_pre, *grads), scalars)
    return grad_pre, grads


@backward.register_fake
def _(saved, cotangents, scalars):
    grad_y_all, grad_y_last, _ = cotangents
    return torch.empty_like(grad_y_all), grad_y_last.new_empty(6, *grad_y_last.shape)


def _save(ctx, inputs, output):
    y_all, _, _, z_all, force_all = output
    ctx.save_for_backward(*inputs[1:], y_all, z_all, force_all)
    # A zero gradient for z_all and force_all, which do not leave this file, would take their memory again.
    ctx.set_materialize_grads(False)


def _differentiate(ctx, grad_y_all, grad_y_last, grad_z_last, _grad_z_all, _grad_force_all):
    y_0, z_0, y_all, z_all = ctx.saved_tensors[6:10]
    cotangents = [
        torch.zeros_like(like) if grad is None else grad.contiguous()
        for grad, like in ((grad_y_all, y_all), (grad_y_last, y_0), (grad_z_last, z_0))
    ]
    grad_pre, grads = backward(ctx.saved_tensors, cotangents, any(ctx.needs_input_grad[3:7]))
    grad_w_y, grad_w_z = (
        torch.addmm(grad_pre[0].T @ first, grad_pre[1:].flatten(0, 1).T, others[:-1].flatten(0, 1))
        for first, others in ((y_0, y_all), (z_0, z_all))
    )
    # No atomics: each row has summed over its time, and this sums the rows in a fixed order.
    return grad_pre, grad_w_y, grad_w_z, *grads[2:].sum(dim=1), grads[0], grads[1]


forward.register_autograd(_differentiate, setup_context=_save)
refuse_second_derivatives("cornn", backward)


def cornn(pre, w_y, w_z, dt, gamma, epsilon, y_0, z_0, damping: str = "explicit") -> tuple[Tensor, Tensor, Tensor]:
    """The backend of :func:`longwave.kernels.cornn`: y for every step, and the final y and z.

    The sequence is of the type of ``pre``, float32, bfloat16 or float16, computed in float32 throughout.
    """
    dt_z = z_step(dt.float(), epsilon.float(), damping)
    tensors = (pre, w_y, w_z, dt, dt_z, gamma, epsilon, y_0, z_0)
    y_all, y_last, z_last, _, _ = forward(*(t.float().contiguous() for t in tensors))
    return y_all.to(pre.dtype), y_last, z_last
