import itertools
import json
import re
import shutil
import subprocess
import time
from html.parser import HTMLParser

import pytest
from PIL import Image

from longwave.results import records, report, tables
from tests.results.cases import make_record, make_records, parsed, rows_of

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

# What the page itself would say of its state, added to a copy of it.
PROBE = """<script>
addEventListener("error", (event) => console.error(event.message));
addEventListener("unhandledrejection", (event) => console.error(event.reason));
const wait = (condition) => new Promise((done) => {
  const timer = setInterval(() => { if (condition()) { clearInterval(timer); done(); } }, 50);
});
const inked = (chart) => chart.querySelector(".scatterlayer path") !== null;
const shown = () => charts.filter((chart) => !chart.closest("figure").hidden);
(async () => {
  await wait(() => root.dataset.drawn && charts.every(inked));
  for (const model of OFF) document.querySelector(`input[data-filter=model][value=${model}]`).click();
  document.querySelector("input[data-filter=task][value=har2]").click();
  const background = getComputedStyle(document.body).backgroundColor, text = charts[0].layout.font.color;
  document.getElementById("theme").click();
  document.querySelector("input[name=cost][value=parameters]").click();
  await wait(() => charts[0].layout.font.color !== text);
  const paid = charts.filter((chart) => chart.dataset.section === "cost");
  const measured = { width: innerWidth, content: root.scrollWidth, charts: charts.length, shown: shown().length,
    filters: document.getElementById("filters").open,
    cut: all(".scroll").filter((table) => table.scrollWidth > table.clientWidth + 1).length,
    rows: all("section.table:not([hidden]) tbody tr:not([hidden])").length,
    models: [...new Set(shown().flatMap((chart) => chart.data.filter((t) => t.visible).map((t) => t.meta.model)))],
    background: [background, getComputedStyle(document.body).backgroundColor],
    costs: paid.map((chart) => [chart.layout.xaxis.title.text, chart.data[0].x[0]]) };
  parent.document.body.insertAdjacentHTML("beforeend", `<pre>${JSON.stringify(measured)}</pre>`);
})();
</script>"""


