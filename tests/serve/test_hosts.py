"""The server answers to its own names alone: a web page cannot reach it under the name of the page's site."""

from __future__ import annotations

import asyncio
import socket

import pytest
from imgcls_serve import hosts
from imgcls_serve.app import create_app
from imgcls_serve.batching import Batching
from imgcls_serve.hosts import KnownHosts, name_of
from imgcls_serve.limits import Limits

from .harness import NAME, connect, running


@pytest.fixture(scope="module")
def client(tiny):
    hosts = ["cats.example.org", "printer"]
    with running(create_app(tiny, NAME, Batching(), Limits(), hosts)) as client:
        yield client


@pytest.mark.parametrize(
    "host",
    [
        *("localhost", "LocalHost:8000", "localhost.", "127.0.0.1", "127.0.0.1:8000", "[::1]", "[::1]:8000"),
        *("192.168.1.5:8000", "[fe80::1]:80", socket.gethostname(), socket.gethostname().partition(".")[0] + ".local"),
        *("cats.example.org", "CATS.example.org:443", "printer:80"),
    ],
)
@pytest.mark.parametrize("path", ["/healthz", "/metrics"])
def test_this_machines_names_any_address_and_those_allowed_are_answered(client, host, path):
    assert client.get(path, headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        *("evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example", "evil.example."),
        *("x@localhost", "evil.example@127.0.0.1", "localhost:80:80", "localhost:x", "[::1", "::1", "", "*"),
        *("dogs.cats.example.org", "127.0.0.1/evil.example", "localhost evil.example"),
    ],
)
@pytest.mark.parametrize("path", ["/", "/healthz", "/nothing"])
def test_any_other_name_is_refused_with_one_line(client, host, path):
    response = client.get(path, headers={"Host": host})
    assert response.status_code == 403
    assert list(response.json()) == ["error"]
    assert "--allowed-host" in response.json()["error"]
    assert "\n" not in response.json()["error"]


def test_a_refused_name_is_told_up_to_a_hundred_letters(client):
    told = "this server does not answer to the host 'evil.example'; --allowed-host adds a name"
    assert client.get("/", headers={"Host": "evil.example"}).json() == {"error": told}
    assert f"'{'x' * 100}'" in client.get("/", headers={"Host": "x" * 101}).json()["error"]


def test_a_refused_post_is_not_read(client):
    response = client.post("/predict", content=b"x", headers={"Host": "evil.example"})
    assert response.status_code == 403


def test_old_http_without_a_host_is_answered_and_two_hosts_are_not(client):
    hosts = b"Host: evil.example\r\nHost: localhost\r\n"
    for lines, statuses in ((b"", [b"200"]), (hosts, [b"400", b"403"])):  # by the parser, or by the server
        with connect(client) as connection:
            connection.sendall(b"GET /healthz HTTP/1.0\r\n" + lines + b"\r\n")
            assert connection.recv(65536).split()[1] in statuses


@pytest.mark.parametrize(
    "hosts", [[b"localhost", b"evil.example"], [b"evil.example", b"localhost"], [b"localhost"] * 2]
)
def test_two_hosts_are_refused_whichever_comes_first_and_whatever_the_parser_lets_through(hosts):
    sent = []

    async def app(scope, receive, send):
        raise AssertionError("it was let in")

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "headers": [(b"host", host) for host in hosts]}
    asyncio.run(KnownHosts(app, [])(scope, None, send))
    assert sent[0]["status"] == 403


def test_a_star_allows_any_name(tiny):
    with running(create_app(tiny, NAME, Batching(), Limits(), ["*"])) as client:
        assert client.get("/healthz", headers={"Host": "evil.example"}).status_code == 200


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("Cats.Example.org.:80", "cats.example.org"),
        ("[::1]:8000", "::1"),
        ("a b", None),
        ("http://a", None),
        ("", None),
    ],
)
def test_a_name_is_a_host_without_its_port(host, name):
    assert name_of(host) == name


@pytest.mark.parametrize("hostname", ["Pi", "pi", "Pi.Example.Org"])
def test_a_machine_is_called_by_its_name_and_by_the_first_part_of_it_in_multicast_dns(monkeypatch, hostname):
    monkeypatch.setattr("socket.gethostname", lambda: hostname)
    assert hosts._own_names() == {"localhost", hostname.lower(), "pi.local"}
