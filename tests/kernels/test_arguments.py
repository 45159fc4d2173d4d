"""What is refused, and what the message names; which backend runs."""

import re
from dataclasses import replace

import pytest
import torch

from longwave import kernels
from longwave.benchmarks.cases import case
from longwave.kernels import dispatch
from longwave.kernels.operation import OPERATIONS

ALL = sorted(OPERATIONS)


def refused(example, error, *words, backend="auto"):
    with pytest.raises(error) as caught:
        example.run(backend)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


@pytest.mark.parametrize("name", ALL)
def test_empty_is_refused(name):
    for size in ((5, 0, 4), (0, 2, 4), (5, 2, 0)):
        example = case(name, 5, 2, 4)
        example.inputs["pre"] = example.inputs["pre"].new_zeros(size)
        refused(example, ValueError, name, "(T, B, ", str(size))


@pytest.mark.parametrize("name", ALL)
def test_wrong_shapes_name_the_right_ones(name):
    for key, value in case(name, 5, 2, 6).inputs.items():
        example = case(name, 5, 2, 6)
        example.inputs[key] = value.detach().new_zeros(*value.shape[1:], 7)
        if key == "pre":
            example.inputs[key] = value.detach()[0]
            refused(example, ValueError, name, "pre must be (T, B, ")
        elif key.startswith("state_"):
            refused(example, ValueError, name, f"state {key[6:]} must be (B, H) = (2, 6)")
        else:
            refused(example, ValueError, name, f"{key} must be ", "= (6,)" if value.dim() < 2 else "6)")


@pytest.mark.parametrize("name", ALL)
def test_wrong_types_are_refused(name):
    for key, value in case(name, 5, 2, 4).inputs.items():
        example = case(name, 5, 2, 4)
        if key == "pre":
            example.inputs[key] = value.detach().long()
            refused(example, TypeError, name, "pre must be a floating-point tensor", "int64")
        else:
            example.inputs[key] = value.detach().float()
            refused(
                example, TypeError, name, f"{key.replace('_', ' ', key.startswith('state_'))} must be torch.float64"
            )


@pytest.mark.parametrize("name", ALL)
def test_wrong_device_is_refused(name):
    for key, value in case(name, 5, 2, 4).inputs.items():
        if key != "pre":
            example = case(name, 5, 2, 4)
            example.inputs[key] = value.detach().to("meta")
            refused(example, ValueError, name, "must be on cpu as pre is, got meta")


def test_other_refusals(monkeypatch, tmp_path):
    pre, u = torch.zeros(2, 3, 4), torch.zeros(4)
    with pytest.raises(ValueError, match="indrnn: backend='gpu': must be one of auto, reference, cpu, triton"):
        kernels.indrnn(pre, u, backend="gpu")
    with pytest.raises(TypeError, match="indrnn: u must be a tensor, got float"):
        kernels.indrnn(pre, 0.5)
    with pytest.raises(ValueError, match="lstm: pre must be \\(T, B, 4H\\), got \\(2, 3, 6\\)"):
        kernels.lstm(torch.zeros(2, 3, 6), torch.zeros(4, 1))
    with pytest.raises(ValueError, match="cornn: state must be \\(y, z\\), each \\(B, H\\) = \\(3, 4\\)"):
        kernels.cornn(pre, torch.zeros(4, 4), torch.zeros(4, 4), 0.1, 1.0, 1.0, torch.zeros(3, 4))
    with pytest.raises(TypeError, match="cornn: dt must be a number or a tensor, got str"):
        kernels.cornn(pre, torch.zeros(4, 4), torch.zeros(4, 4), "0.1", 1.0, 1.0)
    with pytest.raises(ValueError, match="cornn: damping='none': must be one of explicit, implicit"):
        kernels.cornn(pre, torch.zeros(4, 4), torch.zeros(4, 4), 0.1, 1.0, 1.0, damping="none")
    with pytest.raises(ValueError, match="linoss: discretisation='zoh': must be one of im, imex"):
        kernels.linoss(pre, u, 0.1, discretisation="zoh")
    for anchor in (-1, 2.5, None):
        with pytest.raises(ValueError, match=f"unicornn: anchor={anchor}: must be 0 \\(none\\) or a whole number"):
            kernels.unicornn(pre, u, u, 0.1, 1.0, anchor=anchor)
    with monkeypatch.context() as patch:
        elsewhere = replace(dispatch._source("lstm"), path=tmp_path / "cpu.c")
        patch.setattr(dispatch, "_source", lambda name: elsewhere)
        with pytest.raises(RuntimeError, match="lstm: backend='triton' cannot run: there is no Triton kernel"):
            kernels.lstm(torch.zeros(2, 3, 4), torch.zeros(4, 1), backend="triton")
    with pytest.raises(RuntimeError, match="backend='cpu' needs CPU tensors, pre is on meta"):
        kernels.indrnn(pre.to("meta"), u.to("meta"), backend="cpu")


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("pre", "given"),
    [
        ([1.0], "list"),
        (None, "NoneType"),
        (torch.tensor(1.0), "()"),
        (torch.zeros(2, 3), "(2, 3)"),
        (torch.zeros(2, 3, 7), "(2, 3, 7)"),
    ],
    ids=str,
)
def test_gru_needs_no_bias_to_refuse_pre(pre, given, bias):
    with pytest.raises(ValueError, match=re.escape(f"gru: pre must be (T, B, 3H), got {given}")):
        kernels.gru(pre, torch.zeros(3, 1), torch.zeros(1) if bias else None)


