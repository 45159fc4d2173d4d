import pytest
import torch

from longwave.kernels import library
from longwave.kernels.operation import OPERATIONS
from tests.kernels.checks import backend


@pytest.fixture
def poison():
    """Fills memory that nobody has written with NaN, and computes on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    assert torch.empty(4).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def interpreter():
    """Imports the kernels under the interpreter: whether a kernel is interpreted is decided where it is defined."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        for name, operation in OPERATIONS.items():
            if (library.FOLDER / operation.folder / "triton.py").exists():
                backend(name)
        yield
