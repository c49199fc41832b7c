"""What to say of the pictures before a run begins: lines for people, only where something is out of the ordinary.

The limits come from runs of the article's CNN on CIFAR-10, docs/training.md ("Few pictures").
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from imgcls_infer.errors import counted, printable
from imgcls_infer.steps import Size

from imgcls.config import TrainConfig
from imgcls.data.sizes import typical_size
from imgcls.networks.registry import SMALL_PRETRAINED, NetworkRow
from imgcls.shares import FEW as FEW_TESTED
from imgcls.shares import wilson
from imgcls.training.sets import Sets

FEW = 1000
"""Pictures a class, on average, up to which a network from scratch stays behind the linear layer of a pretrained one
that has seen 100: 72 against 83 % on CIFAR-10."""

VERY_FEW = 20
"""Pictures a class with which the result depends on which ones they are, also from pretrained weights."""

TOO_FEW_TO_TUNE = 8
"""Pictures a class below which fine-tuning gains nothing over the last layer alone: 69 and 71 % from 5 a class, 78 and
77 % from 10."""

UNEVEN = 10
"""The largest class has so many times the smallest one's pictures that the loss hardly sees that one."""

SMALL_SIDE, SHRUNK = 64, 4
"""Networks from scratch see at most so many pixels a side. Of pictures with SHRUNK times as many, 15 of 16 pixels are
averaged away; networks for 224 pixels were trained on pictures of 400 to 500."""

FEW_STEPS = 1000
"""The CNN's recipe takes 7,820 steps on CIFAR-10. On the sample of 1,000 pictures 1,280 small steps give 48 %, and the
recipe's 160 large ones 44 %."""

_SMALL_BATCH = 32
_MOST_EPOCHS = 200


@dataclass(frozen=True)
class Facts:
    """What a run has been given.

    counts: pictures to train on, by class. tested: test pictures, 0 without any. seen: the network's input. pictures:
    size of a typical picture, None where none can be read. command: what would train a pretrained network on the same
    pictures, empty where this run starts from weights already. tuned: whether a pretrained body learns on.
    """

    counts: dict[str, int]
    tested: int
    seen: Size
    pictures: Size | None
    batch_size: int
    epochs: int
    command: str
    tuned: bool = False

    @property
    def from_scratch(self) -> bool:
        return bool(self.command)

    @property
    def images(self) -> int:
        return sum(self.counts.values())

    def steps(self, batch_size: int) -> int:
        """Steps an epoch."""
        return -(-self.images // batch_size)


def facts_of(config: TrainConfig, row: NetworkRow, seen: Size, data: Sets) -> Facts:
    """The facts of a run whose pictures are loaded."""
    return Facts(
        counts=dict(zip(data.classes, data.class_counts().tolist(), strict=True)),
        tested=len(data.test.labels) if data.test else 0,
        seen=seen,
        pictures=typical_size(data.folder.paths) if data.folder else None,
        batch_size=config.recipe.batch_size,
        epochs=config.recipe.epochs,
        command="" if config.starts_from_weights else _better(config, row),
        tuned=config.recipe.probe and not config.freeze,
    )


def advice(facts: Facts) -> list[str]:
    """A line for each thing that a user should know before the run begins; none for a large, even set."""
    return [line for line in (_classes(facts), _size(facts), _steps(facts), _likely(facts)) if line]


def _classes(facts: Facts) -> str:
    smallest, largest = (choose(facts.counts, key=lambda name: facts.counts[name]) for choose in (min, max))
    low, high = facts.counts[smallest], facts.counts[largest]
    sizes = f"{low:,} ({printable(smallest)}) to {high:,} ({printable(largest)})" if low < high else f"{low:,}"
    if facts.from_scratch and facts.images < FEW * len(facts.counts):
        return f"{sizes} pictures a class are few for a network from scratch; better: {facts.command}"
    if high >= UNEVEN * low:
        return f"{sizes} pictures a class: uneven; `class_weights` makes the rare classes count as much"
    if low < TOO_FEW_TO_TUNE and facts.tuned:
        return f"{sizes} pictures a class: so few that the last layer alone is as good, in seconds: `freeze`"
    if low < VERY_FEW:
        return f"{sizes} pictures a class: so few that the result depends on which they are; take more where you can"
    return ""


def _size(facts: Facts) -> str:
    if facts.pictures is None or min(facts.seen) > SMALL_SIDE or min(facts.pictures) < SHRUNK * min(facts.seen):
        return ""
    pictures, seen = (f"{width:,} x {height:,}" for height, width in (facts.pictures, facts.seen))
    return f"pictures of {pictures} pixels are seen as {seen}, and details are lost; `image_size` 128 keeps more"


def _steps(facts: Facts) -> str:
    steps = facts.steps(facts.batch_size)
    if not facts.from_scratch or steps * facts.epochs >= FEW_STEPS:
        return ""
    batch = min(facts.batch_size, _SMALL_BATCH)
    small = facts.steps(batch)
    epochs = max(facts.epochs, min(_MOST_EPOCHS, -(-FEW_STEPS // small)))
    options = f"`epochs` {epochs}" if batch == facts.batch_size else f"`batch_size` {batch} `epochs` {epochs}"
    taken = f"{counted(steps, 'step')} an epoch, {steps * facts.epochs:,} in all"
    return f"{taken}, are few for a network from scratch; {options} makes {small * epochs:,}"


def _likely(facts: Facts) -> str:
    if not 0 < facts.tested < FEW_TESTED:
        return ""
    low, high = wilson(0.5, facts.tested)
    tested, wide = counted(facts.tested, "test picture"), f"{50 * (high - low):.0f} points either way"
    return f"{tested} tell the accuracy to within {wide} (95 % interval, in brackets below)"


def _better(config: TrainConfig, row: NetworkRow) -> str:
    """The command that starts from published weights: the network's own, or those of a small network."""
    words = ["imgcls", "train", "--train", str(config.train_dir)]
    if config.split:
        words += ["--split", f"{config.split:g}"]
        words += ["--split-seed", str(config.split_seed)] if config.split_seed else []
    else:
        words += ["--test", str(config.test_dir)] if config.test_dir else ["--no-test"]
    words += ["--exclude", str(config.exclude)] if config.exclude else []
    arch = row.name if row.published else SMALL_PRETRAINED
    output = config.output.with_stem(f"{config.output.stem}-pretrained")
    return printable(shlex.join([*words, "--arch", arch, "--pretrained", "--output", str(output)]))
