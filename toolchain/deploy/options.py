"""Options for the content of a bundle, its installation, and the devices."""

from __future__ import annotations

from dataclasses import dataclass

from slimdeploy.toolchain.checks import MAX_THREADS
from slimdeploy.toolchain.declared import check_declared, option
from slimdeploy.toolchain.errors import SlimdeployError

MAX_BATCH = 1024
PRECISIONS = ("fp32", "fp16", "int8", "mixed")
BACKENDS = ("tensorrt", "onnxruntime")


@dataclass(frozen=True)
class PackageOptions:
    """The content of a bundle besides its models, and the SSH key that signs it."""

    noise: bool = option(False, "Use noise as golden images, without an evaluation set.")
    golden: int = option(16, "Golden images: the device must reproduce their outputs.", least=1, most=1024)
    evaluation: int = option(200, "Images in the evaluation set.", least=0)
    ranges: str | None = option(None, "Calibration ranges (JSON) to include.", path=True)
    signing_key: str | None = option(
        None, "Sign with this SSH key (ssh-keygen -Y).", path=True, flag="--sign", metavar="KEY"
    )

    def __post_init__(self) -> None:
        check_declared(self)


@dataclass(frozen=True)
class DeployOptions:
    """Options of the installation. `allowed_signers` is stored on the device and applies from then on."""

    precision: str | None = option(
        None,
        "Install the model of this precision.",
        choices=PRECISIONS,
        unset="the fastest for the backend",
    )
    backend: str | None = option(None, "Runtime.", choices=BACKENDS, unset="tensorrt where it is installed")
    batch: int = option(8, "Maximum batch size.", least=1, most=MAX_BATCH)
    threads: int | None = option(None, "CPU threads.", least=1, most=MAX_THREADS, unset="all cores")
    seconds: float = option(1.0, "Duration of the latency measurement in seconds.", least=0)
    allowed_signers: str | None = option(
        None,
        "From now on install only bundles signed by a key in this file (OpenSSH format).",
        path=True,
        metavar="FILE",
    )

    def __post_init__(self) -> None:
        check_declared(self)


@dataclass(frozen=True)
class SshOptions:
    """Options for reaching devices over SSH, and for creating slimdeploy's environment there first."""

    ssh_config: str | None = option(
        None, "SSH configuration to use.", path=True, metavar="FILE", unset="your own"
    )
    remote_command: str | None = option(
        None,
        "Command that runs slimdeploy on the host, e.g. a path into a virtual environment.",
        metavar="COMMAND",
        unset="the environment of bootstrap, else slimdeploy",
    )
    bootstrap: bool = option(
        False, "First install this version of slimdeploy on the host, in a separate environment."
    )
    wheels: str | None = option(
        None,
        "With bootstrap: install only from the wheels in this folder, without internet.",
        path=True,
        metavar="DIR",
    )

    def __post_init__(self) -> None:
        check_declared(self)
        if self.bootstrap and self.remote_command:
            raise SlimdeployError("`remote_command` cannot be used with `bootstrap`")
        if self.wheels and not self.bootstrap:
            raise SlimdeployError("`wheels` needs `bootstrap`")
