"""Files in the official formats of the data sets, of made-up content."""

import hashlib
import pickle
import tarfile
import zipfile
from pathlib import Path

import numpy as np

# The fixture with a data root for each task that needs one, and what makes a task short.
FIXTURES = {
    "smnist": "read_mnist",
    "psmnist": "read_mnist",
    "ncifar10": "fake_cifar10",
    "har2": "fake_har",
    "imdb": "fake_imdb",
    "ptb_char": "fake_ptb",
    "fitzhugh_nagumo": "few_neurons",
    "eigenworms": "fake_archives",
    "bidmc_rr": "fake_archives",
    "bidmc_hr": "fake_archives",
    "bidmc_spo2": "fake_archives",
    "uea": "uea_root",
}
SHORT = {
    "adding": ["task.T=50"],
    "copying": ["task.L=20"],
    "ptb_char": ["task.embedding=5"],
    "uea": ["task.dataset=JapaneseVowels"],
    "files": [f"task.path={Path(__file__).parent / 'data' / 'gestures.csv'}"],
}

SIGNALS = ["body_acc_x", "body_acc_y", "body_acc_z", "body_gyro_x", "body_gyro_y", "body_gyro_z"]
SIGNALS += ["total_acc_x", "total_acc_y", "total_acc_z"]


def cifar10(root: Path, count: int) -> dict[str, str]:
    """Six files of ``count`` images: byte j of image i (of all) is (7 i + j) mod 251, its label i mod 10.

    Returns:
        The md5 of each file.
    """
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True, exist_ok=True)
    sums = {}
    for number, name in enumerate([*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"]):
        index = np.arange(number * count, (number + 1) * count)[:, None]
        batch = {
            b"batch_label": name.encode(),
            b"labels": (index[:, 0] % 10).tolist(),
            b"data": ((7 * index + np.arange(3072)) % 251).astype(np.uint8),
            b"filenames": [b"x.png"] * count,
        }
        content = pickle.dumps(batch, protocol=2)
        (folder / name).write_bytes(content)
        sums[name] = hashlib.md5(content).hexdigest()
    return sums


def har(root: Path, train: int = 40, test: int = 20) -> None:
    """Window n (of all) has label n mod 6 + 1, subject n mod 5 + 1, and 10 c + n / 10 + t / 1000 at step t of c."""
    first = 0
    for part, count in (("train", train), ("test", test)):
        folder = root / "UCI HAR Dataset" / part
        (folder / "Inertial Signals").mkdir(parents=True)
        index = np.arange(first, first + count)
        for channel, name in enumerate(SIGNALS):
            values = 10 * channel + index[:, None] / 10 + np.arange(128) / 1000
            path = folder / "Inertial Signals" / f"{name}_{part}.txt"
            np.savetxt(path, values, fmt="%15.7e", delimiter=" ", newline="\r\n")
        np.savetxt(folder / f"y_{part}.txt", index % 6 + 1, fmt="%d", newline="\r\n")
        np.savetxt(folder / f"subject_{part}.txt", index % 5 + 1, fmt="%d", newline="\r\n")
        first += count


POSITIVE = ["A good film!", "I don't dislike it; a GOOD one...", "good, good<br /><br />film"]
NEGATIVE = ["A bad film.", "It's bad -- don't watch", "bad zyzzyva film film"]


def imdb(root: Path, count: int) -> None:
    """``count`` reviews in each part: three favourable ones in turn, or three others."""
    for part in ("train", "test"):
        for label, texts, stars in (("pos", POSITIVE, 9), ("neg", NEGATIVE, 2)):
            folder = root / "aclImdb" / part / label
            folder.mkdir(parents=True)
            for index in range(count):
                (folder / f"{index}_{stars}.txt").write_text(texts[index % 3])
    unlabelled = root / "aclImdb" / "train" / "unsup"
    unlabelled.mkdir()
    (unlabelled / "0_0.txt").write_text("never to be read")


def glove(root: Path, widths: tuple[int, ...] = (50, 100)) -> None:
    """The vector of word k of the list is k + 1, k + 1 + 0.001, ..."""
    for width in widths:
        lines = [
            f"{word} {' '.join(f'{k + 1 + d / 1000:.3f}' for d in range(width))}\n"
            for k, word in enumerate(["the", ".", "good", "film", "bad", "a", "n't", "quux"])
        ]
        (root / f"glove.6B.{width}d.txt").write_text("".join(lines))


def ptb(root: Path, lines: int = 40) -> None:
    folder = root / "simple-examples" / "data"
    folder.mkdir(parents=True)
    for name, count in (("train", lines), ("valid", lines // 2), ("test", lines // 2)):
        text = "".join(f" {' '.join('no_it_was_n_' + 'abcdefg'[i % 7])} \n" for i in range(count))
        (folder / f"ptb.char.{name}.txt").write_text(text)


def pack(archive: Path, folder: Path) -> None:
    """Packs a folder, under its own name, into a zip or a tar.gz."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    archive.parent.mkdir(parents=True, exist_ok=True)
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive, "w") as out:
            for path in files:
                out.write(path, path.relative_to(folder.parent))
    else:
        with tarfile.open(archive, "w:gz", compresslevel=1) as out:
            for path in files:
                out.add(path, str(path.relative_to(folder.parent)))


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
