"""What was tried for the last layer on a frozen body's features: ways of scaling them, penalties, another classifier.

    python benchmarks/few_pictures_trials.py --train data/train --own

Features of 200 pictures a class to draw from and 150 others to judge by, all of the training set; EfficientNet-Lite0 at
224 pixels in bf16. Prints the accuracy on the judging part for each way and each number of pictures a class, the mean
over draws. `--own` takes the network's own pictures instead of whole ones. docs/training.md has the table.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from imgcls_infer.preprocess import preprocess
from torch import Tensor

from imgcls.networks.classifier import Classifier, split_head
from imgcls.networks.registry import build_network, find
from imgcls.training.start import read_start

POOL, JUDGE = 200, 150
DRAWS = {5: 6, 10: 6, 50: 2, 100: 2}
PENALTIES = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)
SHRINKAGES = (0.1, 0.3, 0.6, 0.9)

Scaling = Callable[[Tensor], Callable[[Tensor], Tensor]]


def features(arch: str, root: Path, own: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Of each picture and of its mirror image, float32 [N, D], and labels [N]: the pool's and the judge's, by class."""
    row, names = find(arch), sorted(path.name for path in root.iterdir() if path.is_dir())
    stage_1 = row.stage_1(None, None if own else "crop")
    network, start = build_network(row, len(names), stage_1.size), read_start(row, None)
    start.fill(network, row, tuple(names))
    assert start.normalisation is not None
    classifier = Classifier(network, stage_1.size, *start.normalisation).to(memory_format=torch.channels_last).eval()
    body = split_head(network, row.head)[0]
    random, found = np.random.default_rng(123), []
    for name in names:
        files = sorted((root / name).iterdir())
        chosen = [files[index] for index in random.permutation(len(files))[: POOL + JUDGE]]
        pixels = torch.from_numpy(np.stack([preprocess(path, stage_1) for path in chosen]))
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            views = [[body(classifier.normalise(part)) for part in view.split(4)] for view in (pixels, pixels.flip(2))]
        found.append([torch.cat(view).float() for view in views])
        print(f"# {name}")
    plain, mirrored = (torch.cat(view) for view in zip(*found, strict=True))
    return plain, mirrored, torch.arange(len(names)).repeat_interleave(POOL + JUDGE)


def by_spread(power: float) -> Scaling:
    """Divides a feature by that power of its variance: 0 by the same for all, 0.25 the recipe's, 0.5 standardises."""

    def fit(known: Tensor) -> Callable[[Tensor], Tensor]:
        mean, variance = known.mean(0), known.var(0, correction=0)
        scale = variance**power * variance.mean() ** (0.5 - power) + 1e-3 * variance.mean().sqrt()
        return lambda view: (view - mean) / scale

    return fit


def to_length_1(known: Tensor) -> Callable[[Tensor], Tensor]:
    mean, side = known.mean(0), known.shape[1] ** 0.5
    return lambda view: F.normalize(view - mean) * side


def square_roots(known: Tensor) -> Callable[[Tensor], Tensor]:
    fitted = by_spread(0)(known.clamp(min=0).sqrt())
    return lambda view: fitted(view.clamp(min=0).sqrt())


def regression(x: Tensor, labels: Tensor, penalty: float) -> Callable[[Tensor], Tensor]:
    solution = torch.zeros(x.shape[1] + 1, int(labels.max()) + 1, requires_grad=True)
    optimizer = torch.optim.LBFGS([solution], max_iter=40, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(x @ solution[:-1] + solution[-1], labels)
        value = value + penalty / 2 * solution[:-1].square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return lambda view: view @ solution[:-1].detach() + solution[-1].detach()


def discriminant(x: Tensor, labels: Tensor, shrinkage: float) -> Callable[[Tensor], Tensor]:
    means = torch.stack([x[labels == label].mean(0) for label in labels.unique()])
    within = (x - means[labels]).T @ (x - means[labels]) / (len(x) - len(means))
    within = (1 - shrinkage) * within + shrinkage * within.diagonal().mean() * torch.eye(len(within))
    weight = torch.linalg.solve(within, means.T)
    return lambda view: view @ weight - (means.T * weight).sum(0) / 2


WAYS: dict[str, tuple[Scaling, Callable[..., Callable[[Tensor], Tensor]], tuple[float, ...], bool]] = {
    "as they are": (by_spread(0), regression, PENALTIES, False),
    "by the root of the spread": (by_spread(0.25), regression, PENALTIES, False),
    "standardised": (by_spread(0.5), regression, PENALTIES, False),
    "discriminant analysis": (by_spread(0.25), discriminant, SHRINKAGES, False),
    "length 1": (to_length_1, regression, PENALTIES, False),
    "square roots": (square_roots, regression, PENALTIES, False),
    "standardised, mirrored too": (by_spread(0.5), regression, PENALTIES, True),
    "as they are, mirrored too": (by_spread(0), regression, PENALTIES, True),
}
"""By name: the scaling, the classifier, its strengths, and whether mirror images are learned from as well."""


def chosen_rows(classes: int, count: int, seed: int) -> Tensor:
    """`count` of each class's pool."""
    drawn = (
        torch.randperm(POOL, generator=torch.Generator().manual_seed(100 * seed + label))[:count]
        for label in range(classes)
    )
    return torch.cat([label * (POOL + JUDGE) + rows for label, rows in enumerate(drawn)])


def accuracies(way: str, found: tuple[Tensor, Tensor, Tensor], count: int) -> list[float]:
    """In percent, for each strength: means over the draws."""
    scaling, classifier, strengths, mirrors = WAYS[way]
    plain, mirrored, labels = found
    judge = torch.arange(len(labels)) % (POOL + JUDGE) >= POOL
    sums = torch.zeros(len(strengths))
    for seed in range(DRAWS[count]):
        rows = chosen_rows(int(labels.max()) + 1, count, seed)
        known = torch.cat([plain[rows], mirrored[rows]]) if mirrors else plain[rows]
        scaled = scaling(known)
        for number, strength in enumerate(strengths):
            answer = classifier(scaled(known), labels[rows].repeat(2 if mirrors else 1), strength)
            sums[number] += (answer(scaled(plain[judge])).argmax(1) == labels[judge]).float().mean()
    return (100 * sums / DRAWS[count]).tolist()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=Path, default=Path("data/train"))
    parser.add_argument("--arch", default="efficientnet_lite0")
    parser.add_argument("--own", action="store_true", help="the network's own pictures")
    options = parser.parse_args()
    found = features(options.arch, options.train, options.own)
    for way, (_, _, strengths, _) in WAYS.items():
        for count in DRAWS:
            shares = accuracies(way, found, count)
            told = ", ".join(f"{strength:g}: {share:.2f}" for strength, share in zip(strengths, shares, strict=True))
            print(f"{way} | {count} | {max(shares):.1f} % | {told}", flush=True)


if __name__ == "__main__":
    main()
