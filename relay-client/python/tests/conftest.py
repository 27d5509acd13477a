"""A service of one's own, and the way to the relay that TEST_RELAY names: a JSON object of `relay.tunnel` arguments."""

from __future__ import annotations

import http.server
import json
import os
import socket
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

import relay

pytest_plugins = "pytester"

WAY: dict[str, Any] = json.loads(os.environ["TEST_RELAY"])


@pytest.fixture(scope="session")
def relay_options() -> dict[str, Any]:
    return WAY


class Echo(http.server.BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture(scope="session")
def port() -> Iterator[int]:
    """Where a service echoes."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Echo) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


@pytest.fixture
def closed_port() -> Iterator[int]:
    """Where nothing listens, and nobody else will."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


@dataclass(frozen=True)
class Answer:
    status: int
    body: bytes
    relay_error: str | None


def post(tunnel: relay.Tunnel, path: str, body: bytes = b"") -> Answer:
    """Sends a webhook, as a provider would."""
    context = ssl.create_default_context(cafile=tunnel.ca_file)
    request = urllib.request.Request(tunnel.url + path, data=body, method="POST")
    try:
        with urllib.request.urlopen(request, context=context, timeout=30) as answer:
            return Answer(answer.status, answer.read(), answer.headers["Relay-Error"])
    except urllib.error.HTTPError as error:
        with error:
            return Answer(error.code, error.read(), error.headers["Relay-Error"])


@pytest.fixture(scope="session", autouse=True)
def names_resolve() -> Iterator[None]:
    """The relay's names lead to this machine, as an entry of a name server would have it."""
    real = socket.getaddrinfo

    def getaddrinfo(host: Any, *arguments: Any, **more: Any) -> Any:
        return real("127.0.0.1" if str(host).endswith(".test") else host, *arguments, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", getaddrinfo)
        yield
