"""Signatures of bundles with existing SSH keys: OpenSSH's `ssh-keygen -Y`, version 8.2 or later."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

from slimdeploy.toolchain import artifacts
from slimdeploy.toolchain.errors import SlimdeployError

NAMESPACE = "slimdeploy-bundle"
"""Namespace of the signatures: a signature of something else (a git commit, a file) is not valid for a
bundle.
"""


def sign(content: bytes, key: Path) -> bytes:
    """The armoured SSH signature of `content` with the private key or the agent's key in `key`."""
    if not key.is_file():
        raise artifacts.missing(key, "signing key")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "manifest.json"
        file.write_bytes(content)
        done = _ssh_keygen("-Y", "sign", "-f", str(key), "-n", NAMESPACE, str(file))
        if done.returncode:
            raise SlimdeployError(
                f"can't sign with {key}: {_last_line(done.stderr)} (is it a private SSH key, or the public "
                "one of a key in the agent?)"
            )
        return file.with_name("manifest.json.sig").read_bytes()


def verify(content: bytes, signature: bytes, allowed_signers: Path) -> str:
    """The name of the allowed signer of `content`; raises SlimdeployError if no allowed signer signed it.

    `allowed_signers` is a file in OpenSSH's format (ssh-keygen(1), ALLOWED SIGNERS).
    """
    check_signers(allowed_signers)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "signature"
        file.write_bytes(signature)
        where = ["-f", str(allowed_signers), "-s", str(file)]
        found = _ssh_keygen("-Y", "find-principals", *where, input=content)
        if found.returncode or not found.stdout.strip():
            raise SlimdeployError(f"the bundle's signer is not in {allowed_signers}")
        principal = found.stdout.decode(errors="replace").splitlines()[0].strip()
        checked = _ssh_keygen("-Y", "verify", "-I", principal, "-n", NAMESPACE, *where, input=content)
        if checked.returncode:
            raise SlimdeployError(
                f"the bundle's signature by {principal} is not valid: the bundle was changed"
            )
    return principal


def check_signers(path: Path) -> None:
    """Raises SlimdeployError if there is no file of allowed signers at `path`."""
    if not path.is_file():
        raise artifacts.missing(path, "file of allowed signers")


def _ssh_keygen(*arguments: str, input: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    program = shutil.which("ssh-keygen")
    if not program:
        raise SlimdeployError("signatures need ssh-keygen: sudo apt install openssh-client")
    return subprocess.run([program, *arguments], input=input, capture_output=True, check=False)


def _last_line(output: bytes) -> str:
    return (output.decode(errors="replace").strip().splitlines() or ["ssh-keygen failed"])[-1]
