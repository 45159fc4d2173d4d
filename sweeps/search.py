"""A search for hyperparameters (``conf/search/*.yaml``) with Optuna, kept in a file.

A trial is a run of ``train.py``, found by its identity like any other. One process at a time runs a search; its trials
run wherever the launcher puts them, and read and write the same file.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore

from longwave.results.repeat import differences
from longwave.schema import Annotated, Ge, Le, OneOf, Section
from longwave.training.config import Config, numbers
from longwave.training.errors import Pruned, UserError

# Retries of a trial whose process died.
RETRIES = 2


@dataclass
class Range:
    """The values of one key: from ``low`` to ``high``, evenly or evenly in their logarithms, or one of ``choices``."""

    low: float | None = None
    high: float | None = None
    log: bool = False
    whole: bool = False
    choices: list[Any] | None = None

    def __post_init__(self):
        ends = self.low is not None and self.high is not None
        if ends == (self.choices is not None):
            raise ValueError("choices=null: needs low and high, or choices")
        if ends and not self.low < self.high:
            raise ValueError(f"low={self.low}: must be below high={self.high}")
        if ends and self.log and not self.low > 0:
            raise ValueError(f"low={self.low}: must be greater than 0 where log is true")


@dataclass
class Search(Section):
    """A search for hyperparameters.

    Args:
        overrides: of all trials, as on the command line of ``train.py``.
        space: from keys of ``train.py`` to their ranges.
        direction: minimize or maximize the metric on the monitored split.
        trials: number of trials; those that diverge count, those that were killed do not.
        startup: number of random trials before the sampler models the space; none of them is pruned.
        warmup: steps before which no trial is pruned. After them, a trial is pruned if its best score so far is worse
            than the median of the others at that step.
    """

    overrides: list[str] = field(default_factory=list)
    space: dict[str, Range] = field(default_factory=dict)
    direction: Annotated[str, OneOf("minimize", "maximize")] = "minimize"
    trials: Annotated[int, Ge(1), Le(1_000_000)] = 50
    startup: Annotated[int, Ge(1)] = 10
    warmup: Annotated[int, Ge(0)] = 0

    def __post_init__(self):
        super().__post_init__()
        if not self.space:
            raise ValueError("space={}: must have a key of train.py with its range")


def _optuna():
    try:
        import optuna
    except ImportError as error:
        raise UserError("search needs Optuna: pip install -e .[search]") from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


def open_study(path: Path, name: str, search: Search):
    """The study ``name`` in the file ``path``, which is made where it is not there yet.

    Raises:
        UserError: where the file cannot be read or written, or was made for another direction.
    """
    optuna = _optuna()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        study = optuna.create_study(
            storage=_storage(path), study_name=name, direction=search.direction, load_if_exists=True
        )
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path}: cannot be used ({error}); move it away to start over") from error
    if study.direction.name.lower() != search.direction:
        raise UserError(f"direction={search.direction}: {path} was made for {study.direction.name.lower()}")
    # A seed of its own for each process: the same one again would repeat the first trials after an interruption.
    study.sampler = optuna.samplers.TPESampler(
        seed=len(study.trials), n_startup_trials=search.startup, multivariate=False, constant_liar=True
    )
    study.pruner = _pruner(search)
    return study


def _storage(path: Path):
    storages = _optuna().storages
    return storages.JournalStorage(storages.journal.JournalFileBackend(str(path)))


def _pruner(search: Search):
    return _optuna().pruners.MedianPruner(n_startup_trials=search.startup, n_warmup_steps=search.warmup)


def hold_to(study, path: Path, search: Search, config: Config) -> None:
    """Keeps the settings that all trials share, so that only trials with the same settings are compared.

    Raises:
        UserError: where earlier trials were trained with other settings.
    """
    shared = numbers(config.as_dict())
    for key in search.space:
        section, _, name = key.partition(".")
        shared[section] = shared[section] | {name: "searched"}
    known, trials = study.user_attrs.get("config"), study.get_trials(deepcopy=False)
    if known is None or not trials:
        study.set_user_attr("config", shared)
    elif changed := differences(known, shared):
        raise UserError(f"{path} is of another search: {', '.join(changed)}; choose another output, or move it away")
    check = _optuna().distributions.check_distribution_compatibility
    for key, wanted in distributions(search).items():
        for trial in trials:
            try:
                check(trial.distributions.get(key, wanted), wanted)
            except ValueError as error:
                raise UserError(f"{path} has another space for {key}: {error} Move it away to start over") from error


def distributions(search: Search) -> dict:
    """Optuna's form of the space."""
    found = _optuna().distributions
    return {key: _distribution(found, values) for key, values in search.space.items()}


def _distribution(found, values: Range):
    if values.choices is not None:
        return found.CategoricalDistribution(values.choices)
    if values.whole:
        return found.IntDistribution(int(values.low), int(values.high), log=values.log)
    return found.FloatDistribution(values.low, values.high, log=values.log)


def overrides_of(params: dict[str, Any]) -> list[str]:
    """Parameters as one types them; four digits are enough."""
    return [f"{key}={value:.4g}" if isinstance(value, float) else f"{key}={value}" for key, value in params.items()]


def state(name: str):
    """Optuna's state of a trial: PRUNED or FAIL."""
    return _optuna().trial.TrialState[name]


def retry_killed(study) -> int:
    """Marks the trials whose process died as failed, and queues each again; returns their number."""
    optuna = _optuna()
    trials = study.get_trials(deepcopy=False)
    queued = {trial.user_attrs.get("retry_of") for trial in trials}
    running = [trial for trial in trials if trial.state == optuna.trial.TrialState.RUNNING]
    for trial in running:
        tries = trial.user_attrs.get("tries", 0)
        if trial.number not in queued and trial.params and tries < RETRIES:
            study.enqueue_trial(trial.params, user_attrs={"retry_of": trial.number, "tries": tries + 1})
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
    return len(running)


def done(study) -> list:
    """The trials that count: finished, pruned, or failed and not retried."""
    trials = study.get_trials(deepcopy=False)
    again = {trial.user_attrs.get("retry_of") for trial in trials}
    return [trial for trial in trials if trial.state.is_finished() and trial.number not in again]


def best(study, count: int) -> list:
    """The best complete trials."""
    complete = [trial for trial in study.get_trials(deepcopy=False) if trial.state.name == "COMPLETE"]
    sign = 1 if study.direction.name == "MINIMIZE" else -1
    return sorted(complete, key=lambda trial: sign * trial.value)[:count]


def reporter(path: Path, name: str, search: Search) -> Callable:
    """The ``on_score`` of a run: reports to the study, and raises Pruned where the trial should stop."""
    optuna = _optuna()
    study = optuna.load_study(storage=_storage(path), study_name=name, pruner=_pruner(search))
    found = {}

    def on_score(run, task, step: int, value: float) -> None:
        if task.higher_is_better != (search.direction == "maximize"):
            raise UserError(f"direction={search.direction}: is the wrong one for {task.metric}")
        if not found:
            running = [t for t in study.get_trials(deepcopy=False) if t.state == optuna.trial.TrialState.RUNNING]
            mine = next((t for t in running if t.user_attrs.get("run") == run.name), None)
            if mine is None:
                raise UserError(f"search={name}: there is no running trial for {run.name}")
            found["trial"] = optuna.trial.Trial(study, mine._trial_id)
        found["trial"].report(value, step)
        if found["trial"].should_prune():
            raise Pruned(f"pruned at step {step}: worse than the median of the other trials")

    return on_score


ConfigStore.instance().store(group="schema", name="search", node=Search)
