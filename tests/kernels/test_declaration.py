"""A wrong number in a declaration is an error of one line that names it, never a crash."""

import uuid
from dataclasses import replace

import pytest
import torch

from longwave.benchmarks.cases import case, differences
from longwave.kernels import library
from longwave.kernels.library import DeclarationError
from longwave.kernels.operation import OPERATIONS, Operation

# A change of one number and the reason, in which the name of the kind stands as in Python or as in C.
WRONG = [
    ("rnn", {"tape": 0}, "TAPE=0 but cpu.c names {NEW_H}"),
    ("rnn", {"tape": 2}, "TAPE=2 but cpu.c names {NEW_H}"),
    ("rnn", {"units": 1}, "UNITS=1 but cpu.c names {}"),
    ("rnn", {"gates": 2}, "GATES=2 but cpu.c names {DRIVE}"),
    ("rnn", {"states": ("h", "c")}, "STATES=2 but cpu.c names {H}"),
    ("rnn", {"products": {"h": 2}}, "PRODUCTS=2 but cpu.c has one for each gate"),
    ("rnn", {"products": {}, "tape": 0}, "cpu.c is dense, which needs products"),
    ("rnn", {"products": {}}, "tape=1: a cell without products has one gate and no tape"),
    ("cornn", {"tape": 0}, "tape=0: must hold the 1 states beside the first"),
    ("cornn", {"units": 3}, "UNITS=3 but cpu.c names {DT, DT_Z, GAMMA, EPSILON}"),
    ("cornn", {"states": ("y",)}, "products={'y z': 1}: must be of neighbours among the states ('y',)"),
    ("cornn", {"products": {"y": 1}}, "[(4, 4), (4,), (4,), (4,), (4,)] are declared by products={'y': 1}, units=4"),
    ("lem", {"products": {"y": 4}}, "1 matrices, 1 units and 2 states are declared, but the kernel gets 3 parameters"),
    ("lem", {"products": {"y": 2, "z": 2}}, "[(8, 4), (8, 4), (4,)] are declared by products={'y': 2, 'z': 2}"),
    ("lem", {"products": {"y": 2, "z": 1, "y z": 1}}, "must be one or two, of at least one block"),
    ("gru", {"products": {"h": 2}}, "PRODUCTS=2 but cpu.c names {OF_R, OF_U, OF_M}"),
    ("gated_antisymmetric_rnn", {"tape": 1}, "TAPE=1 but cpu.c names {TAPE_U, TAPE_FORCE}"),
    ("lstm", {"reversible": True}, "a cell with products is neither reversible nor incremental"),
    ("indrnn", {"products": {"h": 1}}, "cpu.c is diagonal, which has no products"),
    ("indrnn", {"states": ("h", "c")}, "STATES=2 but cpu.c names {H}"),
    ("indrnn", {"units": 0}, "UNITS=0 but cpu.c names {U}"),
    ("indrnn", {"gates": 2}, "gates=2, tape=0: a cell without products has one gate and no tape"),
    ("indrnn", {"reversible": True}, "cpu.c is neither reversible nor incremental"),
    ("unicornn", {"reversible": False}, "cpu.c is reversible"),
    ("linoss", {"incremental": False}, "cpu.c is incremental"),
    ("linoss", {"reversible": True}, "a cell is reversible or incremental, not both"),
]


@pytest.fixture
def registered(monkeypatch):
    """``registered(name, **changes)``: the operation with other numbers, until the end of the test."""

    def call(name: str, **changes) -> Operation:
        # An operator of PyTorch's is registered once a process.
        copy = f"copy_{uuid.uuid4().hex}_of_{name}"
        monkeypatch.setitem(OPERATIONS, copy, None)
        monkeypatch.setitem(OPERATIONS, name, replace(OPERATIONS[name], name=copy, **changes))
        return OPERATIONS[name]

    return call


@pytest.mark.parametrize(("name", "changes", "reason"), WRONG, ids=str)
def test_wrong_number_is_an_error(name, changes, reason, registered, monkeypatch, tmp_path):
    monkeypatch.setenv("LONGWAVE_CACHE", str(tmp_path))
    example = case(name, 3, 2, 4)

    def use() -> None:
        library.load(registered(name, **changes).source, torch.float64)
        example.run("cpu")

    with pytest.raises(DeclarationError) as caught:
        use()
    message = str(caught.value)
    assert f"of_{name}: " in message
    assert reason in message
    assert "\n" not in message
    # Where the declaration is not refused as it is made: with "auto" no other backend hides it.
    if OPERATIONS[name].name != name:
        with pytest.raises(ValueError, match=r"^[^\n]*$"):
            example.run("auto")


def test_a_copy_with_the_right_numbers_is_accepted(registered, monkeypatch, tmp_path):
    monkeypatch.setenv("LONGWAVE_CACHE", str(tmp_path))
    copy, example = registered("lem"), case("lem", 3, 2, 4)
    assert copy.name in str(library.build(copy.source, torch.float64))
    assert not differences(example)
