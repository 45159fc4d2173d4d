"""Output of a sweep: the plan, and the table at the end."""

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table as Lines

from longwave.results import records, tables
from longwave.schema import counted
from longwave.sweeps.plan import Estimate, Planned
from longwave.training.progress import console
from longwave.training.record import FINISHED


def show_plan(runs: list[Planned], estimate: Estimate) -> None:
    """The runs, their states, and the time that each still takes at most."""
    lines = Lines("run", "row", "state", "time left", box=None, pad_edge=False)
    total, unknown = 0.0, 0
    for run in runs:
        state, left = run.state(), ""
        if state != FINISHED:
            seconds = estimate.seconds(run)
            unknown += seconds is None
            total += seconds or 0.0
            left = "?" if seconds is None else tables.duration(max(1.0, seconds))
        lines.add_row(run.name, run.title, state, left)
    show(lines)
    done = sum(run.state() == FINISHED for run in runs)
    text = f"{done} of {counted(len(runs), 'run')} {'is' if len(runs) == 1 else 'are'} finished"
    if unknown and unknown == len(runs) - done:
        text += "; no earlier run to estimate the rest from"
    elif done < len(runs):
        text += (
            f"; one after another, the rest takes about {tables.duration(max(1.0, total))}, less where runs end early"
        )
        if unknown:
            text += f", plus {counted(unknown, 'run')} with no earlier run to estimate from"
    say(text)


_SENTENCES = ("changed", "verdict", "tuning")
_KEPT = ("ours (n)", "verdict", "rank")


def show_table(runs: list[Planned]) -> None:
    """The table of these runs alone, with verdicts, and the rows against each other."""
    found = []
    for run in runs:
        if run.state() == FINISHED:
            try:
                found.append(records.read_run(run.folder))
            except ValueError as error:
                say(f"{run.name} is skipped: {error}")
    for table in tables.parts(tables.tables(tables.rows(found, open_cells=False))):
        console.print()
        widths = _widths(table, console.width if console.is_terminal else None)
        kept = [i for i, width in enumerate(widths) if width]
        lines = Lines(title=table.title, title_justify="left", box=None, pad_edge=False)
        for i in kept:
            lines.add_column(table.header[i], width=widths[i])
        for cells in table.cells:
            lines.add_row(*(cells[i] for i in kept))
        show(lines)
        if left_out := [name for i, name in enumerate(table.header) if i not in kept]:
            say(f"too narrow for {', '.join(left_out)}; add `| cat` to the command to see all columns")
        for note in table.notes:
            say(note)


def _widths(table: tables.Table, room: int | None) -> list[int]:
    """Of the columns of a table, whose headers and sentences break between words where there is not room enough.

    The recipe, our value, verdict and rank stay; of the others, from the right, those that have no room have width 0.
    """
    whole, least = [], []
    for i, name in enumerate(table.header):
        texts = [cells[i] for cells in table.cells]
        words = [word for text in texts for word in text.split()] if name in _SENTENCES else texts
        whole.append(max(map(len, [name, *texts])))
        least.append(max(map(len, [*name.split(), *words])))
    if room is None:
        return whole
    for i in reversed(range(1, len(least))):
        if _total(least) > room and table.header[i] not in _KEPT:
            least[i] = 0
    for i, width in enumerate(least):
        if width:
            least[i] += max(0, min(whole[i] - width, room - _total(least)))
    return least


def _total(widths: list[int]) -> int:
    return sum(width + 2 for width in widths if width) - 2


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
