"""Work that runs a little ahead in threads: in order, bounded, and no further than it is wanted."""

from __future__ import annotations

import pytest

from imgcls.data.packed import run_ahead


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_results_come_in_order_and_only_a_few_ahead(workers):
    taken = []

    def items():
        for number in range(40):
            taken.append(number)
            yield number

    for count, result in enumerate(run_ahead(lambda number: number**2, items(), workers), 1):
        assert result == (count - 1) ** 2
        assert len(taken) <= count + 2 * workers
        assert len(taken) >= min(40, 2 * workers)
    assert count == len(taken) == 40


def test_without_a_number_there_are_as_many_threads_as_cpus(monkeypatch):
    monkeypatch.setattr("imgcls.data.packed.available_cpus", lambda: 3)
    taken = []
    results = run_ahead(str, (taken.append(number) or number for number in range(40)))
    assert next(results) == "0"
    assert len(taken) == 2 * 3 + 1
    results.close()


@pytest.mark.parametrize("count", [0, 1])
def test_few_items_are_enough(count):
    assert list(run_ahead(str, iter(range(count)))) == [str(number) for number in range(count)]


def test_a_caller_that_stops_or_an_error_leaves_the_rest_undone():
    begun = []

    def work(number):
        begun.append(number)
        if number == 3:
            raise ValueError("three")
        return number

    with pytest.raises(ValueError, match="three"):
        list(run_ahead(work, iter(range(100)), workers=1))
    assert len(begun) <= 3 + 1 + 2
    begun.clear()
    results = run_ahead(work, iter([0] * 100), workers=1)
    next(results)
    results.close()
    assert len(begun) <= 1 + 2
