"""The encoder of text: its graph, what of a text it looks at, and which checkpoints are none."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from export.errors import CheckpointError, UnsupportedModel
from export.tuning.encoder import write_encoder
from export.tuning.minilm import MINILM, packaged_encoder
from export.tuning.texts import Texts, texts_of
from tests.support.tiny_encoder import POSITIONS, embedded, write_bert

LONG = "The cat sat on the mat, a dog's log; " * 40


@pytest.mark.parametrize("text", ["", "a", "the cat sat", "the quick brown fox sat on a log. " * 2, LONG], ids=len)
def test_the_graph_is_the_encoder(tmp_path: Path, text: str) -> None:
    """Also with padding, which no number of word pieces here fills."""
    model = write_bert(tmp_path, seed=3)
    (tmp_path / "out").mkdir()
    encode: Any = texts_of(tmp_path, tmp_path / "out", 1).encode
    tokens = encode.tokens(text)
    assert len(tokens) == POSITIONS if text == LONG else 2 <= len(tokens) < POSITIONS
    np.testing.assert_allclose(encode(text), embedded(model, tokens).numpy(), atol=2e-6)
    assert np.linalg.norm(encode(text)) == pytest.approx(1, abs=1e-5)
    assert encode(text).tolist() == encode(text).tolist()


def test_the_end_of_a_long_text_is_looked_at(texts: Texts) -> None:
    encode: Any = texts.encode
    assert (
        encode.tokens(LONG)[1:-1] == encode.tokens("a brown dog " * 99 + LONG)[1:-1] == encode._tokenizer.encode(LONG).ids[2 - POSITIONS :]
    )
    assert encode(LONG).tolist() != encode(LONG + " fox").tolist()
    embeddings = [encode(text) for text in ("fox", LONG, "fox")]  # nothing of the longer text before stays in the buffers
    assert embeddings[0].tolist() == embeddings[2].tolist()


@pytest.mark.skipif("RESPS_REAL_ENCODER" not in os.environ, reason="set RESPS_REAL_ENCODER to download the encoder (83 MB) and compare it")
def test_the_real_encoder(tmp_path: Path) -> None:
    from transformers import BertModel

    source = packaged_encoder(MINILM)
    encode: Any = texts_of(source, tmp_path, 2).encode
    model = BertModel.from_pretrained(source, attn_implementation="eager").eval()
    for text in ("", "a cat sits", LONG):
        np.testing.assert_allclose(encode(text), embedded(model, encode.tokens(text)).numpy(), atol=1e-6)
    assert len(encode.tokens(LONG)) == 256
    assert encode("a cat sits") @ encode("a kitten sat down") > 0.5 > encode("a cat sits") @ encode("stock markets fell")


@pytest.mark.parametrize(
    ("changes", "says"),
    [({"hidden_act": "relu"}, "with relu"), ({"model_type": "t5"}, "is a t5"), ({"num_attention_heads": 5}, "5 heads do not divide 32")],
)
def test_other_encoders_are_refused(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    write_bert(tmp_path, **changes)
    with pytest.raises(UnsupportedModel, match=says):
        write_encoder(tmp_path, tmp_path, "x-")


def test_an_encoder_that_is_not_whole_is_refused(bert: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(bert, tmp_path / "source"))
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(CheckpointError, match=r"has no tensor 'encoder\.layer\.2\."):
        write_encoder(source, tmp_path, "x-")
    (source / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"lacks tokenizer\.json"):
        write_encoder(source, tmp_path, "x-")
