"""The names that requests may call this server by: a guard against DNS rebinding.

A browser lets a web page read answers from its own site alone. But a site can point its name at this machine for a
while; its page's requests then arrive here, with the site's name in the Host header. So the server, which asks for no
login, answers only to names that it knows. An address needs no such check: nobody can point it at another machine.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Iterable
from functools import lru_cache
from typing import TYPE_CHECKING

from imgcls_infer.errors import printable

from imgcls_serve.strict_json import StrictJSONResponse

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

ANY = "*"
_HOST = re.compile(r"(?:\[([0-9a-f:.]+)\]|([a-z0-9._-]+?)\.?)(?::[0-9]{1,5})?", re.IGNORECASE)


def name_of(host: str) -> str | None:
    """The name or address in a Host header, in lower case, without port, brackets and final dot, or None."""
    match = _HOST.fullmatch(host)
    return (match[1] or match[2]).lower() if match else None


class KnownHosts:
    """ASGI middleware: 403 for requests that call this server by a name that is neither this machine's nor in `names`.

    names: as `name_of` gives them; ANY allows every name. A request of HTTP/1.0 without a Host is let in: no browser
    sends one.
    """

    def __init__(self, app: ASGIApp, names: Iterable[str]) -> None:
        self.app = app
        self._names = {*_own_names(), *names}
        self._known = lru_cache(256)(self._is_known)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            hosts = [value for name, value in scope["headers"] if name == b"host"]
            if hosts and not (len(hosts) == 1 and self._known(hosts[0])):
                host = printable(hosts[0].decode("latin-1")[:100])
                error = f"this server does not answer to the host {host!r}; --allowed-host adds a name"
                await StrictJSONResponse({"error": error}, 403)(scope, receive, send)
                return
        await self.app(scope, receive, send)

    def _is_known(self, host: bytes) -> bool:
        name = name_of(host.decode("latin-1"))
        return ANY in self._names or (name is not None and (name in self._names or _is_address(name)))


def _own_names() -> set[str]:
    """localhost and the machine's name, also as in multicast DNS; found without asking the network."""
    name = socket.gethostname().lower()
    return {"localhost", name, f"{name.partition('.')[0]}.local"}


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
