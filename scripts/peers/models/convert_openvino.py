"""Converts a Hugging Face directory to OpenVINO IR: a model in float32, int8 or int4, or an EAGLE-3 draft. Runs in OpenVINO's environment.

python convert_openvino.py HF_DIR OUT_DIR {f32,int8,int4,eagle3}
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

GROUP = 32
"""Weights per int4 scale, as in Q4_1 and in onnxruntime-genai's builder. OpenVINO's default, 128, does not divide 576."""


def convert_target(source: Path, out: Path, precision: str) -> None:
    """The language model, with its cache as OpenVINO states, and its tokenizer."""
    import openvino
    from openvino_tokenizers import convert_tokenizer
    from optimum.intel import OVModelForCausalLM, OVWeightQuantizationConfig
    from transformers import AutoTokenizer

    options: dict[str, Any] = {"load_in_8bit": False}
    if precision == "int8":
        options = {"quantization_config": OVWeightQuantizationConfig(bits=8)}
    elif precision == "int4":
        options = {"quantization_config": OVWeightQuantizationConfig(bits=4, sym=False, group_size=GROUP, ratio=1.0)}
    model = OVModelForCausalLM.from_pretrained(source, export=True, compile=False, **options)
    model.save_pretrained(out)
    encoder, decoder = convert_tokenizer(AutoTokenizer.from_pretrained(source), with_detokenizer=True)
    openvino.save_model(encoder, out / "openvino_tokenizer.xml")
    openvino.save_model(decoder, out / "openvino_detokenizer.xml")


def convert_draft(source: Path, out: Path) -> None:
    """An EAGLE-3 draft with int8 weights, like ours.

    Not by optimum-cli, which looks its class up as remote code and requires packages that no text model needs.
    """
    import nncf
    import openvino
    import torch
    from optimum.exporters.openvino.convert import export_from_model
    from optimum.exporters.openvino.model_patcher import LlamaEagle3ForCausalLM
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(source)
    model, loading = LlamaEagle3ForCausalLM.from_pretrained(source, config=config, dtype=torch.float32, output_loading_info=True)
    left_out = {name: list(loading[name]) for name in ("missing_keys", "unexpected_keys", "mismatched_keys") if loading[name]}
    if left_out:
        raise SystemExit(f"the draft's weights do not fit OpenVINO's EAGLE-3 model: {left_out}")
    LlamaEagle3ForCausalLM.__module__ = "transformers_modules.eagle3"  # the exporter detects the library by the module's name
    with tempfile.TemporaryDirectory(dir=out.parent) as scratch:
        export_from_model(model, scratch, task="text-generation-with-past", stateful=True)
        exported = openvino.Core().read_model(Path(scratch) / "openvino_model.xml")
        exported = nncf.compress_weights(exported, mode=nncf.CompressWeightsMode.INT8_ASYM)
        # The layers whose outputs the draft reads. The pipeline's default is 2, n/2 and n-3, but the draft was trained on these
        # layers' inputs, which are the outputs of the layers below.
        layers = int(json.loads((source / "config.json").read_text())["target_layers"])
        exported.set_rt_info([1, layers // 2 - 1, layers - 4], ["hidden_layers_list"])
        out.mkdir(parents=True, exist_ok=True)
        openvino.save_model(exported, out / "openvino_model.xml", compress_to_fp16=False)
        for name in ("config.json", "generation_config.json"):
            (out / name).write_bytes((Path(scratch) / name).read_bytes())


if __name__ == "__main__":
    hf_dir, out_dir, what = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    if what == "eagle3":
        convert_draft(hf_dir, out_dir)
    else:
        convert_target(hf_dir, out_dir, what)
