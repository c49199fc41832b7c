"""Which way of explaining an answer finds what the network goes by: python benchmarks/saliency.py CHECKPOINT --data DIR

Deletion: the picture's pixels become grey, those of the highest evidence first. Insertion: they replace a blurred
picture's. Both are the mean probability of the network's own answer on the way (Petsiuk et al., RISE, 2018): the lower
the deletion and the higher the insertion, the better the map. Below are the changes that random weights make to a map,
as the mean correlation of both: a map that stays the same explains the picture, not the network (Adebayo et al., Sanity
Checks for Saliency Maps, 2018).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from imgcls.checkpoint import load_checkpoint
from imgcls.data.folder import scan_folder
from imgcls.data.packed import decode_all
from imgcls.evaluation.saliency import coarse, random_masks, saliency_maps
from imgcls.networks.classifier import Classifier

STEPS = 10  # shares of the pixels that are removed
BATCH = 12
Method = Callable[[Classifier, Tensor, Tensor], Tensor]  # uint8 [N, H, W, 3] and classes [N] -> maps [N, H, W]


def gradients(classifier: Classifier, shown: Tensor, classes: Tensor) -> Tensor:
    leaf = shown.detach().requires_grad_()
    logits = classifier.answers(leaf)[0].log_softmax(1)
    return torch.autograd.grad(logits.gather(1, classes[:, None]).sum(), leaf)[0]


def smooth(maps: Tensor) -> Tensor:
    return coarse(maps[:, None], 16)[:, 0]


def random_map(classifier: Classifier, images: Tensor, classes: Tensor) -> Tensor:
    return smooth(torch.rand(images.shape[:3], generator=torch.Generator().manual_seed(1)))


def input_times_gradient(classifier: Classifier, images: Tensor, classes: Tensor) -> Tensor:
    x = classifier.normalise(images)
    return smooth((gradients(classifier, x, classes) * (x - coarse(x, 4))).sum(1))


def integrated_gradients(classifier: Classifier, images: Tensor, classes: Tensor) -> Tensor:
    x = classifier.normalise(images)
    rest = coarse(x, 4)
    total = sum(gradients(classifier, rest + (x - rest) * (step + 0.5) / 16, classes) for step in range(16))
    return smooth(((x - rest) * total / 16).sum(1))


def smooth_grad(classifier: Classifier, images: Tensor, classes: Tensor) -> Tensor:
    x, generator = classifier.normalise(images), torch.Generator().manual_seed(0)
    level = 0.1 * (x.max() - x.min())
    noisy = (x + level * torch.randn(x.shape, generator=generator) for _ in range(16))
    return smooth(sum(gradients(classifier, one, classes).abs() for one in noisy).sum(1))


def grad_cam(classifier: Classifier, images: Tensor, classes: Tensor) -> Tensor:
    """Of the last feature map [N, C, H, W] that a layer gives."""
    maps: list[Tensor] = []

    def keep(module: nn.Module, inputs: object, output: object) -> None:
        if isinstance(output, Tensor) and output.ndim == 4 and min(output.shape[2:]) > 1:
            maps.append(output)

    hooks = [module.register_forward_hook(keep) for module in classifier.modules() if not list(module.children())]
    logits = classifier.answers(classifier.normalise(images).requires_grad_())[0]
    for hook in hooks:
        hook.remove()
    if not maps:
        raise click.ClickException("no layer gives a feature map")
    slopes = torch.autograd.grad(logits.gather(1, classes[:, None]).sum(), maps[-1])[0].mean((2, 3), keepdim=True)
    return F.interpolate((maps[-1] * slopes).sum(1, keepdim=True).relu(), images.shape[1:3], mode="bilinear")[:, 0]


def rise(classifier: Classifier, images: Tensor, classes: Tensor) -> Tensor:
    """The mean of the masks, weighted by the probability under each."""
    x = classifier.normalise(images)
    rest, masks = coarse(x, 4), torch.stack(list(random_masks(images.shape[1:3], 64)))
    seen = torch.stack([probability(classifier, rest + (x - rest) * mask, classes) for mask in masks])
    return torch.einsum("mn,mhw->nhw", seen - seen.mean(0), masks - masks.mean(0))


def ours(classifier: Classifier, images: Tensor, classes: Tensor) -> Tensor:
    return torch.from_numpy(saliency_maps(classifier, images, classes))


METHODS: dict[str, Method] = {
    "masks and regression (imgcls)": ours,
    "random squares": random_map,
    "Grad-CAM": grad_cam,
    "integrated gradients": integrated_gradients,
    "RISE": rise,
    "input x gradient": input_times_gradient,
    "SmoothGrad": smooth_grad,
}


@torch.no_grad()
def probability(classifier: Classifier, shown: Tensor, classes: Tensor) -> Tensor:
    return classifier.answers(shown)[0].softmax(1).gather(1, classes[:, None])[:, 0]


def curves(classifier: Classifier, images: Tensor, classes: Tensor, maps: Tensor) -> tuple[Tensor, Tensor]:
    """Deletion and insertion of each picture, [N] each."""
    x = classifier.normalise(images)
    grey, blurred = x.mean((2, 3), keepdim=True), coarse(x, 7)
    rank = maps.flatten(1).argsort(1, descending=True).argsort(1).view(-1, 1, *maps.shape[1:])
    first = [rank < share * rank[0].numel() / STEPS for share in range(STEPS + 1)]
    gone = torch.stack([probability(classifier, torch.where(chosen, grey, x), classes) for chosen in first])
    back = torch.stack([probability(classifier, torch.where(chosen, x, blurred), classes) for chosen in first])
    return torch.trapezoid(gone, dim=0) / STEPS, torch.trapezoid(back, dim=0) / STEPS


def randomised(classifier: Classifier) -> Classifier:
    """The same classifier with the numbers of each weight shuffled."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in classifier.parameters():
            weight.copy_(weight.flatten()[torch.randperm(weight.numel(), generator=generator)].view_as(weight))
    return classifier


