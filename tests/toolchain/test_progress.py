from __future__ import annotations

import pytest

from imgcls.system import progress as module
from imgcls.system.progress import hidden_bars, no_bars, progress_bar


def test_a_bar_is_silent_where_there_is_no_terminal(capfd):
    with progress_bar("working", 2) as advance:
        advance(1)
        advance(1)
    assert capfd.readouterr() == ("", "")


@pytest.fixture
def terminal(monkeypatch):
    for name, value in {"FORCE_COLOR": "1", "TERM": "xterm", "COLUMNS": "80"}.items():
        monkeypatch.setenv(name, value)


def test_on_a_terminal_a_bar_counts_its_steps_on_standard_error_and_is_gone_at_the_end(terminal, capfd):
    with progress_bar("working", 7) as advance:
        (bar,) = module._shown
        advance(2)
        advance(3)
        (task,) = bar.tasks
        assert (task.description, task.completed, task.total) == ("working", 5, 7)
        assert bar.live.transient
        bar.refresh()
    assert module._shown == []
    out, err = capfd.readouterr()
    assert out == ""
    assert "working" in err
    assert "5/7" in err


def test_where_none_is_wanted_there_is_none_on_a_terminal_either(terminal, capfd):
    with no_bars(), progress_bar("working", 2) as advance:
        advance(1)
    assert capfd.readouterr() == ("", "")
    with progress_bar("working", 2):
        assert len(module._shown) == 1


@pytest.mark.parametrize("error", [None, ValueError])
def test_bars_are_off_the_screen_while_something_is_printed(terminal, error):
    with progress_bar("outer", 2), progress_bar("inner", 2):
        bars = list(module._shown)
        assert [bar.live.is_started for bar in bars] == [True, True]
        try:
            with hidden_bars():
                assert [bar.live.is_started for bar in bars] == [False, False]
                if error:
                    raise error
        except ValueError:
            pass
        assert [bar.live.is_started for bar in bars] == [True, True]


def test_a_bar_that_ends_leaves_the_others_as_they_are(terminal):
    with progress_bar("outer", 2):
        (outer,) = module._shown
        with pytest.raises(ValueError, match="lost"), progress_bar("inner", 2):
            raise ValueError("lost")
        assert module._shown == [outer]
