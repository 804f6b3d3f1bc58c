"""Copies of the demo model's GGUF with its weights dequantized to float32, or quantized again to Q8_0."""

from __future__ import annotations

from pathlib import Path

import numpy as np

KINDS = ("F32", "Q8_0")


def write_gguf(source: Path, out: Path, kind: str) -> Path:
    """Copy ``source`` with every matrix as ``kind`` (KINDS); vectors stay float32, as in llama.cpp. An existing ``out`` is kept."""
    import gguf
    from gguf.quants import dequantize, quantize

    if kind not in KINDS:
        raise ValueError(f"unknown kind {kind!r} — choose from {', '.join(KINDS)}")
    if out.is_file():
        return out
    reader = gguf.GGUFReader(source)
    family = reader.get_field("general.architecture")
    if family is None:
        raise ValueError(f"{source} names no architecture")
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_suffix(".partial")
    writer = gguf.GGUFWriter(partial, family.contents())
    writer.add_file_type(gguf.LlamaFileType.ALL_F32 if kind == "F32" else gguf.LlamaFileType.MOSTLY_Q8_0)
    for name, entry in reader.fields.items():
        if name.startswith("GGUF.") or name in ("general.architecture", "general.file_type"):
            continue  # set by the writer
        item = entry.types[1] if entry.types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(name, entry.contents(), entry.types[0], sub_type=item)
    kind_type = gguf.GGMLQuantizationType[kind]
    for tensor in reader.tensors:
        values = np.asarray(dequantize(tensor.data, tensor.tensor_type), np.float32)
        if kind == "F32" or values.ndim == 1:
            writer.add_tensor(tensor.name, values)
        else:
            writer.add_tensor(tensor.name, quantize(values, kind_type), raw_dtype=kind_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return partial.replace(out)
