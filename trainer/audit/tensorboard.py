"""TensorBoard event files: their scalars, by a reader of the two formats they are made of and of nothing else.

An event file is a sequence of records: length (8 bytes), its masked CRC-32C, content, its masked CRC-32C, little-endian. The
content is a protocol buffer: field 2 the step, field 5 the summary; in it field 1 each value: field 1 its tag, field 2 a
float, or field 8 a tensor. Nothing is executed, no length is believed before it is checked against what is there.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping

VARINT, EIGHT, BYTES, FOUR = 0, 1, 2, 5
_FLOAT, _DOUBLE = 1, 2


def _table() -> list[int]:
    """The table of CRC-32C (Castagnoli), reflected polynomial 0x82F63B78."""
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
        table.append(byte)
    return table


_CRC = _table()


def crc32c(data: bytes) -> int:
    """The CRC-32C of some bytes; of b"123456789" it is 0xE3069283."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _CRC[(crc ^ byte) & 255]
    return crc ^ 0xFFFFFFFF


def masked(data: bytes) -> int:
    """The CRC as records store it: rotated by 15 bits, plus a constant, so that a CRC of CRCs means something."""
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def looks_like_events(content: bytes) -> bool:
    """Whether a file begins with a record: a length whose CRC is right."""
    return len(content) >= 12 and masked(content[:8]) == struct.unpack_from("<I", content, 8)[0]


def read_events(content: bytes) -> tuple[list[tuple[str, Mapping[str, str]]], list[str]]:
    """((place, tag -> number) of every step, what could not be read). Scalars of one step are one row."""
    unread: list[str] = []
    rows: list[tuple[str, dict[str, str]]] = []
    for at, record in _records(content, unread):
        try:
            step, scalars = _event(record)
        except (ValueError, struct.error, IndexError, UnicodeDecodeError):
            unread.append(f"byte {at}: not an event")
            continue
        if not scalars:
            continue
        last = rows[-1][1] if rows else {}
        if last.get("step") == str(step) and not scalars.keys() & last.keys():
            last.update(scalars)
        else:
            rows.append((f"event at byte {at}", {"step": str(step), **scalars}))
    return [(place, row) for place, row in rows], unread


def _records(content: bytes, unread: list[str]) -> Iterator[tuple[int, bytes]]:
    """(position, content) of every record whose CRCs are right; the first damage ends the file."""
    at = 0
    while at < len(content):
        if not looks_like_events(content[at : at + 12]):
            unread.append(f"byte {at}: no record begins here; {len(content) - at} bytes are left out")
            return
        (length,) = struct.unpack_from("<Q", content, at)
        data = content[at + 12 : at + 12 + length]
        check = content[at + 12 + length : at + 16 + length]
        if len(data) != length or len(check) != 4 or struct.unpack("<I", check)[0] != masked(data):
            unread.append(f"byte {at}: a record of {length} bytes is torn or damaged; the rest is left out")
            return
        yield at, data
        at += 16 + length


def _event(record: bytes) -> tuple[int, dict[str, str]]:
    """(step, tag -> number) of an event."""
    step, scalars = 0, {}
    for number, kind, value in _fields(record):
        if number == 2 and kind == VARINT and isinstance(value, int):
            step = value - (1 << 64) if value >> 63 else value
        elif number == 5 and kind == BYTES and isinstance(value, bytes):
            for inner, form, data in _fields(value):
                if inner == 1 and form == BYTES and isinstance(data, bytes):
                    tag, scalar = _value(data)
                    if tag and scalar is not None:
                        scalars[tag] = scalar
    return step, scalars


def _value(data: bytes) -> tuple[str, str | None]:
    """(tag, number as text) of a summary value; None for a picture, a histogram, a tensor of more than one number."""
    tag, scalar = "", None
    for number, kind, value in _fields(data):
        if number == 1 and kind == BYTES and isinstance(value, bytes):
            tag = value.decode()
        elif number == 2 and kind == FOUR and isinstance(value, bytes):
            scalar = _text32(value)
        elif number == 8 and kind == BYTES and isinstance(value, bytes):
            scalar = _tensor(value)
    return tag, scalar


def _text32(data: bytes) -> str:
    """A float32 with the eight digits that it is good for."""
    return f"{struct.unpack('<f', data)[0]:.7e}"


def _tensor(data: bytes) -> str | None:
    """The one number of a tensor of floats or doubles."""
    held = {number: value for number, _, value in _fields(data)}
    content = next((v for k in (4, 5, 6) if isinstance(v := held.get(k), bytes)), b"")
    if held.get(1) == _FLOAT and len(content) == 4:
        return _text32(content)
    if held.get(1) == _DOUBLE and len(content) == 8:
        return repr(struct.unpack("<d", content)[0])
    return None


def _fields(data: bytes) -> Iterator[tuple[int, int, int | bytes]]:
    """(number, wire kind, value) of a protocol buffer's fields; ValueError for a kind or a length that cannot be."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, kind = key >> 3, key & 7
        if kind == VARINT:
            value, at = _varint(data, at)
            yield number, kind, value
            continue
        length = {EIGHT: 8, FOUR: 4}.get(kind)
        if kind == BYTES:
            length, at = _varint(data, at)
        if length is None or at + length > len(data):
            raise ValueError(f"field {number} of kind {kind} does not fit")
        yield number, kind, data[at : at + length]
        at += length


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """(value, next position) of a number in groups of seven bits, at most ten of them."""
    value = 0
    for k in range(10):
        byte = data[at + k]
        value |= (byte & 127) << 7 * k
        if byte < 128:
            return value, at + k + 1
    raise ValueError("a number of more than ten bytes")
