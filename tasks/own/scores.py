"""Metrics as people report them, by scikit-learn, of all predictions of a split."""

import io
import warnings

import numpy as np

# Every metric, and whether more of it is better.
OF_CLASSES = {"accuracy": True, "balanced_accuracy": True, "macro_f1": True, "auroc": True, "log_loss": False}
OF_NUMBERS = {"rmse": False, "mae": False, "r2": True}


def of_classes(probabilities: np.ndarray, targets: np.ndarray) -> dict[str, float]:
    """Metrics of a classification; AUROC (one against the rest, mean over the classes) only where all classes occur.

    Args:
        probabilities: (n, classes).
        targets: (n,).
    """
    from sklearn import metrics

    chosen, labels = probabilities.argmax(1), np.arange(probabilities.shape[1])
    with warnings.catch_warnings():
        # Of classes that are predicted and do not occur.
        warnings.simplefilter("ignore")
        found = {
            "accuracy": metrics.accuracy_score(targets, chosen),
            "balanced_accuracy": metrics.balanced_accuracy_score(targets, chosen),
            "macro_f1": metrics.f1_score(targets, chosen, average="macro", zero_division=0),
            "log_loss": metrics.log_loss(targets, probabilities, labels=labels),
        }
        if len(np.unique(targets)) == len(labels):
            score = probabilities[:, 1] if len(labels) == 2 else probabilities
            found["auroc"] = metrics.roc_auc_score(targets, score, multi_class="ovr", labels=labels)
    return {key: float(value) for key, value in found.items()}


def of_numbers(predictions: np.ndarray, targets: np.ndarray) -> dict[str, float]:
    """Metrics of a regression, (n,) and (n,); R2 only of two or more."""
    from sklearn import metrics

    found = {
        "rmse": metrics.root_mean_squared_error(targets, predictions),
        "mae": metrics.mean_absolute_error(targets, predictions),
    }
    if len(targets) > 1:
        found["r2"] = metrics.r2_score(targets, predictions)
    return {key: float(value) for key, value in found.items()}


def confusion(probabilities: np.ndarray, targets: np.ndarray, classes: list[str], title: str) -> bytes:
    """The confusion matrix as PNG: counts, coloured by the fraction of each true class."""
    # Imported here, since most runs draw nothing.
    from matplotlib.figure import Figure
    from sklearn.metrics import confusion_matrix

    counts = confusion_matrix(targets, probabilities.argmax(1), labels=np.arange(len(classes)))
    fractions = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    side = min(16.0, 3 + 0.45 * len(classes))
    figure = Figure(figsize=(side + 1, side), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    shown = axes.imshow(fractions, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(shown, ax=axes, label="fraction of the true class")
    names = [name if len(name) <= 20 else f"{name[:17]}..." for name in classes]
    axes.set(xlabel="predicted", ylabel="true")
    axes.set_title(title, fontsize=9)
    axes.set_xticks(range(len(names)), names, rotation=90 if len(names) > 4 else 0)
    axes.set_yticks(range(len(names)), names)
    if len(classes) <= 30:
        for (row, column), count in np.ndenumerate(counts):
            colour = "white" if fractions[row, column] > 0.5 else "black"
            axes.text(column, row, f"{count:,}", ha="center", va="center", color=colour, fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
