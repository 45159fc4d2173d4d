"""All results as one page, ``results/report.html``, that opens from disk with no network: ``python -m results.report``.

It has the committed records and, marked, your runs: the tables; the metric against steps where a task has no epochs
(the adding problem: a panel for each length, with the error of the trivial prediction); the metric at epoch k beside
the log that was published with a paper's code; the metric against cost; the gradient norms of
``diagnostics=gradients``. ``results/page.html`` is the page without its content.
"""

import argparse
import colorsys
import html
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from plotly.offline import get_plotlyjs

from longwave import home
from longwave.results import published, records, tables
from longwave.results.published import METRICS
from longwave.results.tables import Row
from longwave.results.verdict import NOT_RUN, OUT_OF_REACH
from longwave.schema import counted
from longwave.training.diagnostics import FLOOR, PREFIX, png
from longwave.training.errors import UserError
from longwave.training.files import write_atomic
from longwave.training.record import Record

PATH = home() / "results" / "report.html"
PAGE = Path(__file__).parent / "page.html"
COMMAND = "python -m results.report"

# Distinct on white and on black; with more models than colours, and with more settings of a model, their lines and
# markers differ too. Dots are left to what was published or measured before training.
_COLOURS = ("#4269d0", "#e69f00", "#ff5c4a", "#0f9488", "#a463f2", "#62c44f", "#f06fa8", "#17a7c9", "#9c6b4e", 
            "#8a8f98", "#8f9b1c", "#b0506b")  # fmt: skip
_DASHES = {"solid": "-", "dash": "--", "dashdot": "-.", "longdash": (0, (8, 3))}
_SYMBOLS = ("circle", "square", "triangle-up")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    records.add_arguments(parser)
    parser.add_argument("--into", type=Path, default=PATH, help="the page (results/report.html)")
    parser.add_argument("--picture", type=Path, help="draw the curves of the adding problem as PNG instead")
    parser.add_argument("--length", type=int, default=5000, help="T of the picture (%(default)s)")
    chosen = parser.parse_args(arguments)
    try:
        shown = records.shown(chosen)
        rows = tables.rows(shown.records, shown.mine, open_cells=not chosen.mine)
        if chosen.picture:
            write_atomic(chosen.picture, picture(rows, chosen.length))
            print(chosen.picture)
        else:
            write_atomic(chosen.into, page(rows, shown.damaged, chosen.mine).encode())
            print(f"{chosen.into}: {shown}, {chosen.into.stat().st_size / 1e6:.1f} MB")
    except UserError as error:
        parser.exit(1, f"error: {error}\n")


def page(rows: list[Row], damaged: Iterable[str] = (), mine: bool = False) -> str:
    """The whole page.

    Args:
        damaged: lines on the records that were left out.
        mine: leave out charts and parts of the page in which nothing was run.
    """
    style = Style(rows)
    sections = {
        "steps": [_by_step(group, style) for group in tables.by_title(filter(_has_no_epochs, rows))],
        "epochs": _by_epoch(rows, style, mine),
        "cost": [_by_cost(group, style) for group in tables.by_title(row for row in rows if row.runs)],
        "gradients": [_by_lag(group, style) for group in tables.by_title(filter(_lags, rows))],
    }
    charts = [chart for found in sections.values() for chart in found]
    drawn = {row.model for row in rows} | {trace.meta["model"] for _, _, figure in charts for trace in figure.data}
    environment = Environment(loader=FileSystemLoader(PAGE.parent), autoescape=True, undefined=StrictUndefined)
    return environment.get_template(PAGE.name).render(
        summary=f"{counted(sum(len(row.runs) for row in rows), 'run')}. {tables.in_a_line(rows)}.",
        any_run=any(row.runs for row in rows),
        mine=mine,
        damaged=list(damaged),
        models=[{"name": model, "colour": style.colour(model)} for model in style.models if model in drawn],
        tasks=sorted({row.task for row in rows} | {task for task, _, _ in charts}),
        tables=tables.tables(rows),
        not_run=(NOT_RUN, OUT_OF_REACH),
        pieces=lambda text: re.split(r"(?<=[/=])|(?<=\.)(?=\D)|(?=_)", text),
        # No "<" at all: neither </script> nor <!-- ends or hides a script.
        charts=json.dumps([json.loads(figure.to_json()) for _, _, figure in charts]).replace("<", "\\u003c"),
        plotly=get_plotlyjs(),
        **sections,
    )


