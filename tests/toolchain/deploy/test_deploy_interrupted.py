"""Killed, cut short or out of disk at any point: the version before, or the bundle before, is still whole."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from slimdeploy.tests.toolchain.deploy.stores import OPTIONS, leftovers, whole
from slimdeploy.toolchain.artifacts import check_output
from slimdeploy.toolchain.deploy import bundle as bundles
from slimdeploy.toolchain.deploy import device
from slimdeploy.toolchain.deploy.store import Store
from slimdeploy.toolchain.file_kinds import BUNDLE

KILLER = Path(__file__).with_name("kill_at_every_step.py")
CLI = [sys.executable, "-m", "slimdeploy.toolchain"]


def run_killer(action: str, root: Path, *arguments: object) -> list[dict]:
    done = subprocess.run(
        [sys.executable, KILLER, action, root, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=True,
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_deploy_killed_at_every_step(bundle, other_bundle, store):
    """Wherever it dies: the version before or the new one is whole, and the next deploy finds a clean
    place.
    """
    device.install(other_bundle, store, OPTIONS)
    runs = run_killer("deploy", store.root, bundle)
    assert len(runs) > 12
    assert runs[-1]["status"] == 0
    seen = set()
    for run in runs:
        copy = Store(Path(run["root"]))
        assert whole(copy), run
        seen.add(copy.current().name)
        with copy.lock():
            copy.clean()
        assert not leftovers(copy), run
        assert not list(copy.root.glob(".*")), run
    assert seen == {"0001-other", "0002-net"}
    killed = Store(Path(runs[len(runs) // 2]["root"]))
    assert device.install(bundle, killed, OPTIONS).version == "0002-net"


def test_rollback_killed_at_every_step(bundle, other_bundle, store):
    device.install(other_bundle, store, OPTIONS)
    device.install(bundle, store, OPTIONS)
    runs = run_killer("rollback", store.root)
    assert runs[-1]["status"] == 0
    for run in runs:
        assert whole(Store(Path(run["root"]))), run
    assert Store(Path(runs[-1]["root"])).current().name == "0001-other"


def test_package_killed_at_every_step(models, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/net.slim.tar").write_bytes(b"the old bundle")
    runs = run_killer("package", tmp_path / "out", models["fp32"], models["int8"])
    assert len(runs) > 2
    found = [Path(run["root"], "net.slim.tar").read_bytes() for run in runs]
    assert found[0] == b"the old bundle"
    assert set(found) == {b"the old bundle", found[-1]}
    assert bundles.read_bundle(Path(runs[-1]["root"], "net.slim.tar")).manifest.name == "net"
    for run in runs:
        check_output(Path(run["root"], "net.slim.tar"), force=True, kind=BUNDLE)  # as the next run does
        assert [path.name for path in Path(run["root"]).iterdir()] == ["net.slim.tar"], run


@pytest.mark.parametrize("limit", [1_000, 20_000, 200_000])
def test_write_that_fails_midway(bundle, other_bundle, store, limit):
    """A limit on the size of files: the write of a model, or of a smaller file, fails in its middle."""
    device.install(other_bundle, store, OPTIONS)
    done = subprocess.run(
        [*CLI, "deploy", bundle, "--root", store.root, "--seconds", "0.01", "--json"],
        capture_output=True, text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)), check=False,
    )  # fmt: skip
    if limit == 200_000:
        assert done.returncode == 0, done.stderr
        return
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("slimdeploy: cannot write ")
    assert done.stderr.count("\n") == 1
    assert store.active() == ["0001-other"]
    assert whole(store)
    assert not leftovers(store)


def test_package_that_fails_midway(models, tmp_path):
    """The bundle is larger than any file may become: one line, and the one before is kept."""
    path = tmp_path / "net.slim.tar"
    path.write_bytes(b"the old bundle")
    done = subprocess.run(
        [*CLI, "package", models["fp32"], "--noise", "-o", path, "--force"], capture_output=True, text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)), check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"slimdeploy: cannot write {path}: ")
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == b"the old bundle"


def test_disk_full(bundle, tmp_path):
    """A real file system of 100 KiB: the bundle's second model doesn't fit."""
    script = (
        "import sys; from pathlib import Path; from slimdeploy.toolchain.deploy import device; "
        "from slimdeploy.toolchain.deploy.options import DeployOptions; "
        "from slimdeploy.toolchain.deploy.store import Store; device.DISK_MARGIN = -1 << 40; "
        "device.install(Path(sys.argv[1]), Store(Path(sys.argv[2])), DeployOptions())"
    )
    place = tmp_path / "small"
    place.mkdir()
    command = 'mount -t tmpfs -o size=100k none "$1" || exit 99; "$2" -c "$3" "$4" "$1"; ls -A "$1/versions"'
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", command, "sh", place, sys.executable,
         script, bundle], capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode == 99 or "unshare" in done.stderr:
        pytest.skip(f"no mount in a user namespace here: {done.stderr.strip()}")
    assert "No space left on device" in done.stderr.splitlines()[-1]
    assert done.stdout == ""
