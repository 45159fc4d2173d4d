"""Predictions of a trained network for a sensor, line by line: ``sensor | python examples/stream.py <run>``.

A line of the standard input has the channels of one step, separated by commas, semicolons or spaces. For each step, a
line on the standard output has its number, and the outputs, or the class and its probability.
"""

import re
import sys

import longwave
from longwave.training.entry import in_one_line
from longwave.training.errors import UserError
from longwave.training.trained import probabilities


def main(run: str, lines=sys.stdin) -> None:
    model = longwave.load(run)
    try:
        stream = model.stream()
    except ValueError as error:
        raise UserError(str(error)) from error
    predicts, names = model.task["predicts"], model.task["classes"]
    for number, line in enumerate(lines, 1):
        try:
            output = stream.step([float(text) for text in re.split(r"[,;\s]+", line.strip())])
        except ValueError as error:
            raise UserError(f"line {number}: {error}") from error
        if output is None:
            continue
        if predicts == "values":
            print(stream.steps, *(f"{value:.6g}" for value in output.tolist()), flush=True)
        else:
            shares = probabilities(output, predicts)
            best = int(shares.argmax())
            print(stream.steps, names[best] if names else best, f"{shares[best]:.4f}", flush=True)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    with in_one_line():
        main(sys.argv[1])
