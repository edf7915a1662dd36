"""The container format of a bundle: a plain ustar archive whose bytes are determined by its manifest.

A general tar reader must handle links, devices, long names, sparse files and false sizes. A bundle needs none
of these, so nothing is parsed: the header of each member is computed from its path and size in the manifest
and compared byte by byte. `tar -tf` can still list a bundle.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from slimdeploy.toolchain.errors import SlimdeployError

BLOCK = 512
END = bytes(2 * BLOCK)
"""A tar file ends with two empty blocks."""

MANIFEST, SIGNATURE = "manifest.json", "manifest.json.sig"
MAX_MANIFEST_BYTES = 4 << 20
MAX_SIGNATURE_BYTES = 64 << 10


def member_header(name: str, size: int) -> bytes:
    """The ustar header (POSIX.1-1988) of a regular file: mode 644, owner 0, time 0."""
    before = name.encode("ascii").ljust(100, b"\0") + b"0000644\0" + b"0000000\0" * 2
    before += b"%011o\0%011o\0" % (size, 0)
    after = b"0" + bytes(100) + b"ustar\x0000" + bytes(64) + b"0000000\0" * 2 + bytes(155 + 12)
    checksum = sum(before) + sum(b" " * 8) + sum(after)
    return before + b"%06o\0 " % checksum + after


def padding(size: int) -> bytes:
    """The zero padding of a member of `size` bytes to full blocks."""
    return bytes(-size % BLOCK)


def member_bytes(size: int) -> int:
    """Size of a member of `size` bytes in the archive, with its header."""
    return BLOCK + size + len(padding(size))


def write_member(file: BinaryIO, name: str, content: bytes) -> None:
    """Append one member to an archive."""
    file.write(member_header(name, len(content)) + content + padding(len(content)))


class Reader:
    """Reads the members of a bundle in order; any difference from the expected bytes is an error."""

    def __init__(self, file: BinaryIO, source: Path) -> None:
        self._file = file
        self._source = source
        self.total_bytes = os.fstat(file.fileno()).st_size

    def small_member(self, name: str, limit: int) -> bytes:
        """The content of the next member, which must be called `name` and have at most `limit` bytes."""
        header = self._read(BLOCK)
        try:
            size = int(header[124:135].decode("ascii"), 8)
        except ValueError:
            raise self._broken(f"no {name} at its start") from None
        if size < 0 or header != member_header(name, size):
            raise self._broken(f"no {name} at its start")
        if size > limit:
            raise self._broken(f"{name} has {size} bytes according to its header; maximum {limit}")
        content = self._read(size)
        self._expect(padding(size), f"zeros after {name}")
        return content

    def next_is(self, name: str) -> bool:
        """Whether the next member is called `name`; does not advance."""
        position = self._file.tell()
        found = self._file.read(100)
        self._file.seek(position)
        return found == name.encode("ascii").ljust(100, b"\0")

    def member(self, name: str, size: int, sha256: str) -> Iterator[bytes]:
        """The next member in pieces; raises SlimdeployError at the end if its hash isn't `sha256`."""
        self._expect(member_header(name, size), f"{name} with {size} bytes")
        digest = hashlib.sha256()
        left = size
        while left:
            chunk = self._read(min(left, 1 << 20))
            left -= len(chunk)
            digest.update(chunk)
            yield chunk
        self._expect(padding(size), f"zeros after {name}")
        if digest.hexdigest() != sha256:
            raise self._broken(f"{name} differs from its SHA-256 in the manifest")

    def end(self) -> None:
        self._expect(END, "the end of the archive")
        if self._file.read(1):
            raise self._broken("more bytes follow its end")

    def _expect(self, expected: bytes, what: str) -> None:
        position = self._file.tell()
        if self._read(len(expected)) != expected:
            raise self._broken(f"expected {what} at byte {position}")

    def _read(self, count: int) -> bytes:
        content = self._file.read(count)
        if len(content) != count:
            raise self._broken("it ends too early")
        return content

    def _broken(self, reason: str) -> SlimdeployError:
        return SlimdeployError(
            f"{self._source}: not a complete bundle, {reason}: copy it again or repeat slimdeploy package"
        )
