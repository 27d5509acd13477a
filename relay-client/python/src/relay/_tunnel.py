"""A tunnel: the `relay` program in a process of its own, followed by its JSON lines.

    relay http … --output json ──stdout──▶ reader thread ──▶ what callers see, under one condition
                               ──stderr──▶ reader thread ──▶ the logger "relay", and the message of an error

The program ends when nobody can read its output any more, so it does not outlive this process, however that ends.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import subprocess
import threading
import weakref
from collections import deque
from dataclasses import dataclass
from types import TracebackType
from typing import IO, Any, Literal

from relay._errors import RelayError, TimedOut, of_exit
from relay._program import program

KEPT = 1_000
"""How many exchanges a tunnel remembers; the oldest are forgotten first."""

_SAID = 50
"""How many lines of the program's standard error are kept for the message of an error."""

_LEAVE = 2.0
"""How long, in seconds, the program may finish what is under way when a tunnel is closed."""

_log = logging.getLogger("relay")


@dataclass(frozen=True)
class Exchange:
    """A request that has been answered, or that was not."""

    id: str
    """Its id, as the service has seen it in `Relay-Request-Id`."""
    method: str
    """The request's method."""
    path: str
    """The raw target, with its query."""
    status: int | None
    """What the sender was answered with; None where no answer was sent."""
    duration_ms: float
    """Milliseconds from the start of the deadline to the end of the body."""
    error: str | None
    """None, or the code of what went wrong, such as `upstream-refused`."""


def tunnel(
    target: int | str,
    *,
    subdomain: str | None = None,
    random: bool = False,
    takeover: bool = False,
    timeout: float | None = None,
    host_header: str | None = None,
    upstream_protocol: Literal["http1", "h2c"] | None = None,
    relay: str | None = None,
    relay_addr: str | None = None,
    token: str | None = None,
    ca_file: str | os.PathLike[str] | None = None,
    max_reconnect_time: float | None = None,
    ready_within: float = 30.0,
) -> Tunnel:
    """A tunnel to `target`: a port, `host:port`, an `http://` or `https://` URL, or `unix:/path`.

    It opens in a `with` or `async with` block, or by `open()`. The arguments are the flags of `relay http`; what is not
    given comes from the environment and the files that the program reads itself. Times are in seconds.

    subdomain: asks for `https://SUBDOMAIN.<domain>`; never silently replaced by another name
    random: asks for a fresh random name instead of the one remembered for this directory
    takeover: takes the name over from a live session of the same token
    timeout: the sender is answered with 504 after this long
    host_header: what the service sees as Host: "rewrite", "preserve", or a host
    upstream_protocol: how the service is spoken to
    relay, relay_addr, token, ca_file: the relay's URL, the address to dial instead of its own, who we are there, and the
        CA to trust for it
    max_reconnect_time: gives up when the session was lost for this long; for ever otherwise
    ready_within: how long `open()` waits for the public URL
    """
    flags = {
        "--subdomain": subdomain,
        "--timeout": _milliseconds(timeout),
        "--host-header": host_header,
        "--upstream-protocol": upstream_protocol,
        "--relay-addr": relay_addr,
        "--max-reconnect-time": _milliseconds(max_reconnect_time),
    }
    arguments = ["http", "--output=json", *(f"{flag}={value}" for flag, value in flags.items() if value is not None)]
    arguments += [flag for flag, given in (("--random", random), ("--takeover", takeover)) if given]
    # Other users of the machine can see a command line, but no environment.
    way = {"RELAY_URL": relay, "RELAY_TOKEN": token, "RELAY_CA_FILE": None if ca_file is None else os.fspath(ca_file)}
    variables = {name: value for name, value in way.items() if value is not None}
    return Tunnel([*arguments, "--", str(target)], variables, ready_within)


def _milliseconds(seconds: float | None) -> str | None:
    return None if seconds is None else f"{round(seconds * 1000)}ms"