def likeness(first: Tensor, second: Tensor) -> float:
    """The mean correlation, 0..1, of maps that are not the same everywhere."""
    pairs = zip(first.flatten(1).numpy(), second.flatten(1).numpy(), strict=True)
    found = [abs(np.corrcoef(one, two)[0, 1]) for one, two in pairs if one.std() > 0 and two.std() > 0]
    return float(np.mean(found)) if found else 0.0


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--data", type=click.Path(path_type=Path), default="data/sample/test", show_default=True)
@click.option("--pictures", type=click.IntRange(2), default=100, show_default=True)
@click.option("--only", multiple=True, help="Methods whose name starts so.")
def main(checkpoint: Path, data: Path, pictures: int, only: tuple[str, ...]) -> None:
    """Measure the methods on the first pictures of each class, on one thread."""
    torch.set_num_threads(1)
    loaded = load_checkpoint(checkpoint)
    classifier, other = loaded.classifier(), randomised(loaded.classifier())
    paths = scan_folder(data, loaded.manifest.classes).spread()[:pictures]
    images = torch.from_numpy(np.stack(list(decode_all(paths, loaded.manifest.preprocessing))))
    batches = images.split(BATCH)
    with torch.no_grad():
        answers = [classifier(batch)[0].argmax(1) for batch in batches]
    click.echo("| method | deletion | insertion | difference | likeness with random weights | seconds a picture |")
    click.echo("|---|---:|---:|---:|---:|---:|")
    for name, method in METHODS.items():
        if only and not name.startswith(only):
            continue
        start = time.process_time()
        maps = [method(classifier, *pair).detach() for pair in zip(batches, answers, strict=True)]
        seconds = (time.process_time() - start) / len(images)
        found = [curves(classifier, *row) for row in zip(batches, answers, maps, strict=True)]
        gone, back = (torch.cat(parts) for parts in zip(*found, strict=True))
        error = (back - gone).std().item() / len(images) ** 0.5
        alike = likeness(maps[0], method(other, batches[0], answers[0]).detach())
        click.echo(
            f"| {name} | {gone.mean():.3f} | {back.mean():.3f} | {(back - gone).mean():.3f} +- {error:.3f} "
            f"| {alike:.2f} | {seconds:.3f} |"
        )


if __name__ == "__main__":
    main()
