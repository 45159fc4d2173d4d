"""The elementary functions of vector.h, as the compiler makes them on this machine."""

import ctypes
import subprocess

import pytest
import torch
from torch import Tensor

from kernels import compile

PROBE = """
#include "vector.h"
void probe_tanh(const real *x, real *y, long n) {
    for (long i = 0; i < n; i += LANES) store(y + i, tanh_(load(x + i, n - i)), n - i);
}
void probe_sigmoid(const real *x, real *y, long n) {
    for (long i = 0; i < n; i += LANES) store(y + i, sigmoid(load(x + i, n - i)), n - i);
}
"""


@pytest.fixture(scope="module", params=[torch.float32, torch.float64], ids=str)
def probe(request, tmp_path_factory):
    folder, dtype = tmp_path_factory.mktemp("probe"), request.param
    (folder / "probe.c").write_text(PROBE)
    flags = compile.flags(dtype)
    command = [*compile.compiler(), *flags, f"-I{compile.FOLDER}", str(folder / "probe.c"), "-o"]
    subprocess.run([*command, str(folder / "probe.so")], check=True)
    library = ctypes.CDLL(str(folder / "probe.so"))

    def function(name: str, x: Tensor) -> Tensor:
        y = torch.empty_like(x)
        getattr(library, f"probe_{name}")(
            ctypes.c_void_p(x.data_ptr()), ctypes.c_void_p(y.data_ptr()), ctypes.c_long(len(x))
        )
        return y

    return dtype, function


def ulps(result: Tensor, exact: Tensor) -> Tensor:
    """Signed errors in units in the last place; float64 is its own truth, to the 1 ulp of torch's functions."""
    magnitude = exact.to(result.dtype).abs().clamp_min(torch.finfo(result.dtype).tiny)
    spacing = torch.nextafter(magnitude, torch.full_like(magnitude, torch.inf)) - magnitude
    return (result.double() - exact) / spacing.double()


@pytest.mark.parametrize("name", ["tanh", "sigmoid"])
def test_within_3_ulp(probe, name):
    dtype, function = probe
    generator = torch.Generator().manual_seed(0)
    small = torch.logspace(-30, 0, 100_001, dtype=torch.float64)
    x = torch.cat([torch.linspace(-20, 20, 1_000_003, dtype=torch.float64), small, -small]).to(dtype)
    x = x[torch.randperm(len(x), generator=generator)]
    error = ulps(function(name, x), getattr(torch, name)(x.double()))
    largest, average = error.abs().max(), error.abs().mean()
    print(f"\n{name} {dtype}: {largest:.2f} ulp at most, {average:.3f} on average, bias {error.mean():.4f}")
    assert error.abs().max() < 3
    assert error.mean().abs() < 0.05


@pytest.mark.parametrize("name", ["tanh", "sigmoid"])
def test_special_values(probe, name):
    dtype, function = probe
    nan, inf = float("nan"), float("inf")
    x = torch.tensor(
        [0.0, -0.0, inf, -inf, 1e30, -1e30, 100.0, -100.0, 87.0, -87.0, nan, -nan, 1e-40, 9.02], dtype=dtype
    )
    result, expected = function(name, x), getattr(torch, name)(x)
    assert torch.equal(result.isnan(), x.isnan())
    torch.testing.assert_close(result, expected, equal_nan=True, rtol=1e-6, atol=1e-38)
    if name == "tanh":
        assert torch.equal(result.signbit()[:2], x.signbit()[:2])


@pytest.mark.parametrize("value", [1e-3, 0.5, 3.0])
def test_tanh_is_odd(probe, value):
    dtype, function = probe
    x = torch.tensor([value, -value], dtype=dtype)
    result = function("tanh", x)
    assert result[0] == -result[1]