class Tunnel:
    """A tunnel, made by `relay.tunnel()`. It can be used from any thread, and is opened once."""

    def __init__(self, arguments: list[str], variables: dict[str, str], ready_within: float) -> None:
        self._arguments = arguments
        self._variables = variables
        self._ready_within = ready_within
        self._owner = os.getpid()
        # Guards everything below, and tells of each change.
        self._changed = threading.Condition()
        self._process: subprocess.Popen[bytes] | None = None
        self._ready: dict[str, Any] = {}
        self._exchanges: deque[Exchange] = deque(maxlen=KEPT)
        self._said: deque[str] = deque(maxlen=_SAID)
        self._closing = False
        # Whether the process has ended, and why, where nobody has asked it to.
        self._ended = False
        self._error: RelayError | None = None

    def open(self) -> Tunnel:
        """Starts the program, and returns once the tunnel has its public URL.

        Raises the RelayError that says why there is none.
        """
        command = [program(), *self._arguments]
        with self._changed:
            if self._process is not None or self._closing:
                raise RelayError("a tunnel is opened once: make another one with relay.tunnel()")
            process = subprocess.Popen(
                command,
                env={**os.environ, **self._variables},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                # Ctrl-C is for this process, which may need the tunnel while it cleans up.
                start_new_session=True,
            )
            self._process = process
            _open.add(self)
            listener = threading.Thread(target=self._listen, args=(process.stderr,), name="relay-stderr", daemon=True)
            follower = threading.Thread(
                target=self._follow, args=(process, listener), name="relay-stdout", daemon=True
            )
            try:
                listener.start()
                follower.start()
            except BaseException:
                # Nobody would hear of its end. A process that may have no more threads has no use for a tunnel, either.
                with process:
                    process.kill()
                self._ended = True
                _open.discard(self)
                raise
        try:
            with self._changed:
                self._changed.wait_for(lambda: self._ready or self._ended, self._ready_within)
                if self._ready and not self._ended:
                    return self
                late = not self._ended
        except BaseException:
            self.close()
            raise
        self.close()
        if late:
            raise TimedOut(f"no tunnel after {self._ready_within:g} s{self._last_words()}")
        raise self._error or RelayError("the tunnel was closed while it was opened")

    def close(self) -> None:
        """Ends the tunnel; what is under way may finish within 2 s. Does nothing where it has ended already, or where it was
        inherited through a fork: it is the parent's."""
        if self._owner != os.getpid():
            return
        with self._changed:
            self._closing = True
            if self._process is None:
                return
            if not self._ended:
                self._process.terminate()
                if not self._changed.wait_for(lambda: self._ended, _LEAVE):
                    self._process.kill()
                    self._changed.wait_for(lambda: self._ended)

    @property
    def url(self) -> str:
        """The public URL, without a slash at its end."""
        return str(self._get("url"))

    @property
    def name(self) -> str:
        """The name below the relay's domain."""
        return str(self._get("name"))

    @property
    def upstream(self) -> str:
        """Where requests go."""
        return str(self._get("upstream"))

    @property
    def relay(self) -> str:
        """The relay's own URL."""
        return str(self._get("relay"))

    @property
    def ca_file(self) -> str | None:
        """The CA that callers of `url` must trust, where it is not a public one."""
        file: str | None = self._get("ca_file")
        return file

    @property
    def pid(self) -> int:
        """The process id of the program."""
        if self._process is None:
            raise RelayError("the tunnel is not open")
        return self._process.pid

    @property
    def error(self) -> RelayError | None:
        """Why the tunnel has ended although nobody has closed it; None otherwise."""
        with self._changed:
            return self._error

    @property
    def exchanges(self) -> list[Exchange]:
        """The last 1,000 requests that have been answered, in the order in which their answers ended."""
        with self._changed:
            return list(self._exchanges)

    def wait_for(
        self,
        path: str | None = None,
        *,
        method: str | None = None,
        status: int | None = None,
        after: Exchange | None = None,
        timeout: float = 10.0,
    ) -> Exchange:
        """The first exchange with this path, method and status; waits for it, for `timeout` seconds at most.

        Those that have been before count, unless they came no later than `after`. The query is compared only where `path`
        has one, and a `*` at its end stands for anything.

        Raises TimedOut, or what has ended the tunnel.
        """

        def found() -> Exchange | None:
            known = list(self._exchanges)
            if after in known:
                known = known[known.index(after) + 1 :]
            fits = (e for e in known if _is_path(e.path, path) and method in (None, e.method) and status in (None, e.status))
            return next(fits, None)

        with self._changed:
            self._changed.wait_for(lambda: found() or self._ended or self._closing, timeout)
            exchange = found()
            if exchange is not None:
                return exchange
            if self._error is not None:
                raise self._error
            if self._ended or self._closing or self._process is None:
                raise RelayError("the tunnel is not open")
            wanted = " ".join(str(part) for part in (method, path, status) if part is not None) or "request"
            last = ", ".join(f"{e.method} {e.path} {e.status}" for e in list(self._exchanges)[-5:])
            raise TimedOut(f"no {wanted} within {timeout:g} s; " + (f"the last were: {last}" if last else "there was none"))

    def __enter__(self) -> Tunnel:
        return self.open()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Tunnel:
        import asyncio  # not for those who have no use for it: it takes long to load

        try:
            return await asyncio.to_thread(self.open)
        except asyncio.CancelledError:
            # The thread goes on; this ends what it has started, or will.
            await asyncio.to_thread(self.close)
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        import asyncio

        await asyncio.to_thread(self.close)

    def __repr__(self) -> str:
        return f"<relay.Tunnel {self._ready.get('url', 'not open')}>"

    def _get(self, field: str) -> Any:
        with self._changed:
            if not self._ready:
                raise RelayError("the tunnel is not open")
            return self._ready.get(field)

    def _last_words(self) -> str:
        with self._changed:
            return f": {self._said[-1]}" if self._said else ""

    def _follow(self, process: subprocess.Popen[bytes], listener: threading.Thread) -> None:
        """Takes in the program's lines, and its end. Runs in a thread of its own."""
        assert process.stdout is not None
        try:
            with process.stdout as lines:
                for line in lines:
                    self._take(_event(line))
        finally:
            # What it has said last is in the other pipe.
            listener.join()
            code = process.wait()
            with self._changed:
                self._ended = True
                _open.discard(self)
                if not self._closing:
                    self._error = of_exit(code, list(self._said))
                self._changed.notify_all()

    def _take(self, event: dict[str, Any]) -> None:
        kind = event.get("event")
        with self._changed:
            if kind == "tunnel.ready":
                self._ready = event
            elif kind == "exchange":
                seen: dict[str, Any] = {name: event.get(name) for name in Exchange.__annotations__}
                self._exchanges.append(Exchange(**seen))
            self._changed.notify_all()
        if kind == "session.disconnected":
            _log.warning("session lost: %s", event.get("reason"))
        elif kind == "upstream.down":
            _log.warning("nothing listens on %s: %s", event.get("upstream"), event.get("reason"))

    def _listen(self, stderr: IO[bytes]) -> None:
        """Takes in what the program says to people. Runs in a thread of its own."""
        with stderr:
            for line in stderr:
                text = line.decode(errors="replace").rstrip()
                with self._changed:
                    self._said.append(text)
                _log.info("%s", text)


def _event(line: bytes) -> dict[str, Any]:
    """What a line says; nothing where it is none of the client's, which is how a wrapper around it may greet."""
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return event if isinstance(event, dict) else {}


def _is_path(path: str, wanted: str | None) -> bool:
    if wanted is None:
        return True
    if "?" not in wanted:
        path = path.partition("?")[0]
    return path.startswith(wanted[:-1]) if wanted.endswith("*") else path == wanted


_open: "weakref.WeakSet[Tunnel]" = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    for left in list(_open):
        left.close()


def _leave_to_parent() -> None:
    """In a forked child: the program ends when nobody can read its output, so this process must not be able to."""
    null = os.open(os.devnull, os.O_RDONLY)
    for inherited in list(_open):
        # Who held it is no part of this process.
        inherited._changed = threading.Condition()
        process = inherited._process
        for pipe in (process.stdout, process.stderr) if process else ():
            # Not closed, because the file that was opened on this number still believes in it.
            if pipe is not None and not pipe.closed:
                os.dup2(null, pipe.fileno(), inheritable=False)
    os.close(null)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_to_parent)
