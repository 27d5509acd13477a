"""Where the `relay` program is."""

from __future__ import annotations

import os
import shutil
from importlib import metadata

from relay._errors import ProgramMissing

DISTRIBUTION = "relay-tunnel"


def program() -> str:
    """The path of the `relay` program: `RELAY_BINARY`, else the one that came with this package, else one on the PATH.

    Raises ProgramMissing where there is none.
    """
    named = os.environ.get("RELAY_BINARY")
    if named:
        if os.access(named, os.X_OK) and os.path.isfile(named):
            return named
        raise ProgramMissing(f"RELAY_BINARY names {named}, which is no program")
    found = _installed() or shutil.which("relay")
    if found:
        return found
    raise ProgramMissing("there is no relay program: install the package with its wheel, or name one in RELAY_BINARY")


def _installed() -> str | None:
    """The script of the wheel, wherever it was installed to: its record tells."""
    try:
        files = metadata.files(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        return None
    for file in files:
        # The package's own directory has the same name as the script.
        if file.name in ("relay", "relay.exe"):
            path = os.path.abspath(str(file.locate()))
            if os.path.isfile(path):
                return path
    return None
