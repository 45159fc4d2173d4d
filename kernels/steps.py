"""Step sizes that may differ from step to step."""

from collections.abc import Sequence

from torch import Tensor


def each_step(value: float | Tensor, steps: int) -> Sequence[float | Tensor]:
    """What a value is at each of the steps: it is (T, B, 1) or (T, B, H), or else the same at all of them."""
    return value.unbind(0) if isinstance(value, Tensor) and value.dim() == 3 else [value] * steps
