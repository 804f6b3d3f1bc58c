"""resps-serve --check: does every engine answer?"""

from __future__ import annotations

from collections.abc import Sequence

from ..decoder import Decoder
from ..errors import EngineFailure
from ..sampling_params import SamplingParams
from ..text.prompt import Prompt
from .errors import CheckFailed

TOKENS = 8


def check(decoders: Sequence[Decoder]) -> str:
    """Ask every Decoder for a short answer. Returns the first one's text. Raises CheckFailed if one gives none."""
    texts = []
    for decoder in decoders:
        prompt: Prompt = [{"role": "user", "content": "Say something."}] if decoder.manifest.tokens.chats else "Once upon a time"
        try:
            result = decoder.generate(prompt, SamplingParams(max_new_tokens=TOKENS))
        except EngineFailure as error:
            raise CheckFailed(f"the engine was loaded, but cannot answer: {error}") from None
        if not result.stats.new_tokens:
            raise CheckFailed("the engine was loaded, but its answer has no token — export it again")
        texts.append(result.text)
    return texts[0]
