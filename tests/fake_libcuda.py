"""Environments in which `devices/pycuda.py` runs without a GPU: over a model of pycuda, or over pycuda itself
and a driver library that keeps contexts as the real one does.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from pathlib import Path

from processes import TESTS, process_environment


def over_the_model() -> dict[str, str]:
    environment = process_environment()
    paths = [str(TESTS / "pycuda_model"), environment["PYTHONPATH"]]
    return {**environment, "PYTHONPATH": os.pathsep.join(paths)}


def why_not_genuine() -> str | None:
    """What is missing for genuine pycuda; None where nothing is."""
    if not importlib.util.find_spec("pycuda"):
        return "pycuda is not installed (pip install pycuda builds it, with CUDA's headers)"
    missing = [program for program in ("gcc", "nm") if not shutil.which(program)]
    return f"{missing[0]} is not installed" if missing else None


def over_genuine_pycuda(folder: Path) -> dict[str, str]:
    """Compiles the driver library into `folder`."""
    source = (TESTS / "fake_libcuda.c").read_text()
    (extension,) = Path(importlib.util.find_spec("pycuda").submodule_search_locations[0]).glob("_driver*.so")
    listed = subprocess.run(
        ["nm", "-D", "--undefined-only", extension], capture_output=True, text=True, check=True
    )
    wanted = {line.split()[-1].partition("@")[0] for line in listed.stdout.splitlines()}
    there = set(re.findall(r"^R (cu\w+)\(", source, re.MULTILINE))
    rest = sorted(name for name in wanted if re.match(r"cu[A-Z]", name) and name not in there)
    file, library = folder / "fake.c", folder / "libcuda.so.1"
    file.write_text(source + "".join(f"R {name}() {{ return 0; }}\n" for name in rest))
    options = ["-shared", "-fPIC", "-w", "-Wl,-soname,libcuda.so.1"]
    subprocess.run(["gcc", *options, "-o", library, file], check=True)
    return {**process_environment(), "LD_PRELOAD": str(library)}
