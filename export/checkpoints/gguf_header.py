"""Sizes in a GGUF header are compared with the file before anything believes them: the reader loops and allocates as they say."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO, Literal

from ..errors import CheckpointError

_SCALARS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # bytes of a value, by type
_STRING, _ARRAY = 8, 9
_MOST_ENTRIES = 1 << 22  # of an array: vocabularies and merges have some hundred thousand
_MOST_FIELDS, _MOST_TENSORS, _MOST_DIMENSIONS = 1 << 16, 1 << 20, 4


class _Header:
    """Walks through a header of a file of ``size`` bytes. Raises ValueError for what cannot be in it."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self._size = file, size
        self.order: Literal["little", "big"] = "little"

    def number(self, size: int) -> int:
        self.expect(size)
        return int.from_bytes(self._file.read(size), self.order)

    def skip(self, size: int) -> None:
        self.expect(size)
        self._file.seek(size, 1)

    def expect(self, size: int) -> None:
        if size > self._size - self._file.tell():
            raise ValueError(f"it names {size} bytes where {self._size - self._file.tell()} are left")

    def count(self, size: int, most: int, what: str) -> int:
        count = self.number(size)
        if count > most:
            raise ValueError(f"it names {count} {what}")
        return count

    def text(self) -> None:
        self.skip(self.number(8))

    def value(self, kind: int, depth: int = 0) -> None:
        """Skip a value of a type."""
        if kind in _SCALARS:
            self.skip(_SCALARS[kind])
        elif kind == _STRING:
            self.text()
        elif kind == _ARRAY and depth < 2:
            inner, count = self.number(4), self.count(8, _MOST_ENTRIES, "entries of an array")
            if inner in _SCALARS:
                self.skip(count * _SCALARS[inner])
            else:
                for _ in range(count):
                    self.value(inner, depth + 1)
        else:
            raise ValueError(f"it holds a value of the unknown type {kind}")


def check_header(path: Path) -> None:
    """Raises CheckpointError when counts, lengths or tensors of the header cannot be in a file of this size."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            header = _Header(file, size)
            if header.number(4) != 0x46554747:
                raise ValueError("it does not begin with GGUF")
            version = header.number(4)
            if version & 0xFFFF == 0:
                header.order = "big"
            tensors, fields = header.count(8, _MOST_TENSORS, "tensors"), header.count(8, _MOST_FIELDS, "fields")
            for _ in range(fields):
                header.text()
                header.value(header.number(4))
            for _ in range(tensors):
                header.text()
                elements = 1
                for _ in range(header.count(4, _MOST_DIMENSIONS, "dimensions")):
                    elements *= header.number(8)
                block, bytes_ = GGML_QUANT_SIZES[GGMLQuantizationType(header.number(4))]
                place = header.number(8)
                if elements // block * bytes_ + place > size:
                    raise ValueError(f"it names a tensor of {elements} numbers, the file has {size} bytes")
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"cannot read {path}: {error} — the file is truncated or damaged, download it again") from None
