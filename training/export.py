"""Exports a run for other programs: ``python -m longwave.training.export <run> --to onnx|torchscript|safetensors``.

ONNX and TorchScript have the network from its input x, (N, T, D) or tokens (N, T), as ``Trained.prepare`` gives it, to
its output, (N, outputs) or (N, T, outputs), for any N and T and sequences of one length: one step on the reference
backend, in a loop. safetensors has the weights by name.
"""

import argparse
import contextlib
import importlib.util
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from longwave.models.layer import Layer
from longwave.models.network import Network
from longwave.schema import one_line
from longwave.training import entry, weights
from longwave.training.errors import UserError
from longwave.training.files import write_atomic
from longwave.training.trained import Trained, load

SUFFIXES = {"onnx": ".onnx", "torchscript": ".pt", "safetensors": ".safetensors"}
NEEDED = {"onnx": ("onnx", "onnxscript"), "torchscript": (), "safetensors": ("safetensors",)}
# Largest difference of an exported network, relative to the largest output.
TOLERANCE = 1e-4


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m longwave.training.export", description=__doc__)
    parser.add_argument("run", help="its folder, or its name or identity in outputs/runs")
    parser.add_argument("--to", choices=SUFFIXES, required=True)
    parser.add_argument("--out", type=Path, help="the file; by default model.* in the run's folder")
    chosen = parser.parse_args(arguments)
    for line in export(weights.find(chosen.run), chosen.to, chosen.out):
        print(line)


def export(folder: Path, to: str, out: Path | None = None) -> list[str]:
    """Writes the file; returns its path, and the difference of its output from the network's on a random batch.

    Raises:
        UserError: where the run is not finished or damaged, a package is not installed, the network cannot be exported,
            or the exported one gives another output.
    """
    if missing := [name for name in NEEDED[to] if importlib.util.find_spec(name) is None]:
        raise UserError(f"--to {to}: needs {' and '.join(missing)}, not installed here: pip install 'longwave[export]'")
    trained = load(folder, "cpu")
    about = {"run": trained.record.name, "classes": json.dumps(trained.task["classes"])}
    out = out or folder / f"model{SUFFIXES[to]}"
    if to == "safetensors":
        from safetensors.torch import save

        write_atomic(out, save({k: v.contiguous() for k, v in trained.network.state_dict().items()}, about))
        return [str(out)]
    network = on_the_reference(trained.network)
    start = _example(trained, 2, 5)
    try:
        with torch.no_grad(), _quiet():
            content, run = (_onnx if to == "onnx" else _torchscript)(network, start, about)
            x = _example(trained, 3, 12)
            found, expected = run(x), network(x.transpose(0, 1))
    # Whatever an exporter says of a layer that is new to it.
    except Exception as error:
        reason = one_line(str(error).partition("\n")[0] or type(error).__name__, 200)
        raise UserError(f"model={trained.config.model.name} cannot be exported to {to}: {reason}") from error
    lines = [str(out)]
    if found is not None:
        expected = expected.transpose(0, 1) if network.reads == "every" else expected
        far = ((found - expected).abs().max() / expected.abs().max()).item()
        if not far <= TOLERANCE:
            reason = f"its output differs by {far:.2g} of the largest output"
            raise UserError(f"model={trained.config.model.name} cannot be exported to {to}: {reason}")
        lines.append(f"checked on 3 x 12 steps: differs by at most {far:.1g} of the largest output")
    write_atomic(out, content)
    return lines


def on_the_reference(network: Network) -> Network:
    """The network with every time loop on the reference, and what follows from its weights alone computed."""
    network.layer.use("reference")
    network.layer.freeze()
    return network


def _example(trained: Trained, samples: int, steps: int) -> Tensor:
    """A random x."""
    rng = torch.Generator().manual_seed(samples)
    if trained.network.embedding is not None:
        return torch.randint(0, trained.network.embedding.num_embeddings, (samples, steps), generator=rng)
    return torch.randn(samples, steps, trained.task["inputs"], generator=rng)


class Begin(nn.Module):
    """The first output (B, hidden) and the state of a layer, as a flat tuple: zeros, or that after the first step."""

    def __init__(self, layer: Layer):
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        output, state = self.layer.step(x)
        parts = tree_flatten(state)[0]
        if self.layer.starts_from_zeros:
            return torch.zeros_like(output), tuple(torch.zeros_like(part) for part in parts)
        # Nothing may be another's memory.
        return output.clone(), tuple(part.clone() for part in parts)


