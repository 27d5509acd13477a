"""Puts the `relay` program into the wheel's scripts, and says on which machines it runs."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class ProgramHook(BuildHookInterface):
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        binary = os.environ.get("RELAY_BINARY") or build(Path(self.root, "../.."))
        suffix = ".exe" if sys.platform == "win32" else ""
        build_data["shared_scripts"] = {str(Path(binary).resolve()): f"relay{suffix}"}
        # Of Python the package needs nothing that depends on a version or an implementation.
        build_data["tag"] = f"py3-none-{platform_tag(Path(binary).read_bytes())}"
        build_data["pure_python"] = False


def build(workspace: Path) -> Path:
    subprocess.run(["cargo", "build", "--release", "--package", "relay-client"], cwd=workspace, check=True)
    target = os.environ.get("CARGO_TARGET_DIR", workspace / "target")
    return Path(target, "release", "relay.exe" if sys.platform == "win32" else "relay")


def platform_tag(binary: bytes) -> str:
    """The platforms for pip. On Linux that is the newest symbol version of glibc that the program asks for (PEP 600);
    one that asks for none is static."""
    if sys.platform != "linux":
        return re.sub("[-.]", "_", sysconfig.get_platform())
    machine = platform.machine()
    minors = [int(minor) for minor in re.findall(rb"GLIBC_2\.(\d+)", binary)]
    if minors:
        return f"manylinux_2_{max(minors)}_{machine}"
    return f"manylinux2014_{machine}.musllinux_1_1_{machine}"
