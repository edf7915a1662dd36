"""Shell scripts on another machine over the system's OpenSSH: the user's own keys, configuration and known
hosts.
"""

from __future__ import annotations

import shlex
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.formatting import printable

KEEPALIVE = ("ConnectTimeout=10", "ServerAliveInterval=5", "ServerAliveCountMax=3", "BatchMode=yes")
"""A dead connection is noticed within 15 s; no question is asked that nobody answers."""

CONNECTION_LOST, NOT_FOUND = 255, 127
"""Exit codes of ssh itself and of a shell that doesn't find a command."""

_BEGIN = "slimdeploy: output begins"
"""Printed before a script's own output: a shell's start files may print as well."""


class CommandNotFound(SlimdeployError):
    """The shell there doesn't find a command."""


class LostError(Exception):
    """The connection couldn't be made, or broke; trying again may help."""


@dataclass(frozen=True)
class Shell:
    """The shell of a host, one connection for each script."""

    host: str
    config: Path | None = None
    """SSH configuration; None is the user's own."""

    def run(self, script: str, stdin: Any = subprocess.DEVNULL) -> str:
        """Run a script there and return its output.

        Raises LostError, CommandNotFound, and SlimdeployError with the last line of its errors (of those that
        begin with ERROR:, where there are any) where the script failed.
        """
        settings = [word for setting in KEEPALIVE for word in ("-o", setting)]
        remote = shlex.join(["sh", "-c", f"echo {shlex.quote(_BEGIN)}; {script}"])
        command = ["ssh", *self._config, *settings, "--", self.host, remote]
        done = subprocess.run(command, stdin=stdin, capture_output=True, check=False)
        if done.returncode == 0:
            return done.stdout.decode(errors="replace").partition(f"{_BEGIN}\n")[2]
        raise self._failure(done.returncode, done.stderr.decode(errors="replace"))

    @property
    def _config(self) -> list[str]:
        return ["-F", str(self.config)] if self.config else []

    def _failure(self, code: int, errors: str) -> Exception:
        lines = errors.strip().splitlines()
        lines = [line for line in lines if line.startswith("ERROR: ")] or lines  # pip's; hints follow
        said = printable(lines[-1].strip()) if lines else f"exit code {code}"
        if code == NOT_FOUND:
            return CommandNotFound(said)
        if code != CONNECTION_LOST:
            return SlimdeployError(said.removeprefix("slimdeploy: "))
        by_hand = shlex.join(["ssh", *self._config, self.host])
        said = f"ssh: {said.removeprefix('ssh: ')}"
        if "REMOTE HOST IDENTIFICATION HAS CHANGED" in errors:
            return SlimdeployError(
                f"{said} It has another host key than before: if the device was installed anew, run "
                f"ssh-keygen -R {shlex.quote(self.host)}, then {by_hand}, and compare the key"
            )
        if "Host key verification failed" in said:
            return SlimdeployError(f"{said} Its host key is unknown: run {by_hand} once and compare the key")
        if "Permission denied" in said:
            copy_id = shlex.join(["ssh-copy-id", *self._config, self.host])
            return SlimdeployError(f"{said} No key of yours opens it: run {copy_id}")
        return LostError(said)
