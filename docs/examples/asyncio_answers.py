"""Two answers at once in an event loop. A round runs in a thread; leaving the loop early cancels after the running round."""

import asyncio
from collections.abc import AsyncIterator

from runtime import Chunk, Decoder, SamplingParams


async def chunks(decoder: Decoder, question: str, params: SamplingParams) -> AsyncIterator[Chunk]:
    stream = decoder.stream([{"role": "user", "content": question}], params)
    try:
        while (chunk := await asyncio.to_thread(next, stream, None)) is not None:
            yield chunk
    finally:
        stream.cancel()
        await asyncio.to_thread(stream.result)  # waits for the round that may still run


async def answer(decoder: Decoder, question: str) -> str:
    return "".join([chunk.text async for chunk in chunks(decoder, question, SamplingParams(max_new_tokens=40))])


async def main() -> None:
    with Decoder("engines/smollm2-135m", threads=1) as one, one.fork() as other:
        for text in await asyncio.gather(answer(one, "What is snow?"), answer(other, "What is rain?")):
            print(f"- {text}")


if __name__ == "__main__":
    asyncio.run(main())
