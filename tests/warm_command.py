"""`slimdeploy` as a program that starts at once: each call is forked off a server that has imported torch.

python warm_command.py SOCKET    the server; prints a line when it is ready
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import slimdeploy

CLIENT = """#!{python} -IS
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as server:
    server.connect({socket!r})
    call = json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ)]).encode()
    socket.send_fds(server, [len(call).to_bytes(8, "big")], [0, 1, 2])
    server.sendall(call)
    sys.exit(int(server.recv(8) or b"1"))
"""


@contextlib.contextmanager
def installed(folder: Path) -> Iterator[dict[str, str]]:
    """The environment of scripts that call `slimdeploy` and `python`, both written to `folder`."""
    folder.mkdir(parents=True)
    path = str(folder / "socket")
    (folder / "slimdeploy").write_text(CLIENT.format(python=sys.executable, socket=path))
    (folder / "slimdeploy").chmod(0o755)
    (folder / "python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    (folder / "python").chmod(0o755)
    environment = {**os.environ, "PYTHONPATH": str(Path(slimdeploy.__file__).parents[1])}
    server = subprocess.Popen(
        [sys.executable, __file__, path], env=environment, stdout=subprocess.PIPE, text=True
    )
    try:
        assert server.stdout
        assert server.stdout.readline() == "ready\n"
        yield {**environment, "PATH": f"{folder}{os.pathsep}{environment['PATH']}"}
    finally:
        server.kill()
        server.wait()


def _serve(path: str) -> None:
    import torch._dynamo  # by the first optimizer
    import torch.utils.tensorboard  # noqa: F401

    import slimdeploy.toolchain.commands.calibrate
    import slimdeploy.toolchain.commands.run
    import slimdeploy.toolchain.data.sources  # noqa: F401

    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen()
        print("ready", flush=True)
        while True:
            connection, _ = listening.accept()
            length, descriptors, _, _ = socket.recv_fds(connection, 8, 3)
            if not os.fork():
                _supervise(connection, int.from_bytes(length, "big"), descriptors)
            connection.close()
            for descriptor in descriptors:
                os.close(descriptor)
            with contextlib.suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass


def _supervise(connection: socket.socket, length: int, descriptors: list[int]) -> None:
    """Run the call in a child, tell its client the exit code; end it with the client."""
    text = b""
    while len(text) < length:
        text += connection.recv(length - len(text))
    arguments, folder, environment = json.loads(text)
    child = os.fork()
    if not child:
        connection.close()
        for number, descriptor in enumerate(descriptors):
            os.dup2(descriptor, number)
        os.environ.clear()
        os.environ.update(environment)
        os.chdir(folder)
        sys.argv = ["slimdeploy", *arguments]
        from slimdeploy.toolchain.cli import main

        main()
    threading.Thread(target=_end_with_client, args=(connection, child), daemon=True).start()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with contextlib.suppress(OSError):
        connection.sendall(str(code).encode())
    os._exit(0)


def _end_with_client(connection: socket.socket, child: int) -> None:
    connection.recv(1)
    with contextlib.suppress(ProcessLookupError):
        os.kill(child, 15)


if __name__ == "__main__":
    _serve(sys.argv[1])
