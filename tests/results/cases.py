"""Records as a run leaves them, made up."""

import json
import math
import random
from pathlib import Path

from longwave.results import tables
from longwave.training import record

BOUNDS = ("0.01", "0.001")


def make_record(model="cornn", task="psmnist", seed=0, value=0.97, recipe="cornn/psmnist", steps=57000, **more) -> dict:
    """A finished record whose metric on the test set is ``value``; ``more`` replaces parts of it."""
    adding = task == "adding"
    metric, split = ("mse", "test") if adding else ("accuracy", "validation")
    per_epoch = None if adding else 475
    key = f"{split}/{metric}"
    whole = 60000 if adding else 57000
    settings = {"name": task, "T": more.pop("T", 100)} if adding else {"name": task, "permutation": "cornn"}
    ticks = [round(steps * i / 20) for i in range(1, 21)]
    levels = [0.167 * math.exp(-i / 4) for i in range(20)] if adding else [value * (1 - 0.5**i) for i in range(1, 21)]
    made = {
        "status": "finished",
        "name": f"{model}-{task}-seed{seed}-0123456789",
        "identity": "0123456789",
        "command": f"python train.py model={model} task={task} seed={seed}",
        "model": model,
        "task": task,
        "recipe": recipe,
        "changed": {},
        "seed": seed,
        "config": {
            "model": {"name": model, "hidden": 256},
            "task": settings,
            "training": {"steps": steps, "checkpoint_seconds": 60.0, "overfit": False, "limit_evaluation": None},
            "seed": seed,
            "published": None,
        },
        "metrics": {split: {metric: value}, "test": {metric: value}},
        "published": {"key": f"{model}/{'adding' if adding else task + '_256'}"},
        "budget": {"steps_done": steps, "steps": steps, "steps_in_recipe": whole},
        "packages": {"python": "3.11.7", "torch": "2.14.1"},
        "git": {"commit": "c" * 40, "dirty": False},
        "parameters": 134154,
        "backend": "cpu",
        "device": "cpu (some, 2 threads)",
        "wall_seconds": 3600.0 + seed,
        "steps_per_second": 15.8,
        "peak_memory_bytes": 800_000_000,
        "objective": {"key": key, "value": value},
        "selected_step": steps,
        "stopped": "budget",
        "first_passed": {key: dict.fromkeys(BOUNDS)} if adding else {},
        "baseline": {"mse": 1 / 6} if adding else {},
        "steps_per_epoch": per_epoch,
        "curves": {
            f"train/{'mse' if adding else 'cross_entropy'}": {"step": ticks, "value": levels},
            "train/grad_norm": {"step": ticks, "value": [1 / i for i in range(1, 21)]},
            key: {"step": ticks, "value": levels},
        },
    }
    return made | more


def make_run(folder: Path, **more) -> Path:
    """The folder of a run, in ``folder``, as it is before its record is collected."""
    made = make_record(**more)
    path = folder / made["name"]
    path.mkdir(parents=True)
    curves = made.pop("curves")
    epoch = made.pop("steps_per_epoch")
    lines = [
        {"step": step, key: value} | ({"epoch": step / epoch} if epoch else {})
        for key, curve in curves.items()
        for step, value in zip(curve["step"], curve["value"], strict=True)
    ]
    (path / "history.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    (path / "record.json").write_text(json.dumps(made))
    return path


def parsed(made: dict | record.Record) -> record.Record:
    """A record as readers have it."""
    return made if isinstance(made, record.Record) else record.parse(json.dumps(made))


def rows_of(made: list) -> list[tables.Row]:
    return tables.rows([parsed(one) for one in made])


# When learning sets in on the adding problem at T = 500, as a share of the budget; None is never.
ONSETS = {"cornn": 0.3, "unicornn": 0.12, "lem": 0.2, "indrnn": 0.25, "exprnn": 0.5, "linoss": 0.08, "gru": 0.35,
          "lstm": 0.75, "nrde": None, "rnn": None, "antisymmetric_rnn": None}  # fmt: skip


def make_records(models=tuple(ONSETS), lengths=(500, 2000), seeds=3) -> list[dict]:
    """What sweeps of the adding problem, HAR-2 and psMNIST would leave, with gradient norms at T = 500."""
    made = []
    for index, model in enumerate(models):
        for seed in range(seeds):
            chance = random.Random(f"{model} {seed}")
            cost = {
                "parameters": 1000 * (10 + 7 * index),
                "wall_seconds": 300.0 * (1 + index) * chance.uniform(0.9, 1.1),
                "peak_memory_bytes": 400_000_000 + 90_000_000 * index,
            }
            for T in lengths:
                curve, onset = {"step": list(range(100, 5001, 100)), "value": []}, ONSETS.get(model)
                onset = onset and 5000 * onset * chance.uniform(0.8, 1.3) * (T / 500) ** 0.3
                for step in curve["step"]:
                    fall = math.exp(-max(0, step - onset) / 350) if onset else 1
                    curve["value"].append((max(0.167 * fall, 4e-4)) * chance.uniform(0.9, 1.1))
                end = next((i for i, value in enumerate(curve["value"]) if value < 1e-3), 47) + 3
                curve = {key: values[:end] for key, values in curve.items()}
                record = make_record(model, "adding", seed, curve["value"][-1], f"{model}/adding", 5000, T=T,
                                     changed={"task.T": T, "training.steps": 5000}, **cost)  # fmt: skip
                record["budget"]["steps_done"] = curve["step"][-1]
                record["stopped"] = "budget" if end == 50 else "target"
                record["curves"]["test/mse"] = curve
                for lag in (0, 1, 2, 4, 8, 16, 32, 64, 128, 256, T - 1):
                    rate = 0.9 + 0.0095 * (index % 11)
                    norms = [max(rate**lag, 1e-40), max((rate + 0.004) ** lag, 1e-40)]
                    record["curves"][f"gradients/lag_{lag}"] = {"step": [0, 5000], "value": norms}
                made.append(record)
            for task, top in (("har2", 0.93), ("psmnist", 0.96)):
                value = top + 0.004 * (index % 8) + chance.uniform(-0.004, 0.004)
                epochs = range(1, 121)
                record = make_record(model, task, seed, value, f"{model}/{task}", **cost)
                record["curves"]["validation/accuracy"] = {
                    "step": [475 * epoch for epoch in epochs],
                    "value": [value * (1 - 0.8 * math.exp(-epoch / 9)) for epoch in epochs],
                }
                made.append(record)
    return [record | {"name": f"{record['name']}-{index}"} for index, record in enumerate(made)]
