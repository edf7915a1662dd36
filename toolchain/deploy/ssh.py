"""Run shell scripts on another machine with the system's OpenSSH: the user's keys, configuration and known
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
"""A dead connection is detected within 15 s; ssh asks no questions."""

CONNECTION_LOST, NOT_FOUND = 255, 127
"""Exit codes of ssh itself, and of a shell for an unknown command."""

_BEGIN = "slimdeploy: output begins"
"""Printed before the script's output: the shell's start-up files may print too."""


class CommandNotFound(SlimdeployError):
    """The shell does not find a command."""


class LostError(Exception):
    """The connection couldn't be made, or broke; a retry may help."""


@dataclass(frozen=True)
class Shell:
    """The shell of a host, with one connection per script."""

    host: str
    config: Path | None = None
    """SSH configuration; None: the user's own."""

    def run(self, script: str, stdin: Any = subprocess.DEVNULL) -> str:
        """Run a script on the host and return its output.

        Raises LostError, CommandNotFound, or, if the script fails, SlimdeployError with the last line of its
        errors (of those that begin with ERROR:, if any).
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
                f"{said} Its host key has changed: if the device was reinstalled, run "
                f"ssh-keygen -R {shlex.quote(self.host)}, then {by_hand}, and compare the key"
            )
        if "Host key verification failed" in said:
            return SlimdeployError(f"{said} Its host key is unknown: run {by_hand} once and compare the key")
        if "Permission denied" in said:
            copy_id = shlex.join(["ssh-copy-id", *self._config, self.host])
            return SlimdeployError(f"{said} None of your keys is accepted: run {copy_id}")
        return LostError(said)
