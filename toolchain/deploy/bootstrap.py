"""Create the environment that runs slimdeploy on a device, over SSH. The device needs a shell, Python with
venv, and either access to a package index or the wheels sent from here.

    ~/.local/lib/slimdeploy/KEY       a virtual environment; its file `complete` describes it
    ~/.local/lib/slimdeploy/current   a link to the one in use, replaced atomically
    ~/.local/bin/slimdeploy           a link to its command, unless another file has that name
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shlex
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slimdeploy.toolchain import artifacts
from slimdeploy.toolchain.deploy.findings import MISSING
from slimdeploy.toolchain.deploy.ssh import CommandNotFound, LostError
from slimdeploy.toolchain.deploy.transfer import Connection, sender_of
from slimdeploy.toolchain.deploy.wheel import write_wheel
from slimdeploy.toolchain.errors import SlimdeployError

PLACE = '"$HOME/.local/lib/slimdeploy"'
CURRENT = f"{PLACE}/current"
COMMAND = f'env PATH={CURRENT}/bin:"$PATH" slimdeploy'
"""Runs slimdeploy of the environment or, without one, of the PATH."""
PYTHON = (3, 10)
"""Oldest Python version that slimdeploy supports."""

_CHECK = "import sys, venv, ensurepip; print(*sys.version_info[:2])"
_PROBE = "from slimdeploy.toolchain.deploy.environment import probe; probe()"
_INSTALL_PYTHON = "run sudo apt install python3 python3-venv there"


@dataclass(frozen=True)
class Payload:
    """The data that is sent: a tar archive of wheels, including slimdeploy's."""

    archive: Path
    digest: str
    wheel: str
    """Name of slimdeploy's wheel."""
    offline: bool
    """Whether it contains everything needed, so that no package index is used."""
    without: tuple[str, ...] = ()
    """Extras that it can't install."""


@contextlib.contextmanager
def packed(wheels: Path | None) -> Iterator[Payload]:
    """slimdeploy's wheel and those in a folder, in a temporary archive; the same wheels give the same bytes.

    Raises SlimdeployError if `wheels` contains none.
    """
    found = sorted(wheels.glob("*.whl")) if wheels else []
    others = [file for file in found if not file.name.startswith("slimdeploy-")]
    if wheels and not others:
        raise SlimdeployError(f"{wheels} contains no wheel: fill it with pip download (docs/jetson.md)")
    with tempfile.TemporaryDirectory(prefix="slimdeploy-") as folder:
        own = write_wheel(Path(folder))
        archive = Path(folder) / "wheels.tar"
        with tarfile.open(archive, "w", format=tarfile.USTAR_FORMAT) as tar:
            for file in (own, *others):
                entry = tarfile.TarInfo(file.name)
                entry.size = file.stat().st_size
                with file.open("rb") as content:
                    tar.addfile(entry, content)
        pycuda = any(file.name.startswith("pycuda-") for file in others)
        without = (
            ("cuda",) if others and not pycuda else ()
        )  # there are no pycuda wheels: it must have been compiled
        yield Payload(archive, artifacts.sha256_file(archive), own.name, bool(others), without)


def bootstrap(connection: Connection, payload: Payload, tell: Callable[[str], None]) -> dict[str, Any]:
    """Create the environment if it doesn't exist, and make it the current one.

    Returns `path`, `made` (false if it existed), `python`, `architecture`, `extras`, `system_packages` and
    `doctor`, the doctor's report inside it. Raises SlimdeployError if it can't be created; the previous
    environment then stays in use.
    """
    found = _current(connection, payload)
    if found:
        return {**found, "made": False}
    _check_python(connection)
    with connection.sent(payload.archive, payload.digest) as archive:
        machine = _examine(connection, payload, archive)
        tell(
            f"{machine['architecture']}, Python {machine['python']}: installing slimdeploy"
            f"[{','.join(machine['extras'])}], this can take minutes"
        )
        path = f"{PLACE}/{_key(connection.host, payload, machine)}"
        _make(connection, payload, archive, machine, path)
        try:
            made = _probe(connection, payload, f"{path}/bin/python")
            if missing := _missing(made):
                raise SlimdeployError(missing)
            complete = json.dumps({"payload": payload.digest, **_needs(made)})
            connection.run(f"printf %s {shlex.quote(complete)} > {path}/complete")
            connection.run(_switch(path))
        except SlimdeployError:
            with contextlib.suppress(LostError, SlimdeployError):  # the next bootstrap removes it
                connection.run(f"[ -e {path}/complete ] || rm -rf {path}")
            raise
        return {**made, "path": connection.run(f"echo {path}").strip(), "made": True}


def _current(connection: Connection, payload: Payload) -> dict[str, Any] | None:
    """The existing environment, if it is the same as the one that would be created."""
    output = connection.run(f"cat {CURRENT}/complete 2>/dev/null || true; echo; readlink {CURRENT} || true")
    complete, _, path = output.partition("\n")
    with contextlib.suppress(ValueError, SlimdeployError):
        recorded = json.loads(complete)
        if recorded["payload"] == payload.digest:
            found = _probe(connection, payload, f"{CURRENT}/bin/python")
            if recorded == {"payload": payload.digest, **_needs(found)} and not _missing(found):
                return {**found, "path": path.strip()}
    return None


