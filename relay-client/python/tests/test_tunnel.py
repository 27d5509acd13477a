"""Tunnels as a program uses them."""

from __future__ import annotations

import asyncio
import logging
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from http.server import ThreadingHTTPServer
from logging.handlers import QueueHandler
from pathlib import Path
from typing import Any

import pytest
from conftest import WAY, Echo, post

import relay


def open_tunnel(port: int, **options: Any) -> relay.Tunnel:
    options = {**WAY, **options}
    options.setdefault("random", "subdomain" not in options)
    return relay.tunnel(port, **options)


def is_running(pid: int) -> bool:
    """Whether a process runs; one that has ended and whom nobody has waited for does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def wait_for_end(pid: int) -> None:
    deadline = time.monotonic() + 20
    while is_running(pid):
        assert time.monotonic() < deadline, f"the relay client {pid} has outlived its owner"
        time.sleep(0.01)


def test_a_webhook_reaches_the_service(port: int) -> None:
    with open_tunnel(port, subdomain="webhooks") as t:
        assert post(t, "/hooks?a=1", b"hello").body == b"hello"
        exchange = t.wait_for("/hooks", method="POST", status=200)
        assert (exchange.path, exchange.error, t.exchanges) == ("/hooks?a=1", None, [exchange])
        assert exchange.id and exchange.duration_ms > 0
        assert t.name == "webhooks" and t.url.startswith("https://webhooks.")
        assert t.upstream == f"http://localhost:{port}" and t.relay == WAY["relay"]
        assert t.error is None and repr(t) == f"<relay.Tunnel {t.url}>"


def test_without_with(port: int) -> None:
    t = open_tunnel(port)
    assert repr(t) == "<relay.Tunnel not open>"
    with pytest.raises(relay.RelayError, match="not open"):
        print(t.url)
    assert t.open() is t
    pid = t.pid
    with pytest.raises(relay.RelayError, match="opened once"):
        t.open()
    assert post(t, "/", b"x").body == b"x"
    t.close()
    t.close()
    assert not is_running(pid) and t.error is None
    assert t.wait_for("/").status == 200, "what was seen stays"
    with pytest.raises(relay.RelayError, match="not open"):
        t.wait_for("/other")


def test_closing_what_was_never_open(port: int) -> None:
    t = open_tunnel(port)
    t.close()
    with pytest.raises(relay.RelayError, match="opened once"):
        t.open()


def test_the_service_is_down(closed_port: int) -> None:
    with open_tunnel(closed_port) as t:
        answer = post(t, "/hooks")
        assert (answer.status, answer.relay_error) == (502, "upstream-refused")
        assert t.wait_for("/hooks").error == "upstream-refused"


def test_a_service_that_starts_later() -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Echo, bind_and_activate=False) as server:
        server.server_bind()
        with open_tunnel(server.server_port) as t:
            assert post(t, "/").status == 502
            server.server_activate()
            thread = threading.Thread(target=server.serve_forever)
            thread.start()
            assert post(t, "/", b"now").body == b"now"
            server.shutdown()
            thread.join()


def test_waiting_for_exchanges(port: int) -> None:
    with open_tunnel(port) as t:
        post(t, "/a?x=1")
        first = t.wait_for("/a")
        assert t.wait_for("/a?x=1") == t.wait_for("/a*") == t.wait_for("*") == t.wait_for() == first
        with pytest.raises(relay.TimedOut, match=r"no GET /b within 0.01 s; the last were: POST /a\?x=1 200"):
            t.wait_for("/b", method="GET", timeout=0.01)
        with pytest.raises(TimeoutError):
            t.wait_for("/a?x=2", timeout=0.01)
        seen: list[relay.Exchange] = []
        waiter = threading.Thread(target=lambda: seen.append(t.wait_for("/a", after=first)))
        waiter.start()
        post(t, "/b")
        post(t, "/a")
        waiter.join()
        assert seen[0].path == "/a" and seen[0] != first


def test_only_the_last_exchanges_are_kept() -> None:
    t = relay.tunnel(3000)
    for i in range(1_500):
        t._take({"event": "exchange", "id": str(i), "method": "GET", "path": "/", "unheard_of": 1})
    assert [t.exchanges[0].id, t.exchanges[-1].id, len(t.exchanges)] == ["500", "1499", 1_000]


def test_a_name_that_is_taken(port: int) -> None:
    with open_tunnel(port, subdomain="taken") as t:
        with pytest.raises(relay.NameTaken, match="taken") as caught:
            open_tunnel(port, subdomain="taken").open()
        assert caught.value.exit_code == 4
        with open_tunnel(port, subdomain="taken", takeover=True):
            with pytest.raises(relay.NameLost):
                t.wait_for("/never")
            assert isinstance(t.error, relay.NameLost)


def test_a_token_that_is_not_accepted(port: int) -> None:
    with pytest.raises(relay.Unauthorized, match="token") as caught:
        open_tunnel(port, token="rly_nobody").open()
    assert caught.value.exit_code == 3
    assert "rly_nobody" not in str(caught.value)


def test_a_relay_that_cannot_be_reached(port: int, closed_port: int) -> None:
    with pytest.raises(relay.Unreachable, match=str(closed_port)) as caught:
        open_tunnel(port, relay_addr=f"127.0.0.1:{closed_port}").open()
    assert caught.value.exit_code == 5


def test_a_relay_that_says_nothing(port: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        t = open_tunnel(port, relay_addr=address, ready_within=0.2)
        with pytest.raises(relay.TimedOut, match="no tunnel after 0.2 s"):
            t.open()
        assert not is_running(t.pid)


@pytest.mark.parametrize("options", [{"subdomain": "a.b"}, {"upstream_protocol": "h3"}, {"ca_file": "/nowhere"}])
def test_arguments_that_are_wrong(port: int, options: dict[str, str]) -> None:
    with pytest.raises(relay.Usage, match=next(iter(options.values()))) as caught:
        open_tunnel(port, **options).open()
    assert caught.value.exit_code == 2


def test_no_argument_is_taken_for_a_flag() -> None:
    with pytest.raises(relay.Usage, match="--help"):
        relay.tunnel("--help", **WAY).open()


def test_the_token_is_in_no_command_line(port: int) -> None:
    with open_tunnel(port) as t:
        assert WAY["token"].encode() not in Path(f"/proc/{t.pid}/cmdline").read_bytes()


def test_the_client_is_killed(port: int) -> None:
    with open_tunnel(port) as t:
        os.kill(t.pid, signal.SIGKILL)
        with pytest.raises(relay.RelayError, match="ended by signal 9") as caught:
            t.wait_for("/never")
        assert caught.value.exit_code == -9 and t.error is caught.value


def test_an_error_in_the_block_ends_the_tunnel(port: int) -> None:
    with pytest.raises(ZeroDivisionError):
        with open_tunnel(port) as t:
            raise ZeroDivisionError
    assert not is_running(t.pid)


def test_closing_does_not_wait_for_ever(port: int) -> None:
    with open_tunnel(port) as t:
        # It cannot hear that it should end.
        os.kill(t.pid, signal.SIGSTOP)
    assert not is_running(t.pid)


OWNER = """
import os, sys, json, relay
t = relay.tunnel(3000, random=True, **json.loads(os.environ["TEST_RELAY"])).open()
print(t.pid, flush=True)
{then}
"""


@pytest.mark.parametrize(
    "then",
    ["sys.stdin.read()", "sys.exit(3)", "1 / 0", "os._exit(0)", "os.abort()", "os.kill(os.getpid(), 15)"],
    ids=["killed", "exit", "exception", "hard-exit", "abort", "terminated"],
)
def test_a_client_does_not_outlive_its_owner(then: str) -> None:
    command = [sys.executable, "-c", OWNER.format(then=then)]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, **pipes) as owner:
        assert owner.stdout is not None
        client = int(owner.stdout.readline())
        if "stdin" in then:
            owner.kill()
    wait_for_end(client)


FORK = """
import os, sys, json, relay
with relay.tunnel(3000, random=True, **json.loads(os.environ["TEST_RELAY"])) as t:
    child = os.fork()
    if child == 0:
        sys.exit(7)
    _, status = os.waitpid(child, 0)
    print(os.waitstatus_to_exitcode(status), t.error)
