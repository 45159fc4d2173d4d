"""Records as a run leaves them, made up."""

import math

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
    record = {
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
    return record | more
