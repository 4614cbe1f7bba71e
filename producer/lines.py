"""Whole lines of bytes, out of files that grow and are rotated, and out of pipes.

A line counts once its newline has come; only where nothing can follow any more (the end of a file
that is not followed, of a rotated file, of a pipe) does the rest without a newline count too. At
most `LONGEST` bytes are ever held: a longer line is skipped up to its newline and shows up without
its text. What the lines mean is for `producer.sources` to say.
"""

import os
import select
import time
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

#: Bytes of the longest line that is read, without its newline.
LONGEST = 4_000_000
#: Bytes asked for at once.
CHUNK = 1 << 18
_BOM = b"\xef\xbb\xbf"
_TAIL = 64


@dataclass(frozen=True, slots=True)
class Line:
    """One line without its newline (`text` is None: too long), and the place just after it.

    `tail` is the length and the CRC-32 of the bytes just before that place, so that a file which
    was written anew in place is not mistaken for the one that was read.
    """

    text: bytes | None
    number: int
    offset: int
    inode: int
    tail: tuple[int, int]

    @property
    def position(self) -> dict[str, Any]:
        """Where `file_lines` goes on after this line."""
        return {
            "offset": self.offset,
            "line": self.number,
            "inode": self.inode,
            "tail": list(self.tail),
        }


class _Splitter:
    """Cuts chunks into lines, counting lines and bytes from `number` and `offset` on."""

    def __init__(self, number: int = 0, offset: int = 0, inode: int = 0) -> None:
        self._number, self._offset, self._inode = number, offset, inode
        self._held = bytearray()
        self._length = 0

    def lines(self, chunk: bytes) -> Iterator[Line]:
        start = 0
        while (end := chunk.find(b"\n", start)) >= 0:
            self._hold(chunk[start:end])
            yield self._close(newline=1)
            start = end + 1
        self._hold(chunk[start:])

    def rest(self) -> Iterator[Line]:
        """What was held when nothing can follow any more: a last line without a newline."""
        if self._length:
            yield self._close(newline=0)

    def _hold(self, part: bytes) -> None:
        self._length += len(part)
        if self._length <= LONGEST:
            self._held += part
        else:
            self._held.clear()

    def _close(self, *, newline: int) -> Line:
        text = bytes(self._held) if self._length <= LONGEST else None
        last = self._held[-_TAIL:] + b"\n" * newline if text is not None else b""
        if text is not None and self._number == 0:
            text = text.removeprefix(_BOM)
        self._number += 1
        self._offset += self._length + newline
        self._held.clear()
        self._length = 0
        tail = (len(last), zlib.crc32(last))
        return Line(text, self._number, self._offset, self._inode, tail)


def file_lines(
    path: Path,
    position: Mapping[str, Any] | None = None,
    *,
    follow: bool = False,
    idle_s: float = 0.5,
) -> Iterator[Line | None]:
    """The lines of a file, going on after `position` (a `Line.position`) if that still fits.

    It fits the same inode with the same bytes before `offset`; any other file is read from its
    start. With `follow` this never ends: it waits for a missing file, gives None after every
    `idle_s` seconds without bytes, reads a rotated file to its end before the new one, and starts
    a truncated file anew. What a rotation took away while nobody was reading is not looked for.

    Raises:
        OSError: the file cannot be opened or read.
    """
    while True:
        try:
            file = path.open("rb", buffering=0)
        except FileNotFoundError:
            if not follow:
                raise
            time.sleep(idle_s)
            yield None
            continue
        with file:
            if follow:
                yield from _followed(path, file, position, idle_s)
            else:
                yield from _read(file, _place(file, position), to_the_end=True)
        if not follow:
            return
        position = None


def pipe_lines(fd: int, *, idle_s: float = 0.5) -> Iterator[Line | None]:
    """The lines of a pipe until its end, and None after every `idle_s` seconds without bytes.

    Raises:
        OSError: the descriptor cannot be read.
    """
    splitter = _Splitter()
    while True:
        if not select.select([fd], [], [], idle_s)[0]:
            yield None
            continue
        chunk = os.read(fd, CHUNK)
        if not chunk:
            yield from splitter.rest()
            return
        yield from splitter.lines(chunk)


def _place(file: BinaryIO, position: Mapping[str, Any] | None) -> _Splitter:
    inode = os.fstat(file.fileno()).st_ino
    if not position or position.get("inode") != inode or not _same_tail(file, position):
        file.seek(0)
        return _Splitter(inode=inode)
    file.seek(position["offset"])
    return _Splitter(position["line"], position["offset"], inode)


def _same_tail(file: BinaryIO, position: Mapping[str, Any]) -> bool:
    if os.fstat(file.fileno()).st_size < position["offset"]:
        return False
    length, crc = position.get("tail", (0, 0))
    file.seek(position["offset"] - length)
    return bool(zlib.crc32(file.read(length)) == crc)


def _read(file: BinaryIO, splitter: _Splitter, *, to_the_end: bool) -> Iterator[Line]:
    """The whole lines that are there now; with `to_the_end` the last one without a newline too."""
    while chunk := file.read(CHUNK):
        yield from splitter.lines(chunk)
    if to_the_end:
        yield from splitter.rest()


def _followed(
    path: Path, file: BinaryIO, position: Mapping[str, Any] | None, idle_s: float
) -> Iterator[Line | None]:
    """One file's lines until another one has taken its name."""
    splitter = _place(file, position)
    leaving = False
    while True:
        before = file.tell()
        yield from _read(file, splitter, to_the_end=False)
        if file.tell() == before:
            if leaving:
                yield from splitter.rest()
                return
            yield None
        if os.fstat(file.fileno()).st_size < file.tell():
            file.seek(0)
            splitter = _Splitter(inode=os.fstat(file.fileno()).st_ino)
            continue
        # One more round before it is left: its writer may not have noticed the rotation yet.
        leaving = _replaced(path, file)
        time.sleep(idle_s)


def _replaced(path: Path, file: BinaryIO) -> bool:
    """Whether another file has taken the name; a name that is merely gone may yet come back."""
    try:
        return not os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False