class Style:
    """A colour for each model, the same in all charts; a shade, a dash and a marker for each of its settings in one."""

    def __init__(self, rows: list[Row]):
        run = sorted({row.model for row in rows if row.runs})
        aims = {row.model for row in rows}
        aims |= {record.model for record in published.by_key().values() if record.trajectory}
        self.models = [*run, *sorted(aims - set(run))]
        self._settings: dict[tuple[str, str], dict[str, int]] = {}
        for row in rows:
            if row.runs:
                of_model = self._settings.setdefault((row.model, row.title), {})
                of_model.setdefault(self._key(row), len(of_model))

    @staticmethod
    def _key(row: Row) -> str:
        # Lengths of a curriculum follow the length of the task, which has a chart of its own.
        return json.dumps([row.label, row.changed, bool(tables.lengths(row))], sort_keys=True, default=str)

    def of(self, row: Row) -> tuple[str, int]:
        """The model of a row, and the number of its settings among those of the model in this chart."""
        return row.model, self._settings[row.model, row.title][self._key(row)]

    def colour(self, model: str, setting: int = 0) -> str:
        """The model's own for its first settings, darker or lighter for the others."""
        base = _COLOURS[self.models.index(model) % len(_COLOURS)]
        red, green, blue = (int(base[i : i + 2], 16) / 255 for i in (1, 3, 5))
        hue, lightness, saturation = colorsys.rgb_to_hls(red, green, blue)
        lightness = lightness if setting == 0 else (0.3, 0.8, 0.42, 0.68, 0.18)[(setting - 1) % 5]
        made = colorsys.hls_to_rgb(hue + 0.06 * (setting // 6), lightness, saturation)
        return "#" + "".join(f"{round(255 * part):02x}" for part in made)

    def line(self, model: str, setting: int = 0, **more) -> dict:
        dash = self._pick(model, setting, list(_DASHES))
        return {"color": self.colour(model, setting), "dash": dash, "width": 2} | more

    def marker(self, model: str, setting: int = 0, **more) -> dict:
        return {"color": self.colour(model, setting), "symbol": self._pick(model, setting, _SYMBOLS), "size": 10} | more

    def _pick(self, model: str, setting: int, kinds: Sequence[str]) -> str:
        return kinds[(self.models.index(model) // len(_COLOURS) + setting) % len(kinds)]


def curve(runs: list[Record], key: str) -> tuple[list, list]:
    """The median over the seeds at each step; a run that ended early keeps its last value."""
    found = [run.curves[key] for run in runs if key in run.curves and run.curves[key].step]
    if not found:
        return [], []
    steps = np.unique(np.concatenate([np.asarray(one.step) for one in found]))
    values = np.median([np.interp(steps, one.step, one.value) for one in found], axis=0)
    return steps.tolist(), [float(f"{value:.5g}") for value in values]


def labels(rows: list[Row]) -> list[str]:
    """Distinct names of the rows of one chart: the model, else the recipe, else with what was changed of it."""
    suffixes = [(", growing lengths" if tables.lengths(row) else "") + (", yours" if row.mine else "") for row in rows]
    found = [row.model + suffix for row, suffix in zip(rows, suffixes, strict=True)]
    counts = Counter(found)
    for index, (row, label) in enumerate(zip(rows, found, strict=True)):
        if counts[label] > 1:
            found[index] = row.name + label.removeprefix(row.model)
    counts = Counter(found)
    for index, (row, label) in enumerate(zip(rows, found, strict=True)):
        changes = [f"{k.rpartition('.')[2]}={tables.plain(v)}" for k, v in row.changed.items() if k != "curriculum"]
        if counts[label] > 1 and changes:
            found[index] = f"{label} ({', '.join(changes)})"
    # Settings that no command line names; the legend hides and shows by name.
    return [label if found.count(label) == 1 else f"{label} #{index + 1}" for index, label in enumerate(found)]


def _has_no_epochs(row: Row) -> bool:
    return bool(row.runs) and not row.runs[0].steps_per_epoch


def _lags(row: Row) -> list[int]:
    """The lags at which gradient norms were measured."""
    keys = {key for run in row.runs for key in run.curves if key.startswith(PREFIX)}
    return sorted(int(key.removeprefix(PREFIX)) for key in keys)


def _by_step(rows: list[Row], style: Style) -> tuple[str, str, go.Figure]:
    figure, metric = _figure("training step", rows[0].metric), rows[0].metric
    scale = _scale(metric)
    for row, label in zip(rows, labels(rows), strict=True):
        key = row.runs[0].objective.key
        # Each seed, pale; a gap between one and the next.
        each = [run.curves[key] for run in row.runs if key in run.curves]
        if len(each) > 1:
            x = [step for one in each for step in (*one.step, None)]
            y = [value for one in each for value in (*one.value, None)]
            pale = style.line(*style.of(row), width=1)
            _add(figure, row.model, label, x, y, scale, line=pale, opacity=0.3, showlegend=False, hoverinfo="skip")
        _add_row(figure, row, label, *_curve(row), scale, style)
    trivial = [run.baseline.get(metric) for row in rows for run in row.runs]
    level = next((value for value in trivial if value), None)
    if level:
        last = max((trace.x[-1] for trace in figure.data if trace.x and trace.x[-1]), default=1)
        line = {"dash": "dash", "width": 1.5, "color": "#888"}
        _add(figure, None, f"trivial prediction: {level * scale:.3g}", [0, last], [level] * 2, scale, line=line)
    return rows[0].task, f"{rows[0].title}: {metric}", figure


def _by_epoch(rows: list[Row], style: Style, mine: bool) -> list[tuple[str, str, go.Figure]]:
    ours: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row.runs and not _has_no_epochs(row):
            # What is measured on batches is drawn beside what is measured on all: the curves say the same.
            ours.setdefault((row.task, row.runs[0].objective.metric), []).append(row)
    theirs: dict[tuple[str, str], list] = {}
    for key, record in published.by_key().items():
        if record.trajectory:
            theirs.setdefault((record.task, record.metric), []).append((key, record))
    found = []
    for task, metric in [*ours, *(pair for pair in sorted(theirs) if pair not in ours and not mine)]:
        figure, scale = _figure("epoch", f"validation {metric}"), _scale(metric)
        group = ours.get((task, metric), [])
        for row, label in zip(group, labels(group), strict=True):
            steps, values = _curve(row)
            epochs = [round(step / row.runs[0].steps_per_epoch, 3) for step in steps]
            _add_row(figure, row, label, epochs, values, scale, style)
        drawn: Counter[str] = Counter()
        for key, record in theirs.get((task, metric), []):
            symbol = ("diamond-open", "square-open", "circle-open")[drawn[record.model] % 3]
            drawn[record.model] += 1
            kind = "quoted" if record.kind == "curve" else "published log"
            x, y = list(record.trajectory), list(record.trajectory.values())
            line = style.line(record.model, dash="dot", width=1)
            marker = style.marker(record.model, symbol=symbol, size=9)
            options = {"mode": "lines+markers", "line": line, "marker": marker}
            _add(figure, record.model, f"{kind}: {key}", x, y, scale, **options)
        # The published budgets reach from tens of epochs to thousands.
        _axis(figure, "x", linear=False)
        found.append((task, f"{task}: {metric}", figure))
    return found


def _by_cost(rows: list[Row], style: Style) -> tuple[str, str, go.Figure]:
    metric, scale = rows[0].metric, _scale(rows[0].metric)
    unit = "1,000 steps" if _has_no_epochs(rows[0]) else "epoch"
    figure = _figure(f"seconds per {unit}", f"test {metric}")
    for row, label in zip(rows, labels(rows), strict=True):
        done = sum(run.budget.steps_done for run in row.runs)
        # Another batch makes another epoch.
        steps = row.runs[0].steps_per_epoch or 1000
        seconds = sum(run.wall_seconds for run in row.runs) / done * steps if done else None
        memories = [run.peak_memory_bytes / 1e6 for run in row.runs if run.peak_memory_bytes]
        memory = float(np.mean(memories)) if memories else None
        mean, spread = float(np.mean(row.values)), float(np.std(row.values, ddof=1)) if len(row.values) > 1 else 0.0
        costs = {"time": seconds, "memory": memory, "parameters": row.parameters}
        lines = [f"{seconds:.3g} s per {unit}" if seconds else "", f"{memory:,.0f} MB" if memory else ""]
        name = html.escape(label)
        lines = [f"{name}: {tables.ours(row)}", *lines, f"{row.parameters:,} parameters" if row.parameters else ""]
        _add(
            figure, row.model, label, [seconds], [mean], scale, mode="markers",
            marker=style.marker(*style.of(row)),
            # Downwards, a deviation may reach below zero, where a logarithm has no place.
            error_y={"type": "data", "array": [spread * scale], "arrayminus": [min(spread, 0.9 * mean) * scale],
                     "thickness": 1},
            meta={"model": row.model, "costs": costs},
            hovertemplate="<br>".join(filter(None, lines)) + "<extra></extra>",
        )  # fmt: skip
    figure.update_layout(
        meta={"titles": {"time": f"seconds per {unit}", "memory": "peak memory, MB", "parameters": "parameters"}}
    )
    _axis(figure, "x", linear=False)
    return rows[0].task, f"{rows[0].title}: {metric}", figure


def _by_lag(rows: list[Row], style: Style) -> tuple[str, str, go.Figure]:
    figure = _figure("lag: steps before the last", "norm of dE/dh")
    ticks = [0.5, *(10**i for i in range(6))]
    for row, label in zip(rows, labels(rows), strict=True):
        for name, which, line in (("", -1, {}), (", before training", 0, {"dash": "dot", "width": 1})):
            x, y = [], []
            for lag in _lags(row):
                at = [run.curves[f"{PREFIX}{lag}"].value for run in row.runs if f"{PREFIX}{lag}" in run.curves]
                norm = float(np.median([values[which] for values in at if values] or [0.0]))
                if norm > FLOOR:
                    # A logarithmic axis has no place for lag 0.
                    x.append(max(lag, 0.5))
                    y.append(norm)
            marker = style.marker(*style.of(row), size=5)
            _add(figure, row.model, label + name, x, y, mode="lines+markers", marker=marker,
                 line=style.line(*style.of(row), **line), showlegend=which == -1, legendgroup=label)  # fmt: skip
    figure.update_xaxes(type="log", tickvals=ticks, ticktext=["0", *(f"{tick:,}" for tick in ticks[1:])])
    _axis(figure, "y", linear=False)
    return rows[0].task, rows[0].title, figure


def _scale(metric: str) -> int:
    return 100 if metric == "accuracy" else 1


def _figure(x: str, y: str) -> go.Figure:
    """An empty chart. Its colours come from the page, which knows whether it is light or dark."""
    metric, x, y = y.rpartition(" ")[2], html.escape(x), html.escape(y)
    figure = go.Figure(layout={"template": {}, "xaxis": {"title": {"text": x}}, "yaxis": {"title": {
        "text": f"{y}, %" if metric == "accuracy" else y}}})  # fmt: skip
    if metric in METRICS:
        _axis(figure, "y", linear=METRICS[metric])
    return figure


def _axis(figure: go.Figure, name: str, linear: bool) -> None:
    """Errors fall by orders of magnitude, accuracies do not."""
    exponents = "power" if name == "y" else "none"
    axis = {"type": "linear"} if linear else {"type": "log", "exponentformat": exponents}
    figure.update_layout({f"{name}axis": axis})


def _curve(row: Row) -> tuple[list, list]:
    """The curve of a row, as :func:`curve`; the final values alone where its runs have none."""
    steps, values = curve(row.runs, row.runs[0].objective.key)
    return (steps, values) if steps else ([row.steps], [float(np.median([run.objective.value for run in row.runs]))])


def _add_row(figure: go.Figure, row: Row, label: str, x: list, y: list, scale: int, style: Style) -> None:
    # A line of one point would not be seen.
    mode = "lines" if len(x) > 1 else "markers"
    marker = {} if mode == "lines" else {"marker": style.marker(*style.of(row))}
    _add(figure, row.model, label, x, y, scale, mode=mode, line=style.line(*style.of(row)), **marker)


def _add(figure: go.Figure, model: str | None, label: str, x: list, y: list, scale: int = 1, **more) -> None:
    # Plotly reads names as HTML.
    options = {"mode": "lines", "meta": {"model": model}, "name": html.escape(label), "legendgroup": label} | more
    figure.add_trace(go.Scatter(x=x, y=[value and scale * value for value in y], **options))


def picture(rows: list[Row], length: int) -> bytes:
    """The test MSE on the adding problem at T = ``length`` against training steps, the median of the seeds, as PNG.

    Rows with growing lengths have a panel of their own.

    One row alone is drawn with each seed, and with the lengths that its first run was trained on. UserError where there
    is no record of it.
    """
    from matplotlib.figure import Figure

    found = [row for row in rows if row.title == f"adding, T = {length}" and row.runs]
    if not found:
        raise UserError(f"--length {length}: there is no finished run of the adding problem at this length to draw")
    style = Style(found)
    panels = {"growing lengths": [], "fixed length": []}
    for row in found:
        panels["growing lengths" if tables.lengths(row) else "fixed length"].append(row)
    panels = {title: panel for title, panel in panels.items() if panel}
    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    figure.suptitle(f"Adding problem, T = {length:,} (number of seeds)", x=0.4)
    level = next((run.baseline["mse"] for row in found for run in row.runs if run.baseline), 1 / 6)
    seeds, lines = defaultdict(list), {}
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for ax, (title, panel) in zip(axes, panels.items(), strict=True):
        of_model = Counter()
        # A model's own settings, or those nearest to them, have its own colour.
        panel.sort(key=lambda row: len(row.changed))
        for row, label in zip(panel, labels(panel), strict=True):
            line, label = style.line(row.model, of_model[row.model]), label.replace(", growing lengths", "")
            of_model[row.model] += 1
            (lines[label],) = ax.plot(*_curve(row), color=line["color"], linestyle=_DASHES[line["dash"]], linewidth=1.4)
            seeds[label].append(str(len(row.runs)))
        trivial = ax.axhline(level, color="0.4", linestyle="--", linewidth=1)
        ax.set_yscale("log")
        ax.set_xlabel("training step")
        ax.set_title(title, fontsize="medium")
        ax.grid(alpha=0.3)
    first = axes[0]
    first.set_ylabel(f"test MSE at T = {length:,}, median of the seeds")
    if len(found) == 1:
        for run in found[0].runs:
            first.plot(*curve([run], run.objective.key), color=style.colour(run.model), linewidth=0.8, alpha=0.4)
        begin = 0
        for stage in found[0].runs[0].curriculum:
            first.axvline(begin, color="0.6", linestyle=":", linewidth=0.8)
            first.text(begin, 1.0, f" {stage.length:,}", transform=first.get_xaxis_transform(), rotation=90,
                    va="top", ha="left", fontsize=8, color="0.4")  # fmt: skip
            begin += stage.steps
    names = [f"{label} ({', '.join(seeds[label])})" for label in lines]
    figure.legend(
        [*lines.values(), trivial], [*names, "always predicting 1"], loc="outside right upper", frameon=False,
        fontsize="small",
    )  # fmt: skip
    return png(figure)


if __name__ == "__main__":
    main()
