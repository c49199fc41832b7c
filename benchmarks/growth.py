"""How cost grows: training time over pictures, the predictor's memory over pictures, the server's over requests.

    python benchmarks/growth.py --data data -o growth.svg                     # CIFAR-10 (`imgcls data cifar10`)
    python benchmarks/growth.py --data data --only training --epochs 2       # some of: training, predictor, server

Each point is a whole command in a process of its own, on parts of data/train that keep its classes, except that the
server is one process all the way. Training is measured in CPU seconds, which other programs hardly change, so that one
point can be compared with another; its first epoch decodes into an empty cache. Memory is the largest that was resident
at once: of the command and of each of its decoding processes, whichever is more, and of the server itself. Prints the
points, and draws the three plots.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path

import matplotlib.style
from few_pictures import draw
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from predictor import list_of_paths
from serve import client, in_process, metrics_of, running_server

from imgcls.report.style import BLUE, STYLE, families

Points = list[tuple[int, float]]

TRAINING = (1_000, 2_500, 5_000, 10_000, 25_000, 50_000)
PREDICTOR = (10, 100, 1_000, 10_000, 100_000)
SERVER = (1_000, 3_000, 10_000, 30_000, 100_000)


def training(options: argparse.Namespace) -> Iterator[tuple[int, float]]:
    """Training pictures, and CPU seconds of the whole `imgcls train`."""
    for count in TRAINING:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            pictures = options.data / "train"
            each = count // sum(path.is_dir() for path in pictures.iterdir())
            found = sum(1 for _ in draw(pictures, each, 0, folder / "train").glob("*/*"))
            command = [sys.executable, "-m", "imgcls", "train", "--train", "train", "--no-test", "--device", "cpu"]
            command += ["--epochs", str(options.epochs), "-o", "net.pth"]
            environment = {**os.environ, "XDG_CACHE_HOME": str(folder / "cache")}
            before = os.times()
            subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True)
            after = os.times()
            own = after.children_user - before.children_user + after.children_system - before.children_system
            yield found, own


def predictor(options: argparse.Namespace) -> Iterator[tuple[int, float]]:
    """Pictures of one `imgcls-infer`, and MiB."""
    paths = sorted((options.data / "test").rglob("*.png"))
    for count in PREDICTOR:
        yield count, list_of_paths(options.model, list(islice(cycle(paths), count))).peak


def server(options: argparse.Namespace) -> Iterator[tuple[int, float]]:
    """Requests that one server has answered, and MiB."""
    paths = sorted((options.data / "test").rglob("*.png"))
    pictures = [path.read_bytes() for path in paths[:: max(1, len(paths) // 256)]]
    with running_server(options, "--queue", 10_000) as port:
        for count in SERVER:
            answered = 0.0
            while answered < count:
                in_process(client, port, pictures, 1.0, 32, 1)
                figures = metrics_of(port)
                answered = figures["imgcls_batch_size_sum"]
            yield int(answered), figures["process_resident_memory_bytes"] / 2**20


MEASURED = {
    "training": (training, "training pictures", "CPU seconds", "imgcls train, {epochs} epochs"),
    "predictor": (predictor, "pictures", "MiB", "imgcls-infer, largest memory"),
    "server": (server, "requests answered", "MiB", "imgcls-serve, memory"),
}
"""Name -> what gives the points, both axes, and the title."""


def plot(points: dict[str, Points], titles: dict[str, str], path: Path) -> None:
    """The plots beside each other: from zero upwards; pictures and requests on a logarithmic axis, but for training."""
    with matplotlib.style.context((*STYLE, {"font.family": families()})):
        figure = Figure(figsize=(4 * len(points), 3.2), layout="constrained")
        for axes, (name, found) in zip(figure.subplots(1, len(points), squeeze=False)[0], points.items(), strict=True):
            _, across, up, _ = MEASURED[name]
            axes.plot(*zip(*found, strict=True), marker="o", color=BLUE)
            axes.set(xlabel=across, ylabel=up, title=titles[name])
            if name != "training":
                axes.set_xscale("log")
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
            axes.set_ylim(0, 1.25 * max(value for _, value in found))
        figure.savefig(path, metadata={"Date": None})


def main() -> None:
    options = _options()
    points: dict[str, Points] = {}
    titles = {name: MEASURED[name][3].format(epochs=options.epochs) for name in options.only}
    for name in options.only:
        give, across, up, _ = MEASURED[name]
        print(f"\n{titles[name]}\n| {across} | {up} |\n|---:|---:|", flush=True)
        points[name] = []
        for count, value in give(options):
            points[name].append((count, value))
            print(f"| {count:,} | {value:,.1f} |", flush=True)
    plot(points, titles, options.output)
    print(f"\nwrote {options.output}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder with train/ and test/")
    parser.add_argument("--model", type=Path, help="ONNX file of predictor and server; default: the built-in one")
    parser.add_argument("--threads", type=int, help="of the server's model; default: the CPUs")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--only", type=lambda text: text.split(","), default=list(MEASURED))
    parser.add_argument("-o", "--output", type=Path, default=Path("growth.svg"))
    options = parser.parse_args()
    if set(options.only) - set(MEASURED):
        parser.error(f"--only is none of {', '.join(MEASURED)}")
    return options


if __name__ == "__main__":
    main()
