"""The elementary functions of vector.h, as the compiler makes them on this machine."""

import ctypes
import subprocess

import numpy as np
import pytest
import torch
from torch import Tensor

from longwave.kernels import library

# With denormal numbers flushed, as in the threads of the kernels.
PROBE = """
#include "threads.h"
#include "vector.h"
#define PROBE(function)                                                                             \\
    void probe_##function(const real *x, real *y, long n) {                                         \\
        uint64_t before = flush_denormals();                                                        \\
        for (long i = 0; i < n; i += LANES) store(y + i, function(load(x + i, n - i)), n - i);      \\
        restore_denormals(before);                                                                  \\
    }
PROBE(tanh_)
PROBE(sigmoid)
int vector_bytes(void) { return VECTOR_BYTES; }
"""


@pytest.fixture(scope="module", params=[torch.float32, torch.float64], ids=str)
def probe(request, tmp_path_factory):
    folder, dtype = tmp_path_factory.mktemp("probe"), request.param
    (folder / "probe.c").write_text(PROBE)
    flags = library.flags(dtype)
    command = [*library.compiler(), *flags, f"-I{library.FOLDER}", str(folder / "probe.c"), "-o"]
    subprocess.run([*command, str(folder / "probe.so")], check=True)
    loaded = ctypes.CDLL(str(folder / "probe.so"))

    def function(name: str, x: Tensor) -> Tensor:
        y = torch.empty_like(x)
        getattr(loaded, f"probe_{'tanh_' if name == 'tanh' else name}")(
            ctypes.c_void_p(x.data_ptr()), ctypes.c_void_p(y.data_ptr()), ctypes.c_long(len(x))
        )
        return y

    print(f"\nvectors of {loaded.vector_bytes()} bytes")
    return dtype, function


def exact(name: str, x: Tensor) -> np.ndarray:
    """In long double, whose last place is finer than float64's but on a few systems."""
    x = x.double().numpy().astype(np.longdouble)
    return np.tanh(x) if name == "tanh" else 1 / (1 + np.exp(-x))


def ulps(result: Tensor, truth: np.ndarray) -> np.ndarray:
    """Signed errors in units in the last place."""
    magnitude = torch.from_numpy(np.abs(truth).astype(np.float64)).to(result.dtype)
    spacing = torch.nextafter(magnitude, torch.full_like(magnitude, torch.inf)) - magnitude
    return (result.double().numpy() - truth) / spacing.double().numpy()


@pytest.mark.parametrize("name", ["tanh", "sigmoid"])
def test_within_3_ulp(probe, name):
    """From where the result is flushed to where it is 1, and beyond on both sides."""
    dtype, function = probe
    generator = torch.Generator().manual_seed(0)
    small = torch.logspace(-30, 0, 100_001, dtype=torch.float64)
    far = 110 if dtype == torch.float32 else 750
    x = torch.cat([torch.linspace(-end, end, 1_000_003, dtype=torch.float64) for end in (20, far)])
    x = torch.cat([x, small, -small]).to(dtype)
    x = x[torch.randperm(len(x), generator=generator)]
    result, truth = function(name, x), exact(name, x)
    limits = torch.finfo(dtype)
    normal = np.abs(truth) > limits.tiny * (1 + 8 * limits.eps)
    error = ulps(result[torch.from_numpy(normal)], truth[normal])
    near = np.abs(error[(x.abs() <= 20).numpy()[normal]])
    largest = np.abs(error).max()
    print(
        f"{name} {dtype}: {largest:.2f} ulp at most, up to |x| = 20 {near.max():.2f} and {near.mean():.2f} on average"
    )
    assert largest < 3
    assert abs(error.mean()) < 0.05
    denormal = np.abs(truth) < limits.tiny * (1 - 8 * limits.eps)
    assert denormal.any() == (name == "sigmoid")
    assert (result.numpy()[denormal] == 0).all()


@pytest.mark.parametrize("name", ["tanh", "sigmoid"])
def test_special_values(probe, name):
    dtype, function = probe
    nan, inf = float("nan"), float("inf")
    x = torch.tensor(
        [0.0, -0.0, inf, -inf, 1e30, -1e30, 100.0, -100.0, 87.0, -87.0, nan, -nan, 1e-40, 9.02], dtype=dtype
    )
    result, expected = function(name, x), getattr(torch, name)(x)
    assert torch.equal(result.isnan(), x.isnan())
    torch.testing.assert_close(result, expected, equal_nan=True, rtol=1e-6, atol=torch.finfo(dtype).tiny)
    assert torch.equal(result[2:6], expected[2:6])
    if name == "tanh":
        assert torch.equal(result.signbit()[:2], x.signbit()[:2])


@pytest.mark.parametrize("value", [1e-3, 0.5, 3.0])
def test_tanh_is_odd(probe, value):
    dtype, function = probe
    x = torch.tensor([value, -value], dtype=dtype)
    result = function("tanh", x)
    assert result[0] == -result[1]
