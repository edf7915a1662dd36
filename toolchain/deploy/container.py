"""The form of a bundle: a plain ustar archive whose every byte follows from its manifest.

A reader of tar files in general must judge links, devices, long names, sparse files and claimed sizes. A
bundle needs none of them, so nothing is parsed: the header of each member is computed from the manifest's
path and size, and must be in the file byte for byte. `tar -tf` lists a bundle all the same.
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
    """The zeros that fill a member of `size` bytes up to whole blocks."""
    return bytes(-size % BLOCK)


def member_bytes(size: int) -> int:
    """What a member of `size` bytes takes in the archive, its header included."""
    return BLOCK + size + len(padding(size))


def write_member(file: BinaryIO, name: str, content: bytes) -> None:
    """Append one member to an archive."""
    file.write(member_header(name, len(content)) + content + padding(len(content)))


class Reader:
    """Reads the members of a bundle in order; every difference from what is expected is an error."""

    def __init__(self, file: BinaryIO, source: Path) -> None:
        self._file = file
        self._source = source
        self.total_bytes = os.fstat(file.fileno()).st_size

    def small_member(self, name: str, limit: int) -> bytes:
        """The content of the next member, which must be `name` with at most `limit` bytes."""
        header = self._read(BLOCK)
        try:
            size = int(header[124:135].decode("ascii"), 8)
        except ValueError:
            raise self._broken(f"no {name} at its start") from None
        if size < 0 or header != member_header(name, size):
            raise self._broken(f"no {name} at its start")
        if size > limit:
            raise self._broken(f"{name} claims {size} bytes; {limit} are allowed")
        content = self._read(size)
        self._expect(padding(size), f"zeros after {name}")
        return content

    def next_is(self, name: str) -> bool:
        """Whether the next member is called `name`; reads nothing."""
        position = self._file.tell()
        found = self._file.read(100)
        self._file.seek(position)
        return found == name.encode("ascii").ljust(100, b"\0")

    def member(self, name: str, size: int, sha256: str) -> Iterator[bytes]:
        """The next member in pieces; raises SlimdeployError at the end where its hash isn't `sha256`."""
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
            raise self._broken(f"expected {what} at byte {position}, found something else")

    def _read(self, count: int) -> bytes:
        content = self._file.read(count)
        if len(content) != count:
            raise self._broken("it ends too early")
        return content

    def _broken(self, reason: str) -> SlimdeployError:
        return SlimdeployError(
            f"{self._source}: not a whole bundle, {reason}; copy it again or repeat slimdeploy package"
        )
