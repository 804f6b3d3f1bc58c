"""A service of one's own: uvicorn fastapi_service:app. For OpenAI's interface, streams and a queue there is resps-serve."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from queue import Empty, Queue

from fastapi import FastAPI, HTTPException
from pydantic import BaseModel

from runtime import Decoder, PromptError, SamplingParams

free: Queue[Decoder] = Queue()


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    with Decoder("engines/smollm2-135m", threads=1) as first, first.fork() as second:  # two at once, over one copy of the weights
        for decoder in (first, second):
            decoder.warmup()
            free.put(decoder)
        yield


app = FastAPI(lifespan=lifespan)


class AskBody(BaseModel):
    text: str


@app.post("/ask")
def ask(body: AskBody) -> dict[str, str | float]:  # no async: FastAPI gives it a thread
    try:
        decoder = free.get(timeout=10)
    except Empty:
        raise HTTPException(503, "all busy, come again") from None
    try:
        result = decoder.generate([{"role": "user", "content": body.text}], SamplingParams(max_new_tokens=60, deadline=30))
    except PromptError as error:
        raise HTTPException(400, str(error)) from None
    finally:
        free.put(decoder)
    return {"answer": result.text, "ended": result.stop, "tokens_per_second": result.stats.tokens_per_second}
