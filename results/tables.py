"""The tables of our results beside the published ones, and of your runs beside both: ``python -m results.tables``.

A row is a group of runs that differ only in the seed, or a recipe that has not been run. ``results/TABLES.md``, which
``--publish`` writes, has the committed records alone, below a summary. Cells that were out of reach of the machines on
which these were made have a separate table (``results/out_of_reach.yaml``).
"""

import argparse
import csv
import functools
import io
import json
import math
import re
import shlex
import statistics
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from longwave import home
from longwave.results import published, records
from longwave.results.compare import compare
from longwave.results.published import METRICS, Published
from longwave.results.records import Group
from longwave.results.verdict import (
    JUDGED,
    NO_NUMBER,
    NOT_FINISHED,
    NOT_RUN,
    ORDER,
    OTHER_PROTOCOL,
    OUT_OF_REACH,
    Verdict,
    amount,
    by_ratio,
    exp,
    judge,
    log,
)
from longwave.schema import counted, one_line
from longwave.training.config import CONF, choices, experiment, recipe_overrides
from longwave.training.errors import UserError
from longwave.training.files import write_atomic
from longwave.training.record import Record

PATH = home() / "results" / "TABLES.md"
REACH = Path(__file__).parent / "out_of_reach.yaml"
COMMAND = "python -m results.tables"

# Settings of how long a run trains. Any other that is not the recipe's makes it another protocol: a published value is
# judged by the settings that were chosen for it beforehand, not by those that come nearest.
_BUDGET = ("training.epochs", "training.steps", "training.target", "training.patience")
# The metric of a run that failed before it had one.
UNKNOWN = "loss"
_THREADS = re.compile(r"(\d+) threads?\)$")
_SETTING = re.compile(r"\$\{([a-z_]+)\.([a-z_]+)\}")