"""


def test_a_fork_leaves_the_tunnel_to_its_parent() -> None:
    command = [sys.executable, "-W", "ignore", "-c", FORK]
    assert subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout == "7 None\n"


CHILD = """
import multiprocessing, os, sys, json, relay

def child(pipe):
    print(os.getpid(), t.url, t.exchanges, flush=True)
    pipe.recv()

t = relay.tunnel(3000, random=True, **json.loads(os.environ["TEST_RELAY"])).open()
print(t.pid, flush=True)
here, there = multiprocessing.get_context("fork").Pipe()
multiprocessing.get_context("fork").Process(target=child, args=[there]).start()
sys.stdin.read()
"""


def test_a_forked_child_does_not_keep_the_client(port: int) -> None:
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen([sys.executable, "-W", "ignore", "-c", CHILD], **pipes) as owner:
        assert owner.stdout is not None
        client = int(owner.stdout.readline())
        child, url, exchanges = owner.stdout.readline().decode().split()
        assert url.startswith("https://") and exchanges == "[]", "what it has inherited it can tell"
        try:
            owner.kill()
            wait_for_end(client)
            assert is_running(int(child))
        finally:
            os.kill(int(child), signal.SIGKILL)


NO_THREADS = """
import os, sys, json, threading, relay
started = threading.Thread.start

