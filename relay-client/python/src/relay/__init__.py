"""Public HTTPS URLs for local services, through a relay of your own.

    import relay

    with relay.tunnel(3000) as t:
        print(t.url)

Each tunnel is the `relay` program in a process of its own, which ends with the `with` block, and with this process
however that ends. Which relay and which token is as for the program: arguments, the environment (`RELAY_URL`,
`RELAY_TOKEN`, `RELAY_CA_FILE`), `relay.toml`, or what `relay login` has stored.
"""

from relay._errors import (
    GaveUp,
    NameLost,
    NameTaken,
    ProgramMissing,
    RelayError,
    TimedOut,
    Unauthorized,
    Unreachable,
    Usage,
)
from relay._program import program
from relay._tunnel import Exchange, Tunnel, tunnel

__all__ = [
    "Exchange",
    "GaveUp",
    "NameLost",
    "NameTaken",
    "ProgramMissing",
    "RelayError",
    "TimedOut",
    "Tunnel",
    "Unauthorized",
    "Unreachable",
    "Usage",
    "program",
    "tunnel",
]
