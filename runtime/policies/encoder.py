"""The text so far as one vector: an encoder's graph on the backend that runs the rest, and its own tokenizer.

Looked at are the LAST word pieces. The paper's model reads 256 of them (it has 512 positions and was trained on fewer) and its library cuts
from the end what is more; of a text that grows that would be the same beginning for ever, and the policy would see nothing of the answer.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ..backends.base import Backend, Engine
from ..errors import EngineDirError
from ..manifest.tuning import Tuning

GRAPH = "encoder"
PIECES = 256  # at most, the two that mark the ends among them
STEP = 32  # a pass has a multiple of this many, so that there are few calls to prepare; the mask hides the rest
CHARACTERS = 16  # of a text's end that are cut into pieces for each that is looked at: four are usual


class TextEncoder:
    """Text -> its embedding, float32 [E] of length 1. ``engine`` runs the graph that export/tuning/encoder.py writes, ``pieces``: the most
    that it may be given. Raises EngineDirError for a tokenizer that cannot be read or is none of its kind; when asked EngineFailure."""

    def __init__(self, engine: Engine, tokenizer: Path, pieces: int) -> None:
        from tokenizers import Tokenizer

        try:
            self._tokenizer: Any = Tokenizer.from_file(str(tokenizer))
        except Exception as error:  # the Rust side raises plain Exception
            raise EngineDirError(f"cannot read {tokenizer}: {error} — tune again: resps-tune") from None
        self._tokenizer.no_truncation()  # both are done here
        self._tokenizer.no_padding()
        self._ends = [self._tokenizer.token_to_id(each) for each in ("[CLS]", "[SEP]")]
        if None in self._ends:
            raise EngineDirError(f"{tokenizer} has no [CLS] and [SEP], it is no BERT's — tune again: resps-tune")
        self._engine, self._pieces = engine, pieces

    def tokens(self, text: str) -> list[int]:
        """The word pieces that are looked at, with those that mark the ends."""
        found = self._tokenizer.encode(text[-CHARACTERS * self._pieces :], add_special_tokens=False).ids
        return [self._ends[0], *found[2 - self._pieces :], self._ends[1]]

    def __call__(self, text: str) -> np.ndarray:
        tokens = self.tokens(text)
        count = len(tokens)
        call = self._engine.prepare(n=min(self._pieces, -(-count // STEP) * STEP))
        for name, values in (("tokens", tokens), ("mask", [1] * count)):
            call.inputs[name][...] = 0
            call.inputs[name][0, :count] = values
        call.run()
        return np.array(call.outputs["embedding"][0])


def load_encoder(backend: Backend, tuning: Tuning | None) -> TextEncoder:
    """The tuning's. Raises EngineDirError."""
    if tuning is None or tuning.encoder is None:
        raise EngineDirError("there is no encoder of text in the engine directory — resps-tune --policy resps-text installs one")
    found = tuning.encoder
    engine = backend.engine(found.graph, {}, {"n": found.pieces})
    return TextEncoder(engine, backend.directory / found.tokenizer, found.pieces)
