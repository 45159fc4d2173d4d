"""Logs the published values to W&B, one run each, as lines beside ours: ``python -m results.publish_baselines``.

A run's id is made of its key and value, so nothing is logged twice. Only values read in a source are logged.
"""

import argparse
import hashlib
from dataclasses import replace
from pathlib import Path

from longwave import home
from longwave.results import published, records, tables
from longwave.results.published import Published
from longwave.training.config import choices
from longwave.training.errors import UserError
from longwave.training.tracking import MODES, Tracking, finish, open_run, pick_mode

COMMAND = "python -m results.publish_baselines"

# Where a line ends for a task that was never run here.
_STEPS = 100_000


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    add = parser.add_argument
    add("keys", nargs="*", help="prefixes of keys, such as cornn/ or lem/psmnist; default all")
    add("--mode", choices=MODES, default="auto", help="as tracking.mode (%(default)s)")
    add("--project", default=Tracking.project, help="(%(default)s)")
    add("--entity", help="W&B's user or team")
    add("--output", default="outputs", help="folder of W&B's files, relative to the checkout (%(default)s)")
    add("--runs", type=Path, default=records.FOLDER, help="records; lines are as long as the longest run")
    chosen = parser.parse_args(arguments)
    tracking = Tracking(project=chosen.project, entity=chosen.entity, mode=chosen.mode)
    try:
        for line in publish(tracking, home() / Path(chosen.output).expanduser(), tuple(chosen.keys), chosen.runs):
            print(line)
    except UserError as error:
        parser.exit(1, f"error: {error}\n")


def publish(tracking: Tracking, output: Path, keys: tuple[str, ...] = (), runs: Path = records.FOLDER) -> list[str]:
    """Logs what is not logged yet of the values whose keys begin with one of ``keys``; of all where there is none.

    Returns what was done, and how to upload it where that was offline. Raises UserError where there is no such key, or
    W&B cannot start or is switched off.
    """
    chosen = {key: record for key, record in baselines().items() if key.startswith(keys or "")}
    if not chosen:
        raise UserError(f"{', '.join(keys)}: no published value's key begins with that")
    # Of the longest run of each task.
    lengths: dict[str, int] = {}
    for ours in records.load_named(runs)[0]:
        task = tables.task_of(ours)
        lengths[task] = max(lengths.get(task, 0), ours.budget.steps or 0)
    mode, _ = pick_mode(tracking)
    if mode == "disabled":
        raise UserError("WANDB_MODE=disabled: nothing would be logged; must be online or offline")
    logged, kept = [], 0
    for key, record in chosen.items():
        if mode == "offline" and any((output / "wandb").glob(f"offline-run-*-{identity(key, record)}")):
            kept += 1
            continue
        run, mode = open_run(tracking, output, lambda _, key=key, record=record: _about(key, record))
        if mode == "disabled":
            raise UserError(f"W&B cannot start in {output}: nothing is logged")
        if mode == "offline":
            # Who cannot be reached now is not waited for again by the next one.
            tracking = replace(tracking, mode="offline")
        if run.resumed:
            kept += 1
        else:
            for step in (0, lengths.get(record.task) or _STEPS):
                # A value of the test set; the line is drawn on the split too that ours are watched on.
                splits = {f"{split}/{record.metric}": record.value for split in ("validation", "test")}
                run.log(splits, step=step)
            final = {f"final/{record.test}/{record.metric}": record.value}
            run.summary.update({"published/key": key, "published/value": record.value, **final})
            logged.append(str(run.sync_dir) if mode == "offline" else run.url)
        finish(run)
    lines = [f"{len(logged)} logged, {kept} {'was' if kept == 1 else 'were'} there already"]
    if logged and mode == "offline":
        folder = output / "wandb"
        lines.append(f"W&B is offline: look with `wandb leet {folder}`, upload with `wandb sync {folder}/*-baseline-*`")
    return lines


def baselines() -> dict[str, Published]:
    """By key, the published values of the implemented tasks. Values quoted from memory have no key."""
    aimed = {published.get(key).task for key in tables.recipe_targets().values() if key is not None}
    tasks = aimed.union(choices("task"))
    found = published.by_key().items()
    return {key: record for key, record in found if record.task in tasks and record.value is not None}


def identity(key: str, record: Published) -> str:
    """The id of the W&B run: another one, where the value was corrected."""
    digest = hashlib.sha256(f"{key} {record.metric} {record.value}".encode()).hexdigest()
    return f"baseline-{key.replace('/', '-')}-{digest[:8]}"


def _about(key: str, record: Published) -> dict:
    kept = published.lookup(key)
    return {
        "id": identity(key, record),
        "name": f"{key} (published)",
        "group": f"{record.task}-published",
        "job_type": "baseline",
        "tags": ["baseline", record.model, record.task],
        "config": {"model": {"name": record.model}, "task": {"name": record.task}, "published": key, "baseline": kept},
    }


if __name__ == "__main__":
    main()
