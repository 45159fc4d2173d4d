"""What a sweep prints: the plan, and the table in the end."""

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table as Lines

from results import collect, tables
from sweeps.plan import FINISHED, Estimate, Planned
from training.progress import console


def show_plan(runs: list[Planned], estimate: Estimate) -> None:
    """The runs, what has become of them, and what is left of each at most."""
    lines = Lines("run", "row", "state", "time left, at most", box=None, pad_edge=False)
    total, unknown = 0.0, 0
    for run in runs:
        state, left = run.state(), ""
        if state != FINISHED:
            seconds = estimate.seconds(run)
            unknown += seconds is None
            total += seconds or 0.0
            left = tables.duration(seconds) or "?"
        lines.add_row(run.name, run.title, state, left)
    show(lines)
    done = sum(run.state() == FINISHED for run in runs)
    rest = f"{done} of {len(runs)} runs are finished"
    if done < len(runs):
        rest += f"; one after another, the rest takes at most {tables.duration(total)}"
        rest += f" and what {unknown} runs take, of which no earlier run tells" if unknown else ""
    say(rest)


def show_table(runs: list[Planned]) -> None:
    """The table of these runs alone, with verdicts."""
    found = []
    for run in runs:
        if run.state() == FINISHED:
            try:
                found.append(collect.condense(run.folder))
            except ValueError as error:
                say(f"{run.name} is passed over: {error}")
    for table in tables.tables([row for row in tables.rows(found) if row.runs]):
        console.print()
        lines = Lines(*table.header, title=table.title, title_justify="left", box=None, pad_edge=False)
        for cells in table.cells:
            lines.add_row(*cells)
        show(lines)
        for name, note in table.notes:
            say(f"{name}: {note}")


def show(lines: Lines) -> None:
    """Folds cells to the width of a terminal; elsewhere every row is one line."""
    if console.is_terminal:
        for column in lines.columns:
            column.overflow = "fold"
        console.print(lines)
    else:
        whole = Measurement.get(console, console.options.update(width=1000), lines).maximum
        Console(width=whole).print(lines)


def say(text: str) -> None:
    console.print(text, soft_wrap=True, markup=False, highlight=False)
