"""Files to start a model, a task or a recipe from: ``python -m longwave.new model NAME``.

They are the examples of docs/extending.md under another name.
"""

import argparse
import keyword
import re
import sys
from pathlib import Path

from longwave import PACKAGE
from longwave.schema import shown
from longwave.training.errors import UserError

# What they are called there.
MODEL, TASK = "irnn", "recall"
LONGEST = 30
# Numbers and nothings to Hydra; `none` is a choice of several groups.
VALUES = ("false", "inf", "nan", "none", "null", "true")


def examples(root: Path = PACKAGE) -> dict[str, str]:
    """The files that docs/extending.md prints, by their paths: a block belongs to the path in front of it."""
    text = (root / "docs" / "extending.md").read_text()
    return dict(re.findall(r"`((?:models|tasks|conf)/[\w/]+\.(?:py|yaml))`:?\n\n```\w+\n(.*?)```", text, re.DOTALL))


def camel(name: str) -> str:
    """The class of a module: ``leaky_rnn`` has ``LeakyRnn``."""
    return "".join(part.capitalize() for part in name.split("_"))


def files(kind: str, names: list[str], root: Path = PACKAGE) -> dict[Path, str]:
    """What to write, by path.

    Args:
        kind: model, task or recipe.
        names: its name; of a recipe those of the model and the task, which exist.
        root: the checkout.

    Raises:
        UserError: for a name that cannot be one, or is taken.
    """
    if not (root / "docs" / "extending.md").exists():
        raise UserError(f"{root} is no checkout: install one with `pip install -e .`, and add to that")
    for name in names:
        _check(name)
    if kind == "recipe":
        for group, name in zip(("model", "task"), names, strict=True):
            if not (root / "conf" / group / f"{name}.yaml").exists():
                raise UserError(f"{name}: there is no such {group}; add it with: python -m longwave.new {group} {name}")
        wanted, renamed = [f"conf/recipe/{MODEL}/{TASK}.yaml"], {MODEL: names[0], TASK: names[1], "IRNN": names[0]}
    elif kind == "model":
        wanted = [f"models/{MODEL}.py", f"conf/model/{MODEL}.yaml"]
        renamed = {MODEL: names[0], "IRNN": camel(names[0])}
    else:
        wanted, renamed = [f"tasks/{TASK}.py", f"conf/task/{TASK}.yaml"], {TASK: names[0], "Recall": camel(names[0])}
    printed, found = examples(root), {}
    pattern = re.compile(rf"\b({'|'.join(renamed)})\b")

    def rename(text: str) -> str:
        return pattern.sub(lambda match: renamed[match[1]], text)

    for path in wanted:
        head, text = "", printed[path]
        if path.endswith(".py"):
            if re.search(rf"\b{camel(names[0])}\b", text):
                raise UserError(f"{names[0]}: its class {camel(names[0])} would clash with another in the file")
            # The first line says whose it is.
            _, head, text = text.split('"""', 2)
            head = f'"""{camel(names[0])}: to be written.\n\nIt starts as {head}\n"""'
        text = head + rename(text)
        target = root / rename(path)
        if target.exists():
            raise UserError(f"{'/'.join(names)}: {target.relative_to(root)} exists; choose another name")
        found[target] = text
    return found


def _check(name: str) -> None:
    what = shown(name)
    if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name):
        raise UserError(f"{what}: a name has small letters, digits and single underscores, and begins with a letter")
    if len(name) > LONGEST:
        raise UserError(f"{what}: a name has at most {LONGEST} characters")
    if keyword.iskeyword(name) or name in VALUES:
        raise UserError(f"{what}: means something else to Python or Hydra; choose another name")


def main(arguments: list[str]) -> None:
    """Writes the files, prints their paths, and how to run them."""
    parser = argparse.ArgumentParser(prog="python -m longwave.new", description="Write the files to start from.")
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="{model,task,recipe}")
    for kind, names in (("model", ["NAME"]), ("task", ["NAME"]), ("recipe", ["MODEL", "TASK"])):
        own = kinds.add_parser(kind)
        for name in names:
            own.add_argument(name)
    options = vars(parser.parse_args(arguments))
    kind, *names = options.values()
    try:
        written = files(kind, names)
        for path, text in written.items():
            path.parent.mkdir(exist_ok=True)
            with open(path, "x") as out:
                out.write(text)
            print(path)
    except (OSError, UserError) as error:
        sys.exit(f"error: {error}")
    chosen = {"model": "model={} task=adding", "task": "model=cornn task={}", "recipe": "model={} task={}"}[kind]
    print(f"runs: python train.py {chosen.format(*names)} {'' if kind == 'recipe' else 'training.steps=1000'}".strip())


if __name__ == "__main__":
    main(sys.argv[1:])
