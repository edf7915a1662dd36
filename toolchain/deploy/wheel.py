"""Build a wheel of the running slimdeploy, whether it is a checkout or was installed by pip. The same code
gives the same bytes.
"""

from __future__ import annotations

import base64
import configparser
import hashlib
import importlib.metadata
import zipfile
from collections.abc import Iterator
from pathlib import Path

import slimdeploy
from slimdeploy.toolchain.errors import SlimdeployError

ROOT = Path(slimdeploy.__file__).resolve().parent
TAG = "Wheel-Version: 1.0\nGenerator: slimdeploy\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
METADATA = "Metadata-Version: 2.1\nName: slimdeploy\n"
_EPOCH = (1980, 1, 1, 0, 0, 0)


def write_wheel(folder: Path, root: Path = ROOT) -> Path:
    """Write the wheel of the package in `root` into `folder`; returns its path.

    Raises SlimdeployError if the files of the package are unknown: there is neither setup.cfg nor pip's
    record.
    """
    version = slimdeploy.__version__
    info = f"slimdeploy-{version}.dist-info"
    setup = root / "setup.cfg"
    files, metadata, entry_points = _checkout(setup) if setup.is_file() else _installed(root)
    content = {f"slimdeploy/{name}": (root / name).read_bytes() for name in sorted(files)}
    content |= {
        f"{info}/METADATA": f"{METADATA}Version: {version}\n{metadata}".encode(),
        f"{info}/WHEEL": TAG.encode(),
        f"{info}/entry_points.txt": entry_points.encode(),
    }
    record = "".join(f"{name},sha256={_digest(data)},{len(data)}\n" for name, data in content.items())
    content[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n".encode()
    path = folder / f"slimdeploy-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for name, data in content.items():
            entry = zipfile.ZipInfo(name, _EPOCH)
            entry.external_attr = 0o644 << 16
            wheel.writestr(entry, data, zipfile.ZIP_DEFLATED)
    return path


def _checkout(file: Path) -> tuple[set[str], str, str]:
    """Files of the package, requirements and entry points as setup.cfg declares them."""
    setup = configparser.ConfigParser()
    setup.read(file, encoding="utf-8")
    options = setup["options"]
    files = set()
    for package in options["packages"].split():
        folder = file.parent.joinpath(*package.split(".")[1:])
        patterns = ["*.py", *setup["options.package_data"].get(package, "").split()]
        files |= {f.relative_to(file.parent).as_posix() for p in patterns for f in folder.glob(p)}
    requirements = [("", options["install_requires"]), *setup["options.extras_require"].items()]
    lines = [f"Requires-Python: {options['python_requires']}"]
    lines += [line for extra, text in requirements for line in _requires(extra, text)]
    scripts = setup["options.entry_points"]["console_scripts"].strip()
    return files, "\n".join(lines) + "\n", f"[console_scripts]\n{scripts}\n"


def _requires(extra: str, requirements: str) -> Iterator[str]:
    """The METADATA lines of the requirements of an extra, or for an empty name of the package."""
    if extra:
        yield f"Provides-Extra: {extra}"
    for line in requirements.strip().splitlines():
        name, _, marker = (part.strip() for part in line.partition(";"))
        if name and not name.startswith("#"):
            of_extra = f'extra == "{extra}"' if extra else ""
            condition = f"({marker}) and {of_extra}" if marker and extra else marker or of_extra
            yield f"Requires-Dist: {name}" + (f"; {condition}" if condition else "")


def _installed(root: Path) -> tuple[set[str], str, str]:
    """The same for an installation by pip, from its record."""
    try:
        found = importlib.metadata.distribution("slimdeploy")
    except importlib.metadata.PackageNotFoundError:
        found = None
    parts = [file.parts for file in found.files or ()] if found else []
    files = {"/".join(p[1:]) for p in parts if p[0] == "slimdeploy" and "__pycache__" not in p}
    if not found or not files:
        raise SlimdeployError(
            f"no wheel can be made of {root}: it is no checkout, and pip has no record of it; install it "
            "with pip, or run this from a checkout"
        )
    wanted = ("Requires-Python:", "Requires-Dist:", "Provides-Extra:")
    header = (found.read_text("METADATA") or "").partition("\n\n")[0].splitlines()
    metadata = "".join(f"{line}\n" for line in header if line.startswith(wanted))
    return files, metadata, found.read_text("entry_points.txt") or ""


def _digest(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip("=")
