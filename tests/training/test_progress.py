from rich.console import Console

from longwave.training import progress
from longwave.training.progress import ProgressBar


def draw(monkeypatch, width: int) -> str:
    console = Console(force_terminal=True, width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    monkeypatch.setattr(progress, "console", console)
    with ProgressBar("cornn-psmnist", 50, 57000) as bar:
        bar.update(475, {"train/cross_entropy": 2.3051, "validation/accuracy": 0.1234})
        bar.update(500, {"train/cross_entropy": 2.2})
    return console.export_text()


def test_a_wide_terminal_shows_everything(monkeypatch):
    text = draw(monkeypatch, 150)
    for part in ("cornn-psmnist", "500/57000", "train/cross_entropy 2.2", "validation/accuracy 0.1234", "steps/s", "<"):
        assert part in text, part


def test_a_narrow_terminal_keeps_step_scores_and_time_left(monkeypatch):
    text = draw(monkeypatch, 80)
    # Nothing is cut off.
    assert "…" not in text
    for part in ("500/57000", "train/cross_entropy 2.2", "validation/accuracy 0.1234", "<"):
        assert part in text, part


def test_lines_where_there_is_no_terminal(monkeypatch, caplog):
    monkeypatch.setattr(progress, "console", Console(force_terminal=False, file=open("/dev/null", "w")))  # noqa: SIM115
    with ProgressBar("run", 0, 2) as bar:
        bar.update(1, {"train/mse": 0.5, "test/mse": 0.4})
        bar.update(2)
        bar.update(2, {"train/mse": 0.3})
    (line,) = caplog.messages
    assert line.startswith("run  step 2/2  train/mse 0.3  test/mse 0.4  ")
