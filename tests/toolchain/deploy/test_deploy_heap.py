"""Large blocks go back to the system, whatever was allocated before."""

from __future__ import annotations

import subprocess
import sys

import pytest

COUNT_BLOCKS = """
import ctypes
from slimdeploy.toolchain.deploy.heap import return_large_blocks

class Info(ctypes.Structure):  # mallinfo2(3)
    names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = [(name, ctypes.c_size_t) for name in names.split()]

libc = ctypes.CDLL(None)
libc.mallinfo2.restype = Info
if {called}:
    return_large_blocks()
bytearray(4 << 20)  # freed at once: glibc takes smaller ones from the heap from now on
before = libc.mallinfo2().hblkhd
block = bytearray(256 << 10)
print(libc.mallinfo2().hblkhd - before)
"""


def own_mapping_bytes(*, called: bool) -> int:
    """By how much mapped memory grows with a block of 256 KiB, in a new process."""
    done = subprocess.run(
        [sys.executable, "-c", COUNT_BLOCKS.format(called=called)],
        capture_output=True,
        text=True,
        check=False,
    )
    if "mallinfo2" in done.stderr:
        pytest.skip("the C library here has no mallinfo2")
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def test_large_blocks_are_mapped_by_themselves():
    assert own_mapping_bytes(called=False) == 0
    assert own_mapping_bytes(called=True) >= 256 << 10