@dataclass
class Row:
    """One row of a results table.

    Args:
        title: of its table: the task, with its length where it has one.
        values: the metric on the test set of each finished run, by seed.
        key: of the published value.
        steps: done on average; ``steps_in_recipe`` and ``stopped`` (budget, target, patience) as in the records.
        seconds: a run, on average.
        passed: for each bound of the metric, the step at which each run first passed it, or None.
        notes: what a reader should know.
        mine: whether it is marked as the user's own.
    """

    title: str
    model: str
    task: str
    metric: str
    recipe: str | None = None
    changed: dict = field(default_factory=dict)
    values: list[float] = field(default_factory=list)
    key: str | None = None
    published: Published | None = None
    verdict: Verdict = field(default_factory=lambda: Verdict(NOT_RUN))
    steps: float | None = None
    steps_in_recipe: int | None = None
    stopped: str = ""
    seconds: float | None = None
    parameters: int | None = None
    passed: dict[str, list[int | None]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    runs: list[Record] = field(default_factory=list)
    mine: bool = False

    @property
    def name(self) -> str:
        return self.recipe or self.model

    @property
    def label(self) -> str:
        return self.name + ("" if self.recipe else " (no recipe)") + (" (yours)" if self.mine else "")

    @property
    def core_hours(self) -> float:
        """Wall time of all finished runs, times their CPU threads; a GPU counts as one core."""
        threads = [_THREADS.search(run.device or "") for run in self.runs]
        seconds = [
            run.wall_seconds * (int(found[1]) if found else 1) for run, found in zip(self.runs, threads, strict=True)
        ]
        return sum(seconds) / 3600


@dataclass
class Table:
    """A task's rows as text: ``cells[i][j]`` stands below ``header[j]`` and belongs to ``rows[i]``.

    ``compared`` has the same for each group of rows, two or more, that can be compared with each other.
    """

    title: str
    header: list[str]
    rows: list[Row]
    cells: list[list[str]]
    notes: list[str]
    compared: "list[Table]" = field(default_factory=list)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    add, formats = parser.add_argument, ("md", "latex", "csv")
    add("--format", choices=formats, default="md", help="(%(default)s)")
    records.add_arguments(parser)
    add("--publish", action="store_true", help="write TABLES.md from results/runs alone")
    add("--check", action="store_true", help="write nothing; fail if TABLES.md is not up to date")
    add("--unverified", action="store_true", help="show the values quoted from memory, not checked in a source")
    chosen = parser.parse_args(arguments)
    if (chosen.check or chosen.publish) and (chosen.runs or chosen.mine or chosen.format != "md"):
        parser.error("--check and --publish concern TABLES.md alone; omit --runs, --mine and --format")
    if chosen.unverified:
        print(unverified(), end="")
        return
    try:
        if chosen.check or chosen.publish:
            ours, _ = records.load_named(records.FOLDER)
            page = as_markdown(tables(rows(ours)))
            if chosen.publish:
                write_atomic(PATH, page.encode())
                print(f"{PATH}: {counted(len(ours), 'record')}")
            elif not PATH.exists() or PATH.read_text(encoding="utf-8") != page:
                parser.exit(1, f"{PATH.name} is not what the records give: {COMMAND} --publish writes it\n")
            return
        shown = records.shown(chosen)
        found = rows(shown.records, shown.mine, open_cells=not chosen.mine)
        if chosen.format == "csv":
            print(as_csv(found), end="")
        else:
            made = tables(found)
            print(as_latex(made) if chosen.format == "latex" else as_markdown(made, committed=False), end="")
    except UserError as error:
        parser.exit(1, f"error: {error}\n")


def rows(ours: list[Record], mine: Iterable[Record] = (), open_cells: bool = True) -> list[Row]:
    """A row for each group of the records.

    Args:
        mine: the user's own, to be marked beside them.
        open_cells: add one for each recipe with a published number at which none aims.
    """
    found = [_row(group) for group in [*records.groups(ours), *records.groups(mine, mine=True)]]
    tried = {(row.recipe, row.key, row.title) for row in found if row.verdict.name != OTHER_PROTOCOL}
    for recipe, key in recipe_targets().items() if open_cells else ():
        record = _published(key)
        if record is None or record.value is None:
            continue
        title = _title(record.task, _recipe(recipe).get("task") or {})
        if (recipe, key, title) not in tried:
            why = out_of_reach(recipe, record)
            verdict = Verdict(OUT_OF_REACH, reason=why) if why else Verdict(NOT_RUN)
            row = Row(
                title, record.model, record.task, record.metric, recipe, key=key, published=record, verdict=verdict
            )
            found.append(row)
    # What has failed may have nothing that it was selected by: it stands with the other rows of its task.
    usual = {row.title: row.metric for row in found if row.metric != UNKNOWN}
    for row in found:
        if row.metric == UNKNOWN:
            row.metric = usual.get(row.title, UNKNOWN)
    # Sorted twice, as sorting is stable: the user's own stand behind those of the same settings.
    found.sort(key=lambda row: row.mine)
    return sorted(found, key=lambda row: (_natural(row.title), row.metric, row.model, row.name, str(row.changed)))


@functools.cache
def _reach() -> dict:
    return published.parse(REACH.read_text(encoding="utf-8"))


def out_of_reach(recipe: str, aim: Published) -> str:
    """Why a cell is not run for ``results/runs``; empty where it could be."""
    listed, reasons = _reach(), []
    if aim.task in listed["data"]:
        reasons.append(f"data: {listed['data'][aim.task]}")
    if recipe in listed["compute"]:
        reasons.append(f"compute: about {listed['compute'][recipe]} core hours a run")
    return "; ".join(reasons)


def verdict_of(record: Record) -> Verdict:
    """Verdict on one finished run alone."""
    return _row(Group([record])).verdict


def recipe_targets() -> dict[str, str | None]:
    """The key of the published value that each recipe aims at, as long as nothing is changed."""
    names = [name for name in choices("recipe") if name != "none"]
    return {name: _aim(_recipe(name).get("published"), _recipe(name)) for name in names}


def _recipe(name: str) -> dict:
    path = CONF / "recipe" / f"{name}.yaml"
    return published.parse(path.read_text(encoding="utf-8")) if path.exists() else {}


def _aim(key: str | None, config: dict) -> str | None:
    """A recipe's key with the settings that it names, as ${transform.depth}."""
    return key and _SETTING.sub(lambda found: str(config.get(found[1], {}).get(found[2])), key)


def task_of(record: Record) -> str:
    """The task of a run; a data set of the archives by its own name, as the published records have it; a user's own by
    its title and the beginning of its checksum."""
    settings = record.config["task"]
    if settings.get("title"):
        return f"{settings['title']} ({(settings.get('content') or '?')[:8]})"
    return settings.get("dataset") or record.task


def _title(task: str, settings: dict) -> str:
    """The task, with its length where it has one."""
    return task + (f", T = {settings['T']}" if settings.get("T") else "")


def _published(key: str | None) -> Published | None:
    try:
        return None if key is None else published.get(key)
    except ValueError:
        # It had that key when it ran.
        return None


def _row(group: Group) -> Row:
    any_run = group.any
    key = any_run.published.key if any_run.published else None
    target = _published(key)
    own = any_run.objective.metric if any_run.objective else UNKNOWN
    metric = target.metric if target else own
    differs = differences(any_run, key)
    part = target.test if target else "test"
    if not all(metric in run.metrics.get(part, ()) for run in group.runs):
        differs.append(f"no {metric} on {part} measured" if part != "test" else f"no {metric} measured")
        metric, part = own, "test"
    values = [run.metrics[part][metric] for run in group.runs]
    ended = "diverged" if all(run.diverged for run in group.unfinished) else ""
    row = Row(
        title=_title(task_of(any_run), any_run.config["task"]),
        model=any_run.model,
        task=task_of(any_run),
        metric=metric,
        recipe=any_run.recipe,
        changed={name: value for name, value in _changed(any_run).items() if name != "task.T"} | _cell(any_run),
        values=values,
        key=key,
        published=target,
        verdict=judge(values, target, budget(group.runs), differs) if values else Verdict(NOT_FINISHED, reason=ended),
        steps_in_recipe=any_run.budget.steps_in_recipe,
        parameters=any_run.parameters,
        runs=group.runs,
        mine=group.mine,
    )
    if group.runs:
        row.steps = statistics.fmean(run.budget.steps_done for run in group.runs)
        row.seconds = statistics.fmean(run.wall_seconds for run in group.runs)
        row.stopped = ", ".join(sorted({run.stopped for run in group.runs}))
        for bounds in any_run.first_passed.values():
            for bound in bounds:
                row.passed[bound] = [steps[bound] for run in group.runs for steps in run.first_passed.values()]
    odd = [run.status for run in group.unfinished if not run.diverged]
    for run in group.runs:
        flaws = run.forced or records.flaws(run)
        odd += [("collected by force (%s)" if run.forced else "%s") % ", ".join(flaws)] if flaws else []
    odd = [f"{counted(count, 'run')} {what}" for what, count in Counter(odd).items()]
    if lost := [run for run in group.unfinished if run.diverged]:
        seeds = ", ".join(f"seed {run.seed} at step {run.failed_step:,}" for run in lost)
        odd.append(f"{counted(len(lost), 'run')} diverged, not in the mean: {seeds}")
    read = {frozenset((one.file, one.sha256) for one in run.data.files) for run in group.runs if run.data}
    if len(read) > 1:
        names = sorted({file for file, _ in frozenset.union(*read) - frozenset.intersection(*read)})
        odd.append(f"runs not trained on the same data: {', '.join(names)}")
    chosen = (
        [f"its source does not state {target.open}"] if target and target.open and row.verdict.name in JUDGED else []
    )
    row.notes = [*row.verdict.notes, *chosen, *_other_tests(row, part), *_folds(group.runs, metric), *odd]
    return row


def _other_tests(row: Row, shown: str) -> list[str]:
    """What was measured on further test sets than the one that is ``shown``."""
    names = {name for run in row.runs for name in run.metrics if name == "test" or name.startswith("test_")}
    names = sorted(names - {shown})
    found = {name: [run.metrics[name].get(row.metric) for run in row.runs if name in run.metrics] for name in names}
    return [
        f"{row.metric} on {name}: {_mean(values, row.metric)}" for name, values in found.items() if None not in values
    ]


def _folds(runs: list[Record], metric: str) -> list[str]:
    """Metric of every fold, and the folds that are missing."""
    number = runs[0].config["task"].get("folds") if runs else None
    if not number:
        return []
    scale = 100 if metric == "accuracy" else 1
    by_fold = sorted((run.config["task"]["fold"], scale * run.metrics["test"][metric]) for run in runs)
    left = sorted(set(range(number)).difference(fold for fold, _ in by_fold))
    note = "folds " + ", ".join(f"{fold}: {value:.4g}" for fold, value in by_fold)
    return [note + (f"; not run: {', '.join(map(str, left))}" if left else "")]


def _changed(record: Record) -> dict:
    """The settings that are not the recipe's or, without a recipe, that its command has."""
    if record.recipe is not None:
        return record.changed
    settings, found = experiment(record.config), {}
    for word in shlex.split(record.command)[2:]:
        key, _, value = word.lstrip("+~").partition("=")
        section, _, name = key.partition(".")
        kept = settings.get(section)
        if isinstance(kept, dict) and name in kept:
            found[key] = kept[name]
        elif isinstance(kept, dict) and not name and section not in ("model", "task"):
            found[key] = value
    return found


def _cell(record: Record) -> dict:
    """The settings by which a run aims at another cell than its recipe as it is."""
    recipe = _recipe(record.recipe or "")
    found = {}
    for section, key in _SETTING.findall(recipe.get("published") or ""):
        value = record.config.get(section, {}).get(key)
        if value != recipe.get(section, {}).get(key):
            found[f"{section}.{key}"] = value
    return found


def differences(record: Record, key: str | None) -> list[str]:
    """Departures of a run from the protocol of the published value ``key``, that of the recipe that aims at it."""
    recipe = record.recipe
    if recipe is None:
        return ["no recipe"]
    if _aim(_recipe(recipe).get("published"), record.config) != key:
        return [f"recipe {recipe} does not aim at {key}"]
    return [f"{name}={plain(value)}" for name, value in record.changed.items() if name not in _BUDGET]


def budget(runs: list[Record]) -> float | None:
    """The largest share of the recipe's steps that the runs had; None if that is the whole budget.

    A target ends a run for our convenience; no published protocol has one. Patience is a recipe's own, unless changed.
    """
    shares = []
    for run in runs:
        steps, whole = run.budget.steps, run.budget.steps_in_recipe
        early = run.stopped == "target" or (run.stopped == "patience" and "training.patience" in run.changed)
        if whole is not None:
            shares.append((run.budget.steps_done if early else steps) / whole)
    return max(shares) if shares and max(shares) != 1 else None


def tables(found: list[Row]) -> list[Table]:
    """The rows as text, one table per task, without empty columns. Cells out of reach have the last table."""
    beyond = [row for row in found if row.verdict.name == OUT_OF_REACH]
    groups = by_title(row for row in found if row.verdict.name != OUT_OF_REACH)
    return [*map(_table, groups), *([_beyond(beyond)] if beyond else [])]


def _beyond(rows: list[Row]) -> Table:
    columns = {
        "task": [f"{row.title}: {row.metric}" for row in rows],
        "recipe": [row.label for row in rows],
        "published": [_published_value(row.published) for row in rows],
        "reason": [row.verdict.reason for row in rows],
        "command": [f"python train.py {' '.join(recipe_overrides(row.recipe))}" for row in rows],
    }
    return _as_table("Out of reach", columns, rows, [])


def parts(found: Iterable[Table]) -> list[Table]:
    """The tables, each followed by the comparisons of its rows."""
    return [part for table in found for part in (table, *table.compared)]


def by_title(found: Iterable[Row]) -> list[list[Row]]:
    """The rows of each table."""
    groups: dict[tuple, list[Row]] = {}
    for row in found:
        groups.setdefault((row.title, row.metric), []).append(row)
    return list(groups.values())


def _table(group: list[Row]) -> Table:
    title, metric = group[0].title, group[0].metric
    bounds = list(dict.fromkeys(bound for row in group for bound in row.passed))
    above = "above" if METRICS.get(metric) else "below"
    columns = {
        "recipe": [row.label for row in group],
        "changed": [changes(row) for row in group],
        "trained on lengths": [lengths(row) for row in group],
        "ours (n)": [ours(row) for row in group],
        "published": ["" if _elsewhere(row) else _published_value(row.published) for row in group],
        "verdict": ["" if row.verdict.name == NO_NUMBER else str(row.verdict) for row in group],
        **{f"steps until {above} {b}": [_steps_until(row.passed.get(b)) for row in group] for b in bounds},
        "steps": [_budget(row) for row in group],
        "time a run": [duration(row.seconds) for row in group],
        "parameters": [f"{row.parameters:,}" if row.parameters else "" for row in group],
    }
    measured = f"{metric}, %" if metric == "accuracy" else metric
    several = Counter(row.label for row in group)
    about: dict[str, dict[str, None]] = {}
    for row in group:
        name = row.label + (f" with {changes(row)}" if several[row.label] > 1 and row.changed else "")
        for note in row.notes:
            about.setdefault(note, {})[name] = None
    notes = [f"{', '.join(labels)}: {note}." for note, labels in about.items()]
    table = _as_table(f"{title}: {measured}", columns, group, notes)
    table.compared = _comparisons(group)
    return table


def _elsewhere(row: Row) -> bool:
    """Whether the value that the recipe aims at is of another length of the task, and so of another table."""
    return (
        row.published is not None
        and _title(row.published.task, _recipe(row.recipe or "").get("task") or {}) != row.title
    )


def _as_table(title: str, columns: dict[str, list[str]], group: list[Row], notes: Iterable[str]) -> Table:
    """The columns that are not empty."""
    kept = {name: [_printable(cell) for cell in cells] for name, cells in columns.items() if any(cells)}
    cells = [list(row) for row in zip(*kept.values(), strict=True)]
    return Table(_printable(title), list(kept), group, cells, [_printable(note) for note in notes])


def _printable(text: str) -> str:
    """A text of a record on one line, without control characters."""
    return one_line(text, most=len(text) * 10)


def _comparisons(group: list[Row]) -> list[Table]:
    """The rows of a table against each other: those of the same task, down to its split, and the same selection."""
    alike: list[tuple[dict, list[Row]]] = []
    for row in group:
        if row.values:
            own = _protocol(row)
            rows = next((rows for settings, rows in alike if settings == own), [])
            if not rows:
                alike.append((own, rows))
            rows.append(row)
    several = [(settings, rows) for settings, rows in alike if sum(len(row.values) > 1 for row in rows) > 1]
    names = dict.fromkeys(name for settings, _ in several for name in settings)
    differ = [name for name in names if any(settings.get(name) != several[0][0].get(name) for settings, _ in several)]
    made = []
    for settings, rows in several:
        table = _compared(rows, group)
        if differ:
            table.title += ": " + ", ".join(f"{name}={plain(settings.get(name))}" for name in differ)
        made.append(table)
    return made


def _protocol(row: Row) -> dict:
    """The settings of the task, and which weights are tested, of the runs of a row."""
    config = row.runs[0].config
    task = {f"task.{key}": value for key, value in experiment(config)["task"].items()}
    return task | {"training.selection": (config.get("training") or {}).get("selection")}


def _compared(alike: list[Row], group: list[Row]) -> Table:
    """Rows of a table against each other; errors on generated sequences by the ratio of their geometric means."""
    several = [row for row in alike if len(row.values) > 1]
    metric, ratio = several[0].metric, by_ratio(several[0].metric, several[0].task)
    values = [[log(one) for one in row.values] if ratio else row.values for row in several]
    ended = [all(run.stopped == "target" for run in row.runs) for row in several]
    found = compare(values, METRICS.get(metric, False), ended)
    rows = [several[standing.index] for standing in found]
    ranks, behind = [], []

    def said(difference: float) -> str:
        return f"{exp(difference):.3g}" if ratio else amount(difference, metric)

    for standing in found:
        ranks.append(str(standing.first) + (f" to {standing.last}" if standing.last > standing.first else ""))
        if standing.interval:
            low, high = map(said, standing.interval)
            behind.append(f"{said(standing.behind)} [{low}, {high}]")
        else:
            unknown = "ended by its target" if ended[standing.index] else "no deviation over the seeds"
            behind.append("" if standing is found[0] else unknown)
    notes = []
    if all(standing.last - standing.first == len(found) - 1 for standing in found):
        notes.append("No two of these differ significantly.")
    if single := sum(len(row.values) == 1 for row in alike):
        notes.append(f"{counted(single, 'row')} with one seed {'is' if single == 1 else 'are'} not compared.")
    columns = {
        "recipe": [row.label for row in rows],
        "rank": ranks,
        "times the first [95 %]" if ratio else "behind the first [95 %]": behind,
        "tuning": [_tuning(row, group) for row in rows],
    }
    return _as_table("Compared", columns, rows, notes)


def _tuning(row: Row, group: list[Row]) -> str:
    """Whose settings a row has, and how many settings of its model were run."""
    settings = "the recipe's" if row.recipe else "the defaults"
    settings += f" except {changes(row)}" if row.changed else ""
    tried = sum(other.model == row.model and other.verdict.name != NOT_RUN for other in group)
    return settings + (f"; one of {tried} settings that were run" if tried > 1 else "")


def changes(row: Row) -> str:
    """The settings that are not the recipe's, as on the command line."""
    return ", ".join(f"{key}={plain(value)}" for key, value in row.changed.items())


def lengths(row: Row) -> str:
    """The lengths of the curriculum; empty where there was none."""
    reached = {tuple(stage.length for stage in run.curriculum) for run in row.runs}
    return ", ".join(f"{length:,}" for length in max(reached, key=len, default=()))


def plain(value) -> str:
    """A setting as on the command line."""
    if isinstance(value, str):
        return value
    return f"{value:g}" if isinstance(value, float) else json.dumps(value).replace(" ", "")


def ours(row: Row) -> str:
    """Mean and sample standard deviation over the seeds, and their number."""
    return _mean(row.values, row.metric) if row.values else ""


def _mean(values: list[float], metric: str) -> str:
    scale, precise, rough = (100, ".2f", ".2f") if metric == "accuracy" else (1, ".4g", ".2g")
    spread = f" ± {scale * statistics.stdev(values):{rough}}" if len(values) > 1 else ""
    return f"{scale * statistics.fmean(values):{precise}}{spread} ({len(values)})"


def _published_value(record: Published | None) -> str:
    if record is None or record.value is None:
        return ""
    scale = 100 if record.metric == "accuracy" else 1
    spread = "" if record.deviation is None else f" ± {scale * record.deviation:.4g}"
    kind = record.kind + (f" of {record.n}" if record.kind == "mean" and record.n else "")
    return f"{scale * record.value:.5g}{spread} ({kind})"


def _steps_until(passed: list[int | None] | None) -> str:
    if not passed:
        return ""
    count = sum(step is not None for step in passed)
    if count == 0:
        return "never"
    median = statistics.median_high([math.inf if step is None else step for step in passed])
    reached = "" if count == len(passed) else f"{count} of {len(passed)} did"
    return reached if median == math.inf else f"{median:,}" + (f" ({reached})" if reached else "")


def _budget(row: Row) -> str:
    if row.steps is None:
        return ""
    whole = f" of {row.steps_in_recipe:,}" if row.steps_in_recipe and row.steps != row.steps_in_recipe else ""
    return f"{row.steps:,.0f}{whole}" + (f" ({row.stopped})" if row.stopped != "budget" else "")


def duration(seconds: float | None) -> str:
    if seconds is None:
        return ""
    if seconds < 100:
        return f"{seconds:.3g} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"


def _natural(text: str) -> list:
    """Sorts T = 500 before T = 2000."""
    head, _, number = text.partition(", T = ")
    return [head, int(number or 0)]


def summary(found: list[Row]) -> list[tuple[str, int, float]]:
    """For each verdict, its number of rows and their core hours; first for those judged, last for all."""
    groups = {name: [row for row in found if row.verdict.name == name] for name in ORDER}
    groups = {"judged": [row for row in found if row.verdict.name in JUDGED], **groups, "in all": found}
    return [(name, len(rows), sum(row.core_hours for row in rows)) for name, rows in groups.items() if rows]


def in_a_line(found: list[Row]) -> str:
    """The summary as a sentence."""
    counts = {name: number for name, number, _ in summary(found)}
    hours = sum(row.core_hours for row in found)
    listed = ", ".join(f"{number} {name}" for name, number in counts.items() if name not in ("judged", "in all"))
    cells = sum(row.verdict.name not in (NO_NUMBER, OTHER_PROTOCOL) for row in found)
    return f"{counts.get('judged', 0)} of {counted(cells, 'cell')} judged, {hours:,.1f} core hours: {listed}"


def as_markdown(found: list[Table], committed: bool = True) -> str:
    """A page; one of the ``committed`` records alone says so."""
    from tabulate import tabulate

    everything = [row for table in found for row in table.rows]
    lines = [
        "# Results",
        "",
        *([f"`{COMMAND} --publish` writes this page from the records in `results/runs`.", ""] if committed else []),
        "Ours is the mean on the test set over n seeds, ± their sample standard deviation. A difference is positive",
        "where ours is better; its 90 % interval follows. Below a table, rows of the same protocol are compared with",
        "each other: an interval is that of one difference over the seeds, the ranks allow for the number of pairs.",
        "[docs/results.md](../docs/results.md#verdicts) says what each verdict means.",
    ]
    if everything:
        counts = [[name, f"{number}", f"{hours:,.1f}" if hours else ""] for name, number, hours in summary(everything)]
        lines += ["", "## Summary", ""]
        lines += [tabulate(counts, ["verdict", "rows", "core hours"], tablefmt="pipe", disable_numparse=True)]
        lines += [
            "",
            "A row is a cell of a published table, except those with *no published number*, and those of an *other",
            "protocol*, whose cell has its own row. Judged are rows of three seeds or more, at the full budget and",
            "under the published protocol. Settings that its source does not state are the recipe's: see the notes.",
        ]
        if any(name == OUT_OF_REACH for name, _, _ in counts):
            most = _reach()["most_core_hours"]
            lines += ["*Out of reach* are cells whose data were not available where the records were made, or of"]
            lines += [f"which a run takes more than {most} core hours; the last table says which."]
    for table in found:
        for part in parts([table]):
            cells = [[cell.replace("|", "\\|") for cell in cells] for cells in part.cells]
            title = f"## {part.title}" if part is table else f"{part.title}:"
            lines += ["", title, "", tabulate(cells, part.header, tablefmt="pipe", disable_numparse=True)]
            lines += ["", *(f"- {note}" for note in part.notes)] if part.notes else []
    return "\n".join(lines) + "\n"


def as_latex(found: list[Table]) -> str:
    r"""Floats with ``tabular`` and the rules of ``\usepackage{booktabs}``."""
    from tabulate import LATEX_ESCAPE_RULES, tabulate

    lines = []
    for table in found:
        for part in parts([table]):
            title = table.title if part is table else f"{table.title}, compared"
            caption = "".join(LATEX_ESCAPE_RULES.get(letter, letter) for letter in title)
            body = tabulate(part.cells, part.header, tablefmt="latex_booktabs", disable_numparse=True)
            lines += [r"\begin{table}", rf"\caption{{{caption}}}", body, r"\end{table}", ""]
    return "\n".join(lines)


CSV = (
    "task", "title", "model", "recipe", "changed", "metric", "n", "mean", "deviation", "published_key", "published",
    "published_deviation", "published_deviation_kind", "published_kind", "published_n", "verdict", "difference",
    "standard_error", "low", "high", "margin", "reason", "steps", "steps_in_recipe", "stopped", "seconds", "parameters",
    "yours",
)  # fmt: skip


def as_csv(found: list[Row]) -> str:
    """One table of all rows, with plain numbers; accuracies are fractions, ratios their logarithms."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(CSV)
    for row in found:
        record, verdict, n = row.published, row.verdict, len(row.values)
        writer.writerow(
            [
                row.task, row.title, row.model, row.recipe, json.dumps(row.changed), row.metric, n,
                statistics.fmean(row.values) if n else None, statistics.stdev(row.values) if n > 1 else None, row.key,
                *(getattr(record, name, None) for name in ("value", "deviation", "deviation_kind", "kind", "n")),
                verdict.name, verdict.difference, verdict.standard_error, *(verdict.interval or (None, None)),
                verdict.margin, verdict.reason, row.steps, row.steps_in_recipe, row.stopped, row.seconds,
                row.parameters, row.mine,
            ]
        )  # fmt: skip
    return out.getvalue()


def unverified() -> str:
    """The values quoted from memory, as a table."""
    lines = ["Quoted from memory, not read in any source; check before use.", ""]
    for cell, record in published.load(published.UNVERIFIED).items():
        size = f" {record.size}" if record.size else ""
        lines.append(f"{cell}: {record.model}{size} on {record.task}: {_published_value(record)}; {record.source}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
