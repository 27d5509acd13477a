"""Tunnels for tests: the fixtures `tunnel` and `session_tunnel`, and `relay_options` for what they have in common.

    def test_webhook(tunnel, app):
        t = tunnel(app.port)
        provider.register(t.url + "/hooks")
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from relay._tunnel import Tunnel, tunnel as new_tunnel

TunnelFactory = Callable[..., Tunnel]
"""What the fixtures give: called as `relay.tunnel`, it returns a tunnel that is open."""


@pytest.fixture(scope="session")
def relay_options() -> dict[str, Any]:
    """Arguments of `relay.tunnel` for every tunnel of this run. Define a fixture of this name to have your own."""
    return {}


@pytest.fixture
def tunnel(relay_options: dict[str, Any]) -> Iterator[TunnelFactory]:
    """Opens tunnels that are closed at the end of the test: `t = tunnel(3000)`."""
    with _closing(relay_options) as factory:
        yield factory


@pytest.fixture(scope="session")
def session_tunnel(relay_options: dict[str, Any]) -> Iterator[TunnelFactory]:
    """As `tunnel`; the tunnels are closed at the end of the run."""
    with _closing(relay_options) as factory:
        yield factory


@contextmanager
def _closing(common: dict[str, Any]) -> Iterator[TunnelFactory]:
    with ExitStack() as tunnels:

        def factory(target: int | str, **options: Any) -> Tunnel:
            options = {**common, **options}
            # A name that an earlier test has had could still be sent what was meant for that test.
            options.setdefault("random", options.get("subdomain") is None)
            return tunnels.enter_context(new_tunnel(target, **options))

        yield factory