class Step(nn.Module):
    """The output and the state, as a flat tuple, after one more step."""

    def __init__(self, layer: Layer, width: int):
        super().__init__()
        self.layer = layer
        self.spec = tree_flatten(layer.step(torch.zeros(1, width))[1])[1]

    def state(self, parts: tuple[Tensor, ...]) -> Any:
        """The layer's state of the flat one."""
        return tree_unflatten(list(parts), self.spec)

    def forward(self, x: Tensor, parts: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        output, state = self.layer.step(x, self.state(parts))
        return output.clone(), tuple(part.clone() for part in tree_flatten(state)[0])


class Scanned(nn.Module):
    """The network with ``scan`` as its loop, which ONNX has too."""

    def __init__(self, network: Network, width: int):
        super().__init__()
        self.network = network
        self.begin, self.step = Begin(network.layer), Step(network.layer, width)
        self.skipped = 0 if network.layer.starts_from_zeros else 1

    def forward(self, x: Tensor) -> Tensor:
        from torch._higher_order_ops.scan import scan

        network = self.network
        x = network.embed(x.transpose(0, 1))
        first, state = self.begin(x[0])

        def step(parts: list[Tensor], x: Tensor) -> tuple[list[Tensor], Tensor]:
            output, parts = self.step(x, tuple(parts))
            return list(parts), output

        state, sequence = scan(step, list(state), x[self.skipped :])
        if network.reads != "every":
            return network.read(self.step.state(tuple(state)))
        if self.skipped:
            sequence = torch.cat([first.unsqueeze(0), sequence])
        return network.readout(sequence).transpose(0, 1)


def _onnx(network: Network, x: Tensor, about: dict[str, str]) -> tuple[bytes, Callable]:
    # Not among the imports: seconds.
    import torch._dynamo
    from torch.export import Dim

    width = network.embed(x[:, :1]).shape[-1]
    # The layers of torch.nn's names are ours, with a step that can be traced.
    with torch._dynamo.config.patch(allow_rnn=True):
        shapes = ({0: Dim.DYNAMIC, 1: Dim.DYNAMIC},)
        program = torch.export.export(Scanned(network, width), (x,), dynamic_shapes=shapes, strict=False)
    made = torch.onnx.export(program, dynamo=True, verbose=False, input_names=["x"], output_names=["output"])
    model = made.model_proto
    for key, value in about.items():
        model.metadata_props.add(key=key, value=value)
    content = model.SerializeToString()
    if importlib.util.find_spec("onnxruntime") is None:
        return content, lambda x: None
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return content, lambda x: torch.from_numpy(session.run(None, {"x": x.numpy()})[0])


class Looped(nn.Module):
    """The network as a loop that TorchScript compiles, around a step that it traces."""

    def __init__(self, network: Network, begin: nn.Module, step: nn.Module, end: nn.Module):
        super().__init__()
        self.embedding = network.embedding or nn.Identity()
        self.begin, self.step, self.end = begin, step, end
        self.skipped = 0 if network.layer.starts_from_zeros else 1
        self.every = network.reads == "every"

    def forward(self, x: Tensor) -> Tensor:
        x = self.embedding(x.transpose(0, 1))
        output, state = self.begin(x[0])
        outputs = [output]
        for t in range(self.skipped, x.shape[0]):
            output, state = self.step(x[t], state)
            if self.every:
                outputs.append(output)
        if self.every:
            # The first is of the first step where it was not left to the loop.
            return self.end.sequence(torch.stack(outputs[1 - self.skipped :])).transpose(0, 1)
        return self.end.state(state)


class End(nn.Module):
    """The readout of a flat state, and of a sequence."""

    def __init__(self, network: Network, step: Step):
        super().__init__()
        self.network, self.step = network, step

    def state(self, parts: tuple[Tensor, ...]) -> Tensor:
        return self.network.read(self.step.state(parts))

    def sequence(self, sequence: Tensor) -> Tensor:
        return self.network.readout(sequence)


def _torchscript(network: Network, x: Tensor, about: dict[str, str]) -> tuple[bytes, Callable]:
    sequence = network.embed(x.transpose(0, 1))
    begin, step = Begin(network.layer), Step(network.layer, sequence.shape[-1])
    output, state = begin(sequence[0])
    some = {"state": (state,), "sequence": (sequence.new_zeros(2, *output.shape),)}
    made = Looped(
        network,
        torch.jit.trace(begin, (sequence[0],)),
        torch.jit.trace(step, (sequence[1], state)),
        torch.jit.trace_module(End(network, step), some),
    )
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(made), buffer, _extra_files=about)
    return buffer.getvalue(), torch.jit.load(io.BytesIO(buffer.getvalue()))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporters' remarks on their own code."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


if __name__ == "__main__":
    with entry.in_one_line():
        main()