def start(thread):
    if thread.name == sys.argv[1]:
        raise RuntimeError("can't start new thread")
    started(thread)

threading.Thread.start = start
t = relay.tunnel(3000, random=True, **json.loads(os.environ["TEST_RELAY"]))
try:
    t.open()
except RuntimeError as error:
    print(t.pid, error, flush=True)
"""


@pytest.mark.parametrize("thread", ["relay-stderr", "relay-stdout"])
def test_a_process_that_gets_no_thread_ends_all_the_same(thread: str) -> None:
    command = [sys.executable, "-c", NO_THREADS, thread]
    said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    pid, error = said.split(" ", 1)
    assert error == "can't start new thread\n" and not is_running(int(pid))


def test_other_words_on_standard_output_are_no_events(port: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "relay"
    words = r"welcome\n[1]\n\"x\"\n{\n\377\n" + "[" * 100_000
    program.write_text(f"#!/bin/sh\nprintf '{words}\\n'\nexec '{relay.program()}' \"$@\"\n")
    program.chmod(0o755)
    monkeypatch.setenv("RELAY_BINARY", str(program))
    with open_tunnel(port) as t:
        assert post(t, "/", b"x").body == b"x"
        assert t.wait_for("/").status == 200


def test_an_interrupt_leaves_the_tunnel_to_its_owner(port: int) -> None:
    with open_tunnel(port) as t:
        assert os.getpgid(t.pid) != os.getpgid(0), "Ctrl-C goes to a whole group"


def test_what_the_client_says_is_logged(closed_port: int) -> None:
    records: queue.Queue[logging.LogRecord] = queue.Queue()
    logger, handler = logging.getLogger("relay"), QueueHandler(records)
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        with open_tunnel(closed_port):
            wanted = [f"nothing listens on http://localhost:{closed_port}", f"connecting to {WAY['relay']}"]
            while wanted:
                said = records.get(timeout=20).getMessage()
                wanted = [text for text in wanted if text not in said]
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def test_async(port: int) -> None:
    async def main() -> relay.Tunnel:
        async with open_tunnel(port) as t:
            answer = await asyncio.to_thread(post, t, "/", b"async")
            assert answer.body == b"async"
            return t

    assert not is_running(asyncio.run(main()).pid)


def test_async_cancelled(port: int) -> None:
    async def main(t: relay.Tunnel) -> None:
        opening = asyncio.create_task(t.__aenter__())
        while t._process is None:
            await asyncio.sleep(0)
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening

    with socket.create_server(("127.0.0.1", 0)) as silent:
        t = open_tunnel(port, relay_addr=f"127.0.0.1:{silent.getsockname()[1]}")
        asyncio.run(main(t))
        assert not is_running(t.pid)


def test_the_program_comes_with_the_package() -> None:
    assert Path(relay.program()).is_relative_to(sys.prefix)
    shown = subprocess.run([relay.program(), "--version"], capture_output=True, text=True, check=True)
    same = subprocess.run([sys.executable, "-m", "relay", "--version"], capture_output=True, text=True, check=True)
    assert shown.stdout.startswith("relay ") and shown.stdout == same.stdout


def test_another_program(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "relay"
    program.write_text("#!/bin/sh\necho 'relay: not today' >&2\nexit 1\n")
    monkeypatch.setenv("RELAY_BINARY", str(program))
    with pytest.raises(relay.ProgramMissing, match=str(program)):
        relay.tunnel(3000).open()
    program.chmod(0o755)
    with pytest.raises(relay.RelayError, match="^not today$") as caught:
        relay.tunnel(3000).open()
    assert caught.value.exit_code == 1
