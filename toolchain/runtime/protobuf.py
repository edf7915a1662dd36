"""Parse the protobuf wire format (protobuf.dev, "Encoding") without a library and without copies."""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np


class DamagedError(Exception):
    """The bytes are not the expected message."""


@dataclass(frozen=True)
class Message:
    """A message, or the bytes of a string: a part of the content, by its position (views of a mapped file
    must not outlive it).
    """

    content: bytes | mmap.mmap = field(repr=False)
    start: int
    end: int

    def fields(self) -> Iterator[tuple[int, int | Message]]:
        """Field number and value of each field: an integer (the bits of a float), or a string or message."""
        position = self.start
        while position < self.end:
            tag, position = self._varint(position)
            number, kind = tag >> 3, tag & 7
            value: int | Message
            if kind == 0:
                value, position = self._varint(position)
            elif kind == 2:
                length, start = self._varint(position)
                position = start + length
                value = Message(self.content, start, position)
            elif kind in (1, 5):
                start, position = position, position + (8 if kind == 1 else 4)
                value = int.from_bytes(self.content[start:position], "little")
            else:
                raise DamagedError(f"an unknown field at byte {position}")
            if position > self.end or not number:
                raise DamagedError(f"a field at byte {position} that doesn't fit")
            yield number, value

    def __len__(self) -> int:
        return self.end - self.start

    def raw(self) -> bytes:
        return self.content[self.start : self.end]

    def text(self) -> str:
        try:
            return self.raw().decode()
        except UnicodeDecodeError:
            raise DamagedError(f"text at byte {self.start} that isn't UTF-8") from None

    def integers(self) -> list[int]:
        """Packed 64-bit integers."""
        found, position = [], self.start
        while position < self.end:
            value, position = self._varint(position)
            found.append(signed(value))
        return found

    def count_integers(self) -> int:
        """Number of packed integers, without reading them."""
        return int((np.frombuffer(self.raw(), np.uint8) < 0x80).sum())

    def _varint(self, position: int) -> tuple[int, int]:
        value = 0
        for shift in range(0, 70, 7):
            if position >= self.end:
                raise DamagedError("it ends too early")
            byte = self.content[position]
            position += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value, position
        raise DamagedError(f"a number too long at byte {position}")


def nested(value: int | Message) -> Message:
    if isinstance(value, int):
        raise DamagedError("a number where a message is expected")
    return value


def text(value: int | Message | None) -> str:
    return "" if value is None else nested(value).text()


def integer(value: int | Message | None) -> int:
    if isinstance(value, Message):
        raise DamagedError("a message where a number is expected")
    return signed(value or 0)


def integers(value: int | Message) -> list[int]:
    """A repeated integer field, packed or one entry of it."""
    return value.integers() if isinstance(value, Message) else [signed(value)]


def float32(value: int | Message) -> float:
    return float(struct.unpack("<f", integer(value).to_bytes(8, "little", signed=True)[:4])[0])


def signed(value: int) -> int:
    """A 64-bit integer: protobuf encodes negative ones as two's complement."""
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >> 63 else value
