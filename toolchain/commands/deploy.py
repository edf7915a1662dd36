"""`slimdeploy deploy`: a bundle onto this device, or onto others over SSH."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from slimdeploy.toolchain.cli import Output, command
from slimdeploy.toolchain.errors import SlimdeployError

if TYPE_CHECKING:
    from rich.table import Table

PATH = click.Path(path_type=Path)


@command("deploy")
@click.argument("bundle", type=PATH, required=False)
@click.option("--rollback", is_flag=True, help="Go back to the version before the current one.")
@click.option("--root", type=PATH, help="Where versions are kept. [default: $SLIMDEPLOY_HOME or "
              "~/.local/share/slimdeploy]")  # fmt: skip
@click.option("--precision", type=click.Choice(["fp32", "fp16", "int8", "mixed"]),
              help="Take this model of the bundle. [default: the fastest for the backend]")  # fmt: skip
@click.option("--backend", help="tensorrt or onnxruntime. [default: tensorrt where it is]")
@click.option(
    "--batch",
    type=click.IntRange(1, 1024),
    default=8,
    show_default=True,
    help="Images computed together at most.",
)
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads. [default: all cores]")
@click.option("--allowed-signers", type=PATH, metavar="FILE",
              help="Refuse what none of these signed (OpenSSH format), from now on.")  # fmt: skip
@click.option("--sha256", help="Refuse a bundle with another hash.")
def deploy(
    bundle: Path | None,
    rollback: bool,
    root: Path | None,
    precision: str | None,
    backend: str | None,
    batch: int,
    threads: int | None,
    allowed_signers: Path | None,
    sha256: str | None,
) -> Output:
    """Install BUNDLE: verify, build, check against the golden outputs, measure, switch over.

    Wherever it fails or is killed, the version before stays the current one.
    """
    from slimdeploy.toolchain.deploy import device
    from slimdeploy.toolchain.deploy.engine import EngineOptions
    from slimdeploy.toolchain.deploy.store import Store, default_root

    if rollback == (bundle is not None):
        raise SlimdeployError("name a bundle, or pass --rollback")
    options = device.DeployOptions(
        EngineOptions(precision, backend, batch),
        threads=threads,
        allowed_signers=allowed_signers,
        sha256=sha256,
    )
    store = Store(root or default_root())
    if bundle is None:
        version, golden = device.rollback(store, options)
        document = {"version": version, "golden": vars(golden)}
        return Output(document, f"back to {version}: golden outputs differ by {golden.max_error:.2g}")
    made = device.deploy(bundle, store, options)
    return Output(made.to_json(), _table(made.to_json(), store.root))


def _table(made: dict[str, Any], root: Path) -> Table:
    from rich.markup import escape
    from rich.table import Table

    golden, accuracy, latency = made["golden"], made["accuracy"], made["latency_ms"]
    table = Table("deployed", made["version"], title=f"{root}")
    table.add_row("model", f"{made['variant']} on {made['backend']}")
    table.add_row("golden outputs", f"differ by {golden['max_error']:.2g}; {golden['tolerance']:g} allowed; "
                  f"top-1 {golden['top1_agreement']:.0%} of {golden['images']}")  # fmt: skip
    if accuracy["images"]:
        table.add_row("accuracy", f"{accuracy['device']:.2%} here, {accuracy['host']:.2%} on the host, "
                      f"{accuracy['images']} images")  # fmt: skip
    table.add_row("one image", f"{latency['p50']:.3g} ms (p50), {latency['p99']:.3g} ms (p99)")
    if made["signer"]:
        table.add_row("signed by", made["signer"])
    for note in made["notes"]:
        table.add_row("note", escape(note))
    return table
