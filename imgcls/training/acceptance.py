"""When a finished run's answers count: a temperature, and limits of probability and novelty, from held-out answers.

Called by the leading process, with the kept weights in the network. The temperature goes into the last layer, so that
logits and probabilities are consistent in every format without a node of its own.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from imgcls_infer.errors import counted
from imgcls_infer.manifest import Acceptance
from torch import Tensor

from imgcls.checkpoint import StateDict
from imgcls.evaluation import calibration_bins, expected_calibration_error
from imgcls.networks.novelty import combined, outside, subspace, tensors
from imgcls.training.calibration import fitted_temperature, novelty_limit, probability_limit
from imgcls.training.held_out import HeldOut, answers_on, held_out_answers, training_features
from imgcls.training.run import Run

FEWEST = 20
"""Held-out pictures below which nothing is fitted: 95 % of fewer is all of them."""

_REFERENCE = 2000  # training pictures whose features the novelty is fitted to
_CHECKED = 8  # pictures on which a divided last layer is compared
_ROUNDING = 1e-5  # of the largest logit


class Fitted(NamedTuple):
    """What goes into a checkpoint. acceptance: None where no rule could be fitted. calibration: for the manifest's
    `training`. novelty: the tensors of the network's Novelty; None where it has none."""

    acceptance: Acceptance | None = None
    calibration: dict[str, float] | None = None
    novelty: StateDict | None = None


NOTHING = Fitted()


def fit(run: Run) -> Fitted:
    """Fit what the held-out pictures allow, divide the last layer by the temperature, and say what was done."""
    answers = held_out_answers(run)
    if answers is None:
        return NOTHING
    count = len(answers.labels)
    if count < FEWEST:
        run.report(f"{counted(count, 'held-out picture')} are too few to fit when an answer counts; it takes {FEWEST}")
        return NOTHING
    temperature = _cooled(run, fitted_temperature(answers.logits, answers.labels))
    found = _calibration(answers, temperature)
    answers = answers._replace(logits=answers.logits / temperature)
    run.report(
        f"calibrated on {counted(count, 'held-out picture')}: temperature {temperature:.3g}, "
        f"expected calibration error {found['ece_before']:.1%} before and {found['ece_after']:.1%} after"
    )
    probability = _probability_rule(run, answers)
    novelty, rule = _novelty_rule(run, answers) if run.config.novelty else (None, {})
    acceptance = Acceptance(**probability, **rule, pictures=count) if probability or rule else None
    return Fitted(acceptance, found, novelty)


def _calibration(answers: HeldOut, temperature: float) -> dict[str, float]:
    before, after = (
        expected_calibration_error(calibration_bins(answers.logits / divisor, answers.labels))
        for divisor in (1, temperature)
    )
    count = len(answers.labels)
    return {"temperature": temperature, "ece_before": before, "ece_after": after, "pictures": count}


# --- the temperature ---


@torch.no_grad()
def _cooled(run: Run, temperature: float) -> float:
    """Divide the last layer by the temperature. Returns 1 where that does not divide the logits, and says so."""
    layer, rows = run.model.classifier.network.get_submodule(run.row.head), run.data.train_rows[:_CHECKED]
    kept, before = [parameter.clone() for parameter in layer.parameters()], answers_on(run, rows).logits
    for parameter in layer.parameters():
        parameter.div_(temperature)
    difference = (answers_on(run, rows).logits * temperature - before).abs().max()
    if difference <= _ROUNDING * before.abs().max():
        return temperature
    for parameter, old in zip(layer.parameters(), kept, strict=True):
        parameter.copy_(old)
    run.report(f"no temperature: the logits of {run.row.name} are not those of its last layer, {run.row.head}")
    return 1.0


# --- the rules ---


def _reference(run: Run, answers: HeldOut) -> Tensor | None:
    """Features [N, D] of training pictures; None where the network has none. Those of pictures that were left out by
    parts are known already."""
    if answers.features is None or answers.features.ndim != 2:
        return None
    if answers.folds is not None:
        return answers.features
    found = training_features(run, _REFERENCE)
    return None if found is None else found[0]


def _probability_rule(run: Run, answers: HeldOut) -> dict[str, Any]:
    """Fields of an Acceptance; none where no limit reaches the share that was asked for."""
    share = run.config.right_share
    confidence, predicted = (found.numpy() for found in answers.logits.double().softmax(1).max(1))
    found = probability_limit(confidence, predicted == answers.labels.numpy(), share)
    if found is None:
        run.report(f"unsure: no limit of the probability leaves answers of which {share:.0%} are right; none is set")
        return {}
    limit, coverage = found
    run.report(f"unsure: below a probability of {limit:.3f}, so that {share:.0%} of the other {coverage:.0%} are right")
    return {"probability": limit, "right_share": share, "coverage": coverage}


def _novelty_rule(run: Run, answers: HeldOut) -> tuple[StateDict | None, dict[str, Any]]:
    """The tensors, and fields of an Acceptance; nothing where the network has no features."""
    share, classes = run.config.known_share, answers.logits.shape[1]
    reference = _reference(run, answers)
    if reference is None:
        run.report(f"no novelty: {run.row.name} does not end in a linear layer")
        return None, {}
    basis = subspace(reference, classes)
    sines = _sines(answers, basis)
    found = tensors(basis, sines, answers.logits)
    limit = novelty_limit(combined(sines, answers.logits, found["logit"]).numpy(), share)
    run.report(
        f"none of these: above a novelty of {limit:.3f}, which {share:.0%} of pictures of the classes stay below"
    )
    return found, {"novelty": limit, "known_share": share}


def _sines(answers: HeldOut, basis: Tensor) -> Tensor:
    """How far outside the training pictures' subspace each held-out picture is, float32 [M].

    basis: of the subspace of all. Pictures that were left out together are measured against that of the others.
    """
    assert answers.features is not None
    if answers.folds is None:
        return outside(answers.features, basis)
    found = torch.empty(len(answers.labels))
    for fold in answers.folds.unique():
        own = answers.folds == fold
        others = subspace(answers.features[~own], answers.logits.shape[1])
        found[own] = outside(answers.features[own], others)
    return found
