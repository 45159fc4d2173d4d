"""The outcome of a finished run as lines of the log."""

from pathlib import Path

from longwave.schema import counted, shown
from longwave.training.progress import log
from longwave.training.record import Record


def report(record: Record, folder: Path) -> float:
    """Logs scores, first passes, published value and departures from the recipe; returns the objective."""
    test = ", ".join(f"{key} {value:.5g}" for key, value in record.metrics["test"].items())
    baseline = ", ".join(f"{key} {value:.4g}" for key, value in record.baseline.items())
    far = "far worse than the " if record.far_below_trivial else ""
    log.info("test: %s%s", test, f" ({far}trivial prediction: {baseline})" if baseline else "")
    if record.curriculum:
        stages = ", ".join(f"{stage.length} ({stage.steps})" for stage in record.curriculum)
        log.info("trained on growing lengths (steps): %s", stages)
    for key, bounds in record.first_passed.items():
        passed = [f"passed {b} at step {step:,}" if step else f"never passed {b}" for b, step in bounds.items()]
        log.info("%s %s", key, ", ".join(passed))
    target = record.published
    if target is not None and target.value is not None:
        log.info("published: %s (%s; %s)", target.value, target.kind, target.source)
    if record.changed:
        changed = ", ".join(f"{key}={shown(value)}" for key, value in record.changed.items())
        log.info("changed from recipe %s: %s", record.recipe, changed)
    budget = record.budget
    if budget.steps_in_recipe is not None and budget.steps < budget.steps_in_recipe:
        log.info("reduced budget: %s of the recipe's %s", f"{budget.steps:,}", counted(budget.steps_in_recipe, "step"))
    training = record.config["training"]
    if training.get("overfit") or training.get("limit_evaluation"):
        log.info("not a result: trained on one batch, or tested on a part of the test set")
    log.info("record: %s", folder / "record.json")
    return record.objective.value