@pytest.mark.parametrize("name", ALL)
def test_state_of_another_kind_is_refused(name):
    example = case(name, 5, 2, 4)
    names = OPERATIONS[name].states
    inputs = {key: value for key, value in example.inputs.items() if not key.startswith("state_")}
    good = torch.zeros(2, 4, dtype=torch.float64)
    for state, given in ((5, "int"), ("h", "str"), ([good] * 3, "(2, 4), (2, 4), (2, 4)"), ((None,), "NoneType")):
        expected = f"{name}: state must be ({', '.join(names)}), each (B, H) = (2, 4), got {given}"
        with pytest.raises(ValueError, match=f"^{re.escape(expected)}$"):
            example.operation(**inputs, **example.constants, state=state)


def test_backend_for():
    pre = torch.zeros(2, 3, 4)
    assert all(kernels.backend_for(name, pre) == "cpu" for name in ALL)
    assert kernels.backend_for("cornn", pre, "reference") == "reference"
    assert kernels.backend_for("cornn", pre.to(torch.bfloat16)) == "reference"
    assert kernels.backend_for("cornn", pre.to("meta")) == "reference"


def test_half_precision_runs_on_the_reference():
    pre, u = torch.ones(2, 3, 4, dtype=torch.bfloat16), torch.full((4,), 0.5)
    for parameter in (u, u.bfloat16()):
        y, h = kernels.indrnn(pre, parameter)
        assert (y.dtype, h.dtype) == (torch.bfloat16, torch.float32)
        assert torch.equal(h, y[-1].float())
        assert (h == 1.5).all()


def test_half_precision_beside_float32_is_refused_where_it_is_not_computed_in_float32(monkeypatch):
    monkeypatch.setitem(OPERATIONS, "copy_of_rnn", None)
    monkeypatch.setitem(OPERATIONS, "rnn", replace(OPERATIONS["rnn"], name="copy_of_rnn", half=False))
    pre = torch.ones(2, 3, 4, dtype=torch.bfloat16)
    with pytest.raises(TypeError, match=r"rnn: w_h must be torch\.bfloat16 as pre is, got torch\.float32"):
        kernels.rnn(pre, torch.zeros(4, 4))
    y, h = kernels.rnn(pre, torch.zeros(4, 4, dtype=torch.bfloat16))
    assert (y.dtype, h.dtype) == (torch.bfloat16, torch.bfloat16)


@pytest.mark.parametrize("name", ALL)
def test_public_docstring_is_the_definition(name):
    doc = getattr(kernels, OPERATIONS[name].folder).__doc__
    for word in ("_{n-1}", "Args:", "backend:", "Returns:", "(T, B, H)"):
        assert word in doc
