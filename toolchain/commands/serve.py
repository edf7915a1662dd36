"""`slimdeploy serve`"""

from __future__ import annotations

from pathlib import Path

import click

from slimdeploy.toolchain.cli import Output, command
from slimdeploy.toolchain.commands.options import threads_option
from slimdeploy.toolchain.paths import InputPath

COUNT = click.IntRange(min=1)


@command("serve")
@click.option(
    "--model",
    type=InputPath(),
    help="An ONNX file, an engine or a checkpoint. [default: the deployed version]",
)
@click.option("--root", type=InputPath(), help="Folder of the installed versions. [default: "
                                               "$SLIMDEPLOY_HOME or "
              "~/.local/share/slimdeploy]")  # fmt: skip
@click.option(
    "--host",
    metavar="ADDRESS",
    default="127.0.0.1",
    show_default=True,
    help="Address to listen on; 0.0.0.0 means all interfaces.",
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8080,
    show_default=True,
    help="Port; 0 selects a free port.",
)
@click.option("--batch", type=COUNT, default=8, show_default=True, help="Maximum batch size.")
@click.option("--wait-ms", type=click.FloatRange(min=0), default=2.0, show_default=True,
              help="Maximum wait for a batch to fill.")  # fmt: skip
@click.option("--latency-ms", type=click.FloatRange(min=1), default=100.0, show_default=True,
              help="Maximum latency: answer 503 if it cannot be met.")  # fmt: skip
@click.option(
    "--queue",
    type=COUNT,
    default=32,
    show_default=True,
    help="Answer 503 when more images than this are waiting.",
)
@click.option("--max-upload-mb", type=click.FloatRange(min=0.001), default=16.0, show_default=True,
              help="Answer 413 to uploads larger than this (MiB).")  # fmt: skip
@click.option("--top", type=COUNT, default=5, show_default=True, help="Classes in each answer.")
@threads_option
def serve(
    model: Path | None,
    root: Path | None,
    host: str,
    port: int,
    batch: int,
    wait_ms: float,
    latency_ms: float,
    queue: int,
    max_upload_mb: float,
    top: int,
    threads: int | None,
) -> Output:
    """Classify over HTTP: POST an image to /classify. /healthz and /metrics (Prometheus) are available too.

    The server switches to a newly deployed version without losing a request; on SIGHUP it reloads a changed
    model file. On SIGTERM or Ctrl-C it answers the accepted requests, then ends.
    """
    from slimdeploy.toolchain.deploy.batching import BatchOptions
    from slimdeploy.toolchain.deploy.http import UPLOADS, ServeOptions
    from slimdeploy.toolchain.deploy.images import ImageLimits
    from slimdeploy.toolchain.deploy.root import default_root
    from slimdeploy.toolchain.deploy.serve import Address
    from slimdeploy.toolchain.deploy.serve import serve as run_server

    limits = ImageLimits(bytes=int(max_upload_mb * 2**20), formats=UPLOADS)
    options = ServeOptions(BatchOptions(batch, wait_ms, latency_ms, queue), limits, top)
    where = Address(host, port)
    document = run_server(model, root or default_root(), where, options, threads=threads, say=_say)
    answers = ", ".join(f"{count} × {code}" for code, count in sorted(document["answers"].items()))
    return Output(document, f"served {document['model']}: {answers or 'no requests'}")


def _say(message: str) -> None:
    click.echo(message, err=True)
