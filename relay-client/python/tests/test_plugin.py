"""The fixtures, as a project uses them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import requests
from conftest import WAY, post

from relay.pytest_plugin import TunnelFactory

DOCS = Path(__file__).parents[3] / "docs/python.md"


@pytest.mark.parametrize("number", range(20))
def test_side_by_side(tunnel: TunnelFactory, port: int, number: int) -> None:
    t = tunnel(port)
    body = f"to number {number}".encode()
    assert post(t, f"/{number}", body).body == body
    assert [exchange.path for exchange in (t.wait_for(), *t.exchanges)] == [f"/{number}"] * 2


def test_several_in_one_test(tunnel: TunnelFactory, port: int) -> None:
    tunnels = [tunnel(port) for _ in range(3)]
    assert len({t.url for t in tunnels}) == 3
    assert {post(t, "/", b"x").status for t in tunnels} == {200}


PROJECT = """
import json, os, pytest, relay

@pytest.fixture(scope="session")
def relay_options():
    return json.loads(os.environ["TEST_RELAY"])

tunnels = []

def test_first(tunnel, session_tunnel):
    tunnels.extend([tunnel(3000), session_tunnel(3000)])

def test_second():
    with pytest.raises(relay.RelayError, match="not open"):
        tunnels[0].wait_for("/x")
    with pytest.raises(relay.TimedOut):
        tunnels[1].wait_for("/x", timeout=0.01)
    print("pid", tunnels[1].pid)

def test_third(tunnel):
    tunnel(3000, subdomain="a.b")
"""


def test_tunnels_end_with_their_scope(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(PROJECT)
    result = pytester.runpytest_inprocess("-s", "-p", "no:xdist")
    result.assert_outcomes(passed=2, errors=0, failed=1)
    result.stdout.fnmatch_lines(["*relay.*Usage: *a.b*"])
    assert WAY["token"] not in result.stdout.str()


BLOCKS = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)

COMMON = """
import pytest
from types import SimpleNamespace

@pytest.fixture
def app():
    return SimpleNamespace(port={port})
"""


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_the_documentation_says_what_works(
    block: str, port: int, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each example as it stands there, but for the port, with the relay in the configuration."""
    assert requests, "loaded here, because pytester forgets what its runs load"
    flags = {"relay": "relay", "relay_addr": "relay_addr", "ca_file": "relay_ca", "token": "token"}
    config = pytester.path / "relay.toml"
    config.write_text("".join(f'{flags[name]} = "{value}"\n' for name, value in WAY.items()))
    monkeypatch.setenv("RELAY_CONFIG", str(config))
    block = block.replace("3000", str(port))
    if "def " in block:
        pytester.makeconftest(COMMON.format(port=port))
        pytester.makepyfile(block)
        outcome = pytester.runpytest_inprocess("-p", "no:xdist").parseoutcomes()
        assert outcome == ({"passed": 1} if "def test_" in block else {})
    else:
        exec(block, {})
