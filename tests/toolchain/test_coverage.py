from __future__ import annotations

from itertools import pairwise, permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgcls.evaluation.coverage import COVERAGES, risk_coverage

answers = st.lists(st.tuples(st.integers(1, 4).map(lambda level: level / 4), st.booleans()), min_size=1, max_size=6)


def curve(pairs):
    confidence, right = (np.array(column) for column in zip(*pairs, strict=True))
    return risk_coverage(confidence, right)


@given(answers)
def test_the_risks_are_the_mean_over_all_orders_of_equal_confidences(pairs):
    orders = [order for order in permutations(pairs) if all(first[0] >= second[0] for first, second in pairwise(order))]
    wrong = np.array([[not right for _, right in order] for order in orders])
    naive = (wrong.cumsum(1) / np.arange(1, len(pairs) + 1)).mean(0)
    found = curve(pairs)
    np.testing.assert_allclose(found.risks, naive, atol=1e-12)
    assert found.aurc == pytest.approx(naive.mean())
    assert found.coverages[-1] == 1
    assert found.risks[-1] == pytest.approx(np.mean([not right for _, right in pairs]))


def test_a_confidence_that_orders_the_answers_well_has_less_risk_at_less_coverage():
    found = curve([(index / 100, index >= 20) for index in range(100)])  # the 20 least confident are wrong
    assert [point.coverage for point in found.table] == list(COVERAGES)
    accuracies = [point.accuracy for point in found.table]
    assert accuracies == [pytest.approx(share) for share in (0.8, 80 / 95, 80 / 90, 1, 1, 1)]
    assert [point.threshold for point in found.table] == [0, 0.05, 0.1, 0.2, 0.3, 0.5]
    assert found.aurc < 0.2 < curve([(1 - index / 100, index >= 20) for index in range(100)]).aurc


def test_one_answer_has_a_curve_of_one_point():
    found = curve([(0.5, False)])
    assert (found.risks.tolist(), found.aurc) == ([1.0], 1.0)
    assert {point.accuracy for point in found.table} == {0.0}


def test_a_threshold_is_a_point_of_the_curve():
    found = curve([(0.9, True), (0.8, False), (0.8, True), (0.3, False)])
    point = found.at_threshold(0.8)  # both of equal confidence are answered
    assert (point.coverage, point.threshold, point.accuracy) == (0.75, 0.8, pytest.approx(2 / 3))
    assert found.at_threshold(0.95) is None