def _check_python(connection: Connection) -> None:
    try:
        version = connection.run(f"python3 -c {shlex.quote(_CHECK)}")
    except CommandNotFound as error:
        raise SlimdeployError(f"no python3 there: {_INSTALL_PYTHON}") from error
    except SlimdeployError as error:
        raise SlimdeployError(
            f"python3 there can't create virtual environments ({error}): {_INSTALL_PYTHON}"
        ) from error
    found = tuple(int(word) for word in version.split())
    if found < PYTHON:
        said, needed = (".".join(map(str, each)) for each in (found, PYTHON))
        raise SlimdeployError(
            f"Python {said} there, slimdeploy needs {needed}: on a Jetson, JetPack 6 has it"
        )


def _examine(connection: Connection, payload: Payload, archive: str) -> dict[str, Any]:
    """The doctor's findings before anything is installed: slimdeploy runs from its wheel."""
    unpack = f'd=$(mktemp -d) && trap \'rm -rf "$d"\' EXIT && tar -xf {archive} -C "$d" {payload.wheel}'
    return _probe(connection, payload, f'PYTHONPATH="$d"/{payload.wheel} python3', before=f"{unpack} && ")


def _probe(connection: Connection, payload: Payload, python: str, before: str = "") -> dict[str, Any]:
    """The output of `environment.probe` on the device, without the extras that can't be installed."""
    output = connection.run(f"{before}{python} -c {shlex.quote(_PROBE)}")
    try:
        document = json.loads(output)
        texts = [document["python"], document["architecture"], *document["extras"]]
        findings = [(each["status"], each["name"], each["detail"]) for each in document["doctor"]["findings"]]
        if not all(isinstance(text, str) for text in (*texts, *(part for each in findings for part in each))):
            raise TypeError
    except (ValueError, KeyError, TypeError):
        raise SlimdeployError(f"doctor there answered {output[:80]!r}") from None
    return {**document, "extras": [extra for extra in document["extras"] if extra not in payload.without]}


def _needs(machine: dict[str, Any]) -> dict[str, Any]:
    return {key: machine[key] for key in ("python", "extras", "system_packages")}


def _key(host: str, payload: Payload, machine: dict[str, Any]) -> str:
    """Name of the environment: a hash of its content and of the sender, so that two senders don't
    conflict.
    """
    made_of = f"{sender_of(host)} {payload.digest} {_needs(machine)}"
    return hashlib.sha256(made_of.encode()).hexdigest()[:12]


def _make(connection: Connection, payload: Payload, archive: str, machine: dict[str, Any], path: str) -> None:
    """Create the environment, unless it exists. The lock is for processes left by a broken connection."""
    wheels, extras = f"{path}/wheels", ",".join(machine["extras"])
    opened = "--system-site-packages " if machine["system_packages"] else ""
    index = "--no-index " if payload.offline else ""
    script = f"""set -e
        mkdir -p {PLACE}
        exec 9> {path}.lock
        if command -v flock > /dev/null && ! flock -n 9; then
            echo an earlier bootstrap is still at work there: wait for it to end >&2
            exit 1
        fi
        [ ! -e {path}/complete ] || exit 0
        rm -rf {path}
        trap 'rm -rf {path}' EXIT
        python3 -m venv {opened}{path} >&2
        mkdir {wheels}
        tar -xf {archive} -C {wheels}
        PATH="$PATH:/usr/local/cuda/bin" {path}/bin/python -m pip install -q --disable-pip-version-check \\
            {index}--find-links {wheels} {wheels}/{payload.wheel}'[{extras}]' >&2
        rm -r {wheels}
        trap - EXIT
    """
    try:
        connection.run(script)
    except SlimdeployError as error:
        raise SlimdeployError(f"{error}; {_advice(payload, str(error))}") from error


def _advice(payload: Payload, said: str) -> str:
    if payload.offline:
        return "`wheels` has none for that Python and CPU: see pip download in docs/jetson.md"
    if "No matching distribution" in said:
        return "if no package index is reachable there, send the wheels with `wheels` (docs/jetson.md)"
    return "fix this there, and run the same command again"


def _missing(machine: dict[str, Any]) -> str | None:
    """Why no model could run there; empty if one could."""
    for each in machine["doctor"]["findings"]:
        if each["status"] == MISSING:
            mend = f": {each['mend']}" if each.get("mend") else ""
            return f"doctor there: {each['name']}, {each['detail']}{mend}"
    return None


def _switch(path: str) -> str:
    """Make it the current environment. The previous one is kept too: a server may still use it."""
    link = '"$HOME/.local/bin/slimdeploy"'
    return f"""set -e
        before=$(readlink {CURRENT} || true)
        ln -sfn {path} {CURRENT}.new
        mv -fT {CURRENT}.new {CURRENT}
        mkdir -p "$HOME/.local/bin"
        [ -e {link} ] || ln -sf {CURRENT}/bin/slimdeploy {link}
        for other in {PLACE}/*/; do
            other=${{other%/}}
            case "$other" in "$before"|{path}|{CURRENT}) continue;; esac
            if [ -e "$other/complete" ] || [ -n "$(find "$other" -prune -mtime +0)" ]; then
                rm -rf "$other" "$other.lock"
            fi
        done
    """
