"""Two answers at once in an event loop, over the lanes of one Decoder. Leaving a loop early ends its request."""

import asyncio

from runtime import Decoder, SamplingParams


async def answer(decoder: Decoder, question: str) -> str:
    chunks = decoder.astream([{"role": "user", "content": question}], SamplingParams(max_new_tokens=40))
    return "".join([chunk.text async for chunk in chunks])


async def main() -> None:
    with Decoder("engines/smollm2-135m", lanes=2) as decoder:
        for text in await asyncio.gather(answer(decoder, "What is snow?"), answer(decoder, "What is rain?")):
            print(f"- {text}")


if __name__ == "__main__":
    asyncio.run(main())
