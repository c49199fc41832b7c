from __future__ import annotations

from imgcls.system.progress import progress_bar


def test_a_bar_is_silent_where_there_is_no_terminal(capfd):
    with progress_bar("working", 2) as advance:
        advance(1)
        advance(1)
    assert capfd.readouterr() == ("", "")
