from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgcls.errors import DataError
from imgcls.evaluation.separation import accepted_count, roc, separation

INFINITY = float("inf")

few_levels = st.integers(-3, 3).map(lambda level: level / 4)  # many ties
scores = st.lists(st.one_of(few_levels, st.floats(-4, 4), st.sampled_from([INFINITY, -INFINITY])), min_size=1)


@given(scores, scores)
def test_the_auroc_is_the_share_of_pairs_in_order_and_half_the_ties(known, unknown):
    pairs = list(product(known, unknown))
    wins = sum(1.0 if other > own else 0.5 if other == own else 0.0 for own, other in pairs)
    assert separation(known, unknown).auroc == wins / len(pairs)


@given(scores, scores)
def test_the_threshold_is_the_lowest_that_accepts_95_percent_of_the_known(known, unknown):
    found = separation(known, unknown)
    accepting = [score for score in known if 100 * sum(own <= score for own in known) >= 95 * len(known)]
    assert found.threshold == min(accepting)
    assert found.recall == sum(own <= found.threshold for own in known) / len(known) >= 0.95
    assert found.fpr95 == sum(other <= found.threshold for other in unknown) / len(unknown)
    assert (found.known, found.unknown) == (len(known), len(unknown))


@pytest.mark.parametrize(("count", "share", "accepted"), [(100, 0.07, 7), (20, 0.95, 19), (21, 0.95, 20), (3, 0.0, 1)])
def test_a_share_that_rounds_up_in_binary_accepts_no_picture_more(count, share, accepted):
    assert accepted_count(count, share) == accepted


@given(scores, scores)
def test_exchanged_and_negated_groups_have_the_same_auroc(known, unknown):
    other_way = separation([-score for score in unknown], [-score for score in known])
    assert separation(known, unknown).auroc == other_way.auroc


@given(scores, scores)
def test_the_area_under_the_roc_is_the_auroc_and_it_rises_from_corner_to_corner(known, unknown):
    across, up = roc(known, unknown)
    assert np.diff(across) @ (up[1:] + up[:-1]) / 2 == pytest.approx(separation(known, unknown).auroc, abs=1e-12)
    assert (across[0], up[0], across[-1], up[-1]) == (0, 0, 1, 1)
    assert (np.diff(across) >= 0).all()
    assert (np.diff(up) >= 0).all()


@given(scores, scores)
def test_the_point_of_fpr95_lies_on_the_roc(known, unknown):
    found = separation(known, unknown)
    assert (found.fpr95, found.recall) in set(zip(*(axis.tolist() for axis in roc(known, unknown)), strict=True))


@pytest.mark.parametrize(
    ("known", "unknown", "auroc", "fpr95"),
    [
        ([1, 2, 3], [4, 5], 1.0, 0.0),
        ([4, 5], [1, 2, 3], 0.0, 1.0),
        ([1, 1], [1, 1, 1], 0.5, 1.0),
        (range(20), [18, 18.5, 19], 0.95, 1 / 3),  # 19 of 20 known ones are accepted, up to 18
    ],
)
def test_worked_examples(known, unknown, auroc, fpr95):
    found = separation(list(known), unknown)
    assert (found.auroc, found.fpr95) == (pytest.approx(auroc), fpr95)


def test_a_group_without_pictures_and_a_score_that_is_no_number_are_errors():
    with pytest.raises(DataError, match="no unknown pictures"):
        separation([1.0], [])
    with pytest.raises(DataError, match="known pictures is not a number"):
        separation([1.0, float("nan")], [1.0])
