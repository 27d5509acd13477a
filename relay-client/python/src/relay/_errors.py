"""What can go wrong: one class for each exit code of the program that a caller may want to tell apart."""

from __future__ import annotations


class RelayError(Exception):
    """There is no tunnel, or no longer. The message is the program's own: what happened, and what mends it."""

    def __init__(self, message: str, exit_code: int | None = None) -> None:
        super().__init__(message)
        self.exit_code = exit_code
        """The program's exit code; negative where a signal ended it, and None where it has not ended by itself."""


class ProgramMissing(RelayError):
    """There is no `relay` to start."""


class TimedOut(RelayError, TimeoutError):
    """What was waited for has not come in time."""


class Usage(RelayError):
    """An argument or a configuration file is wrong."""


class Unauthorized(RelayError):
    """The relay does not accept the token, or no longer does."""


class NameTaken(RelayError):
    """The name asked for is in use, or another's."""


class Unreachable(RelayError):
    """The relay could not be reached at the start."""


class GaveUp(RelayError):
    """The session was lost, and `max_reconnect_time` passed."""


class NameLost(RelayError):
    """The name went to another session while the tunnel was up."""


_BY_EXIT_CODE = {2: Usage, 3: Unauthorized, 4: NameTaken, 5: Unreachable, 6: GaveUp, 7: NameLost}


def of_exit(code: int, said: list[str]) -> RelayError:
    """The error for a program that has ended with this code, and whose last lines on standard error were these."""
    # Before its last words it may have told of other things.
    last = max((i for i, line in enumerate(said) if line.startswith(("relay: ", "error: "))), default=0)
    message = "\n".join(said[last:]).strip()
    for prefix in ("relay: ", "error: "):
        if message.startswith(prefix):
            message = message[len(prefix) :]
    how = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
    if code not in _BY_EXIT_CODE and code != 1:
        # It was not the program that wanted it so.
        message = f"the relay client {how}" + (f": {message}" if message else "")
    return _BY_EXIT_CODE.get(code, RelayError)(message or f"the relay client {how}", code)
