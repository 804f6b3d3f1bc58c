"""Lists the external data files of an ONNX graph, so that they can be checked before an inference engine opens them.

It parses only the part of ONNX's protobuf format that this needs: ModelProto, GraphProto, NodeProto, AttributeProto, TensorProto and their
external data.
"""

from __future__ import annotations

from collections.abc import Iterator

from .typed_json import Malformed

# message type -> {field number: type of the nested message}
_NESTED = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
}
_MAX_DEPTH = 100


def external_files(data: bytes) -> set[str]:
    """Every ``location`` of external data in a serialized model. Raises Malformed for invalid protobuf."""
    locations: set[str] = set()
    pending = [("model", memoryview(data), 0)]
    while pending:
        kind, message, depth = pending.pop()
        if depth > _MAX_DEPTH:
            raise Malformed("graphs are nested too deeply")
        if kind == "entry":
            locations |= _location(message)
            continue
        nested = _NESTED[kind]
        pending += [(nested[number], value, depth + 1) for number, value in _fields(message) if number in nested]
    return locations


def _location(entry: memoryview) -> set[str]:
    """The value of an entry with the key "location". In protobuf, the last of repeated fields counts."""
    pair = {number: bytes(value) for number, value in _fields(entry)}
    return {pair.get(2, b"").decode("utf-8", "replace")} if pair.get(1) == b"location" else set()


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """(number, content) of every length-delimited field."""
    offset = 0
    while offset < len(message):
        tag, offset = _varint(message, offset)
        if tag & 7 == 0:
            _, offset = _varint(message, offset)
        elif tag & 7 == 2:
            size, offset = _varint(message, offset)
            if size > len(message) - offset:
                raise Malformed("a field is longer than the file")
            yield tag >> 3, message[offset : offset + size]
            offset += size
        elif tag & 7 in (1, 5):
            offset += 8 if tag & 7 == 1 else 4
        else:
            raise Malformed("it is not a protobuf message")


def _varint(message: memoryview, offset: int) -> tuple[int, int]:
    """(value, offset after it)."""
    value = 0
    for shift in range(0, 70, 7):
        if offset >= len(message):
            break
        byte = message[offset]
        offset += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, offset
    raise Malformed("a number is not terminated")
