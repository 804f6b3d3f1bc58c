"""Which files an ONNX graph reads beside itself: what it says, before an engine that may believe it opens them.

Only as much of the format as that takes: ModelProto, GraphProto, NodeProto, AttributeProto, TensorProto and their external data.
"""

from __future__ import annotations

from collections.abc import Iterator

from .typed_json import Malformed

# message -> {field number: the message that lies in it}
_PARTS = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
}
_DEEPEST = 100


def external_files(data: bytes) -> set[str]:
    """Every ``location`` of external data in a serialized model. Raises Malformed for what is no protobuf message."""
    found: set[str] = set()
    waiting = [("model", memoryview(data), 0)]
    while waiting:
        kind, message, depth = waiting.pop()
        if depth > _DEEPEST:
            raise Malformed("graphs inside graphs without end")
        if kind == "entry":
            found |= _location(message)
            continue
        parts = _PARTS[kind]
        waiting += [(parts[number], value, depth + 1) for number, value in _fields(message) if number in parts]
    return found


def _location(entry: memoryview) -> set[str]:
    """The value of an entry whose key is "location"; of a field that comes twice the last one counts."""
    pair = {number: bytes(value) for number, value in _fields(entry)}
    return {pair.get(2, b"").decode("utf-8", "replace")} if pair.get(1) == b"location" else set()


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """The fields that have a length, with their numbers."""
    place = 0
    while place < len(message):
        tag, place = _varint(message, place)
        if tag & 7 == 0:
            _, place = _varint(message, place)
        elif tag & 7 == 2:
            size, place = _varint(message, place)
            if size > len(message) - place:
                raise Malformed("a field longer than the file")
            yield tag >> 3, message[place : place + size]
            place += size
        elif tag & 7 in (1, 5):
            place += 8 if tag & 7 == 1 else 4
        else:
            raise Malformed("bytes that are no protobuf")


def _varint(message: memoryview, place: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if place >= len(message):
            break
        byte = message[place]
        place += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, place
    raise Malformed("a number without end")
