"""systemd learns when requests are answered, and not before."""

from __future__ import annotations

import socket

import pytest

from .harness import serving


@pytest.mark.parametrize("prefix", ["", "@"], ids=["path", "abstract"])
def test_a_started_server_says_that_it_is_ready(prefix, tiny, tmp_path, monkeypatch):
    address = prefix + str(tmp_path / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(address.replace("@", "\0", 1))
        systemd.settimeout(10)
        with serving(tiny) as client:
            assert systemd.recv(100) == b"READY=1"
            assert client.get("/healthz").status_code == 200


def test_a_systemd_that_does_not_listen_is_no_reason_to_stop(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nobody"))
    with serving(tiny) as client:
        assert client.get("/healthz").status_code == 200
