"""Validates a GGUF header before the gguf package reads it, because that package loops and allocates as the header says.

A damaged or hostile file with absurd counts would otherwise exhaust time or memory.
"""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO, Literal

from ..errors import CheckpointError
from .lfs import refuse_pointer

_SCALAR_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # size of a value, by GGUF type
_STRING, _ARRAY = 8, 9
_MAX_ENTRIES = 1 << 22  # of an array; vocabularies and merges have a few hundred thousand
_MAX_FIELDS, _MAX_TENSORS, _MAX_DIMENSIONS = 1 << 16, 1 << 20, 4


class _HeaderReader:
    """Reads and skips the parts of a header in a file of ``size`` bytes. Methods raise ValueError if a part cannot be in the file."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self._size = file, size
        self.byte_order: Literal["little", "big"] = "little"

    def number(self, size: int) -> int:
        self._check_left(size)
        return int.from_bytes(self._file.read(size), self.byte_order)

    def count(self, size: int, limit: int, unit: str) -> int:
        """A number of ``size`` bytes, at most ``limit``. ``unit``: what is counted, for the error."""
        count = self.number(size)
        if count > limit:
            raise ValueError(f"the header claims {count} {unit}")
        return count

    def skip(self, size: int) -> None:
        self._check_left(size)
        self._file.seek(size, 1)

    def skip_string(self) -> None:
        self.skip(self.number(8))

    def skip_value(self, kind: int, depth: int = 0) -> None:
        """Skip a value of GGUF type ``kind``. ``depth``: number of arrays around it, at most two."""
        if kind in _SCALAR_BYTES:
            self.skip(_SCALAR_BYTES[kind])
        elif kind == _STRING:
            self.skip_string()
        elif kind == _ARRAY and depth < 2:
            inner, count = self.number(4), self.count(8, _MAX_ENTRIES, "entries of an array")
            if inner in _SCALAR_BYTES:
                self.skip(count * _SCALAR_BYTES[inner])
            else:
                for _ in range(count):
                    self.skip_value(inner, depth + 1)
        else:
            raise ValueError(f"the header has a value of the unknown type {kind}")

    def _check_left(self, size: int) -> None:
        left = self._size - self._file.tell()
        if size > left:
            raise ValueError(f"the header claims {size} bytes where {left} are left")


def check_header(path: Path) -> None:
    """Raises CheckpointError if the counts, lengths or tensors in the header cannot be in a file of this size."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    size = path.stat().st_size
    try:
        refuse_pointer(path)
        with path.open("rb") as file:
            header = _HeaderReader(file, size)
            if header.number(4) != 0x46554747:
                raise ValueError("it does not begin with GGUF")
            version = header.number(4)
            if version & 0xFFFF == 0:
                header.byte_order = "big"
            tensors, fields = header.count(8, _MAX_TENSORS, "tensors"), header.count(8, _MAX_FIELDS, "fields")
            for _ in range(fields):
                header.skip_string()
                header.skip_value(header.number(4))
            for _ in range(tensors):
                header.skip_string()
                elements = 1
                for _ in range(header.count(4, _MAX_DIMENSIONS, "dimensions")):
                    elements *= header.number(8)
                block_elements, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(header.number(4))]
                offset = header.number(8)
                if elements // block_elements * block_bytes + offset > size:
                    raise ValueError(f"the header claims a tensor of {elements} numbers, but the file has {size} bytes")
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"cannot read {path}: {error} — the file is truncated or damaged, download it again") from None
