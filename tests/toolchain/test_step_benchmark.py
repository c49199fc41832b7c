"""benchmarks/step.py on a tiny network."""

from __future__ import annotations

import sys

from helpers import load_benchmark

step = load_benchmark("step")


def test_both_ways_are_measured_in_processes_of_their_own(monkeypatch, capsys):
    words = ["step.py", "--arch", "cnn", "--image-size", "8", "--batches", "2", "--repeats", "1"]
    monkeypatch.setattr(sys, "argv", words)
    step.main()
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| 2 ")]
    assert [row[1] for row in rows] == ["given back", "kept"]
    assert all(float(row[5].split()[0].replace(",", "")) > 50 for row in rows)  # megabytes of a process with torch