class Shape(HTMLParser):
    """Counts tags, and reads the figures."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.links, self.figures, self._in_figures = [], [], None, False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        attributes = dict(attributes)
        self.links += [attributes[key] for key in ("src", "href") if key in attributes]
        self._in_figures = attributes.get("id") == "figures"

    def handle_data(self, data):
        if self._in_figures:
            self.figures = json.loads(data)
            self._in_figures = False


@pytest.fixture(scope="module")
def shown():
    """The page of what a few sweeps would leave, and its rows."""
    rows = rows_of(make_records(models=("cornn", "lstm", "unicornn"), lengths=(500, 2000), seeds=2))
    return report.page(rows, ["broken.json is passed over: <b>"]), rows


def test_the_page_is_whole(shown):
    page, rows = shown
    shape = Shape(page)
    assert shape.tags.count("table") == len(tables.parts(tables.tables(rows))) > len(tables.tables(rows)) > 5
    assert shape.tags.count("figure") == len(shape.figures) > 8
    # Nothing is fetched.
    assert all(link.startswith(("#", "data:")) for link in shape.links)
    assert "broken.json is passed over: &lt;b&gt;" in page
    assert not re.search(r"\{\{\w+\}\}", page.replace(report.get_plotlyjs(), ""))


def figures(shown, kind):
    """The figures of a section, by caption."""
    page, _ = shown
    captions = re.findall(r'aria-label="([^"]*)" data-section="(\w+)"', page)
    return {caption: f for (caption, section), f in zip(captions, Shape(page).figures, strict=True) if section == kind}


def test_a_panel_a_length_with_the_baseline(shown):
    found = figures(shown, "steps")
    assert list(found) == ["adding, T = 500: mse", "adding, T = 2000: mse"]
    for figure in found.values():
        *bold, level = [trace for trace in figure["data"] if trace.get("showlegend", True)]
        assert [trace["name"] for trace in bold] == ["cornn", "lstm", "unicornn"]
        assert level["name"] == "trivial prediction: 0.167"
        assert level["y"] == pytest.approx([1 / 6] * 2)
        assert level["x"] == [0, max(trace["x"][-1] for trace in bold)]
        assert figure["layout"]["yaxis"]["type"] == "log"


def test_epochs_beside_the_published_log(shown):
    figure = figures(shown, "epochs")["psmnist: accuracy"]
    traces = {trace["name"]: trace for trace in figure["data"]}
    assert traces["cornn"]["x"][:3] == [1, 2, 3]
    assert traces["cornn"]["x"][-1] == 120
    theirs = traces["published log: cornn/psmnist_256"]
    assert dict(zip(theirs["x"], theirs["y"], strict=True))[10] == pytest.approx(87.7)
    # Said of it by others, it is no log.
    assert "quoted: lssl/psmnist_unicornn" in traces
    # Of one model, and told apart.
    symbols = [t["marker"]["symbol"] for t in figure["data"] if t["meta"]["model"] == "unicornn" and "marker" in t]
    assert len(symbols) == len(set(symbols)) == 2
    # What nobody has run is there all the same: what a run is to look like.
    assert "smnist: accuracy" in figures(shown, "epochs")


def test_cost_and_gradients(shown):
    figure = figures(shown, "cost")["har2: accuracy"]
    point = next(trace for trace in figure["data"] if trace["name"] == "lstm")
    assert point["meta"]["costs"]["parameters"] == 17000
    assert point["meta"]["costs"]["time"] == point["x"][0] == pytest.approx(600 / 120, rel=0.2)
    assert "points" not in point["hovertemplate"]
    assert "17,000 parameters" in point["hovertemplate"]
    found = figures(shown, "gradients")
    assert list(found) == ["adding, T = 500", "adding, T = 2000"]
    norms = found["adding, T = 500"]["data"][0]
    assert (norms["x"][0], norms["y"][0]) == (0.5, 1.0)


def test_no_records_at_all():
    page = report.page(rows_of([]))
    assert page.count("No records of this yet.") == 3
    assert 'id="unrun" checked' in page


def test_the_median_keeps_the_last_value_of_a_run_that_ended_early():
    def run(steps, values):
        return parsed(make_record(curves={"k": {"step": steps, "value": values}}))

    runs = [run([1, 2, 3][:n], [v, v, v][:n]) for n, v in ((3, 5.0), (1, 1.0), (2, 2.0))]
    assert report.curve(runs, "k") == ([1, 2, 3], [2.0, 2.0, 2.0])
    assert report.curve(runs, "other") == ([], [])
    ragged = [run([0, 10], [0.0, 10.0]), run([5], [3.0])]
    assert report.curve(ragged, "k") == ([0, 5, 10], [1.5, 4.0, 6.5])


def test_labels():
    def row(model, recipe=None, **changed):
        return tables.Row("t", model, "t", "mse", recipe, changed)

    rows = [row("lstm"), row("cornn", "cornn/a"), row("cornn", "cornn/b"), row("cornn", "cornn/b", **{"model.dt": 0.1})]
    assert report.labels(rows) == ["lstm", "cornn/a", "cornn/b", "cornn/b (dt=0.1)"]


def settings_of_one_model(count):
    """Runs of the adding problem by settings of one model, and another model."""
    made = [
        make_record("cornn", "adding", recipe="cornn/adding", T=500, changed={"optimizer.lr": index}, value=0.1 + index)
        for index in range(count)
    ]
    for index, record in enumerate(made):
        record["config"]["optimizer"] = {"lr": index}
    return [*made, make_record("lem", "adding", recipe="lem/adding", T=500)]


def test_two_settings_of_one_recipe_have_different_colours():
    rows = [row for row in rows_of(settings_of_one_model(6)) if row.runs]
    style = report.Style(rows)
    looks = [style.line(*style.of(row)) for row in rows]
    assert len({look["color"] for look in looks}) == len(rows) == 7
    assert looks[0]["dash"] != looks[1]["dash"]
    parts = [[int(look["color"][i : i + 2], 16) for i in (1, 3, 5)] for look in looks]
    for a, b in itertools.combinations(parts, 2):
        assert sum(abs(x - y) for x, y in zip(a, b, strict=True)) > 40
    # The first has the colour of the model, at every length.
    longer = rows_of([make_record("cornn", "adding", recipe="cornn/adding", T=2000)])
    assert report.Style([*rows, *longer]).line(*style.of(rows[0]))["color"] == style.colour("cornn")


def test_every_row_has_its_line():
    made = settings_of_one_model(3)
    made[0]["curves"] = {}
    made[1]["curves"] = {"test/mse": {"step": [100], "value": [0.1]}}
    rows = [row for row in rows_of(made) if row.runs]
    # Settings that no record names.
    for row in rows:
        row.changed = {}
    figure = figures((report.page(rows), rows), "steps")["adding, T = 500: mse"]
    lines = [trace for trace in figure["data"] if trace["meta"]["model"]]
    assert len({trace["name"] for trace in lines}) == len(lines) == len(rows)
    assert [(len(trace["x"]), trace["mode"]) for trace in lines] == [
        (1, "markers"), (1, "markers"), (20, "lines"), (20, "lines"),
    ]  # fmt: skip


class Widths(HTMLParser):
    """The least width of each table, in pixels, by the longest piece of each column that does not break.

    No browser: a digit or small letter of 13.5 px takes 7.6 px on average in the widest of the usual fonts.
    """

    LETTER, PADDING = 7.6, 2 * 0.6 * 15

    def __init__(self, text):
        super().__init__()
        self.tables, self._classes, self._pieces = [], None, []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self._column = 0
        elif tag in ("th", "td"):
            self._classes, self._pieces = dict(attributes).get("class", ""), [""]
        elif tag == "wbr":
            self._pieces.append("")

    def handle_data(self, data):
        if self._classes is not None:
            first, *more = [data] if "number" in self._classes else re.split(r"\s+", data)
            self._pieces[-1] += first
            self._pieces += more

    def handle_endtag(self, tag):
        if tag in ("th", "td"):
            width = max(map(len, self._pieces)) * self.LETTER + self.PADDING
            if {"verdict", "changed", "tuning"} & set(self._classes.split()):
                width = max(width, 8 * 15)
            columns, self._classes = self.tables[-1], None
            columns += [0.0] * (self._column == len(columns))
            columns[self._column] = max(columns[self._column], width)
            self._column += 1


def test_no_column_is_cut_on_a_laptop():
    """Tables of the committed records, and of the widest that there may be, at 1,280 pixels less the margins."""
    long = {"model.stabiliser": "softplus_and_more", "curriculum.grow": [200, 500, 1250], "training.evaluate_every": 5}
    published = {"task": "adding", "recipe": "unicornn/adding_released", "published": {"key": "lem/adding_10000"}}
    wide = [make_record("unicornn", seed=seed, T=10000, value=0.123456 * (seed + 1), steps=123456, changed=long,
                        **published) for seed in range(3)]  # fmt: skip
    page = report.page(rows_of([*records.load()[0], *wide])).partition('<h2 id="steps">')[0]
    assert re.findall(r"([^\n{}]*)\{[^{}]*nowrap", page) == ["td.number "]
    found = Widths(page)
    assert max(map(len, found.tables)) >= 10
    assert max(map(sum, found.tables)) < 1280 - 2 * 32 - 2


def test_on_a_phone_the_filters_fold_away(shown):
    page, _ = shown
    head, _, rest = page.partition('<details id="filters" open><summary>Filters</summary>')
    inside, _, below = rest.partition("</details>")
    assert inside.count("<fieldset") == 3
    assert "<fieldset" not in head
    assert "data-filter" not in below.partition("<script>")[0]
    assert 'if (matchMedia("(max-width: 600px)").matches) document.getElementById("filters").open = false;' in below


HOSTILE = "{{charts}}<img src=x onerror=alert(1)></script><!--<script>alert(1)//"


def test_a_hostile_record_is_only_text():
    made = make_records(models=("cornn", "lstm"), lengths=(500,), seeds=2)
    plain = Shape(report.page(rows_of(made)))
    for record in made:
        if record["model"] == "cornn":
            record |= {"model": HOSTILE, "recipe": HOSTILE, "changed": {HOSTILE: HOSTILE}, "stopped": HOSTILE}
            record["forced"] = [HOSTILE]
        record["curves"][HOSTILE] = {"step": [1], "value": [1.0]}
    rows = rows_of(made)
    for row in rows:
        row.title += HOSTILE if row.runs else ""
        row.task += HOSTILE if row.runs else ""
    page = report.page(rows, [HOSTILE])
    shape = Shape(page)
    assert {"img", "onerror"}.isdisjoint(shape.tags)
    assert shape.tags.count("script") == plain.tags.count("script") == 3
    assert set(shape.tags) == set(plain.tags)
    assert "<!--" not in page.replace(report.get_plotlyjs(), "")
    # Substituted nowhere, shown everywhere.
    assert page.count("{{charts}}&lt;img") > 10
    # Plotly reads names, captions of axes and texts of points as HTML.
    for figure in shape.figures:
        texts = [trace["name"] + trace.get("hovertemplate", "") for trace in figure["data"]]
        assert not any("<img" in text for text in texts)
    assert any("&lt;img" in trace["name"] for figure in shape.figures for trace in figure["data"])


@pytest.mark.skipif(shutil.which("node") is None, reason="no node to read the script with")
def test_the_script_is_whole(shown, tmp_path):
    page, _ = shown
    (tmp_path / "page.js").write_text(page.rpartition("<script>")[2].partition("</script>")[0])
    subprocess.run(["node", "--check", tmp_path / "page.js"], check=True)


def test_a_thousand_records_and_some_that_are_none(save, tmp_path, capsys):
    made = make_records(lengths=tuple(range(100, 2500, 100)), seeds=4)
    assert len(made) > 1000
    folder = save(*made)
    (folder / "broken.json").write_text("{")
    for index, part in enumerate(("curves", "metrics", "budget", "config", "objective")):
        (folder / f"odd{index}.json").write_text(json.dumps(make_record() | {part: {"test/mse": 3}}))
    begin = time.perf_counter()
    report.main(["--runs", str(folder), "--into", str(tmp_path / "r.html")])
    assert time.perf_counter() - begin < 20
    told = capsys.readouterr()
    assert f"{len(made):,} records" in told.out
    assert sorted(line.partition(" ")[0] for line in told.err.splitlines()) == [
        "broken.json", *(f"odd{index}.json" for index in range(5)),
    ]  # fmt: skip
    assert "odd3.json is left out" in (tmp_path / "r.html").read_text()


def test_the_picture(save, tmp_path, capsys):
    path = tmp_path / "adding.png"
    with pytest.raises(SystemExit):
        report.main(["--runs", str(save(make_record())), "--picture", str(path)])
    assert capsys.readouterr().err == (
        "error: --length 5000: there is no finished run of the adding problem at this length to draw\n"
    )
    with pytest.raises(SystemExit):
        report.main(["--runs", str(tmp_path / "none")])
    assert capsys.readouterr().err == f"error: --runs {tmp_path / 'none'}: no such folder\n"
    runs = save(*make_records(lengths=(500,), seeds=1))
    report.main(["--runs", str(runs), "--picture", str(path), "--length", "500"])
    with Image.open(path) as drawn:
        assert drawn.size == (960, 540)
        # More than axes on white: the colours of the models.
        assert len(drawn.convert("RGB").getcolors(100000)) > 50


def test_the_picture_of_ones_own_runs(fit_here, tmp_path, capsys):
    """With and without a curriculum, from the folder of the runs."""
    small = ("model=lstm", "task=adding", "task.T=8", "model.hidden=2", "training.steps=4", "training.evaluate_every=2",
             "task.test_samples=9")  # fmt: skip
    _, folder = fit_here(*small)
    fit_here(*small, "curriculum=grow", "curriculum.start=4")
    (folder.parent / "begun").mkdir()
    path = tmp_path / "adding.png"
    report.main(["--runs", str(folder.parent), "--picture", str(path), "--length", "8"])
    assert Image.open(path).size == (960, 540)
    rows = [row for row in rows_of(records.load(folder.parent)[0]) if row.runs]
    assert sorted(report.labels(rows)) == ["lstm", "lstm, growing lengths"]
    assert sorted(tables.lengths(row) for row in rows) == ["", "4"]
    (table,) = [table for table in tables.tables(rows) if table.title.startswith("adding, T = 8")]
    assert "trained on lengths" in table.header
    tables.main(["--runs", str(folder.parent)])
    assert "| lstm/adding |" in capsys.readouterr().out


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium to open the page with: apt-get install chromium")
@pytest.mark.parametrize(("width", "off"), [(1280, []), (390, ["lstm"])])
def test_in_a_browser(shown, width, off, tmp_path):
    page, rows = shown
    probe = PROBE.replace("OFF", json.dumps(off))
    (tmp_path / "report.html").write_text(page.replace("</body>", probe + "</body>"))
    # A window cannot be as narrow as a phone; a frame can.
    outside = tmp_path / "frame.html"
    outside.write_text(
        f'<body><iframe src="report.html" style="width:{width}px;height:2000px;border:0"></iframe></body>'
    )
    options = (
        "--headless", "--no-sandbox", "--disable-gpu", "--disable-web-security", "--allow-file-access-from-files",
        f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1400,2100", "--enable-logging=stderr",
        "--virtual-time-budget=10000", "--dump-dom",
    )  # fmt: skip
    done = subprocess.run([CHROMIUM, *options, outside.as_uri()], capture_output=True, text=True, timeout=120)
    assert "CONSOLE" not in done.stderr, done.stderr
    found = re.search(r"<pre>(.*?)</pre>", done.stdout)
    assert found, "the charts were not drawn"
    measured = json.loads(found.group(1))
    assert measured["width"] == width
    assert measured["content"] <= width
    assert measured["charts"] > measured["shown"] > 8
    # What was not run is hidden at first.
    found = [row for table in tables.parts(tables.tables(rows)) for row in table.rows]
    ours = [row for row in found if row.runs and row.model not in off and row.task != "har2"]
    assert measured["rows"] == len(ours)
    assert measured["filters"] == (width > 600)
    assert width < 1280 or not measured["cut"]
    # The trivial prediction is no model's.
    assert set(measured["models"]) == {"cornn", "lstm", "unicornn", None} - set(off)
    assert len(set(measured["background"])) == 2
    assert measured["costs"][0] == ["parameters", 10000]
