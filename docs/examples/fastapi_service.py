"""A service of one's own: uvicorn fastapi_service:app. For OpenAI's interface, streams and a queue there is resps-serve."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from threading import BoundedSemaphore

from fastapi import FastAPI, HTTPException
from pydantic import BaseModel

from runtime import Decoder, PromptError, SamplingParams

LANES = 4
free = BoundedSemaphore(LANES)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    with Decoder("engines/smollm2-135m", lanes=LANES) as decoder:
        decoder.warmup()
        app.state.decoder = decoder
        yield


app = FastAPI(lifespan=lifespan)


class AskBody(BaseModel):
    text: str


@app.post("/ask")
def ask(body: AskBody) -> dict[str, str | float]:  # no async: FastAPI gives it a thread
    if not free.acquire(timeout=10):
        raise HTTPException(503, "all busy, come again")
    try:
        result = app.state.decoder.generate([{"role": "user", "content": body.text}], SamplingParams(max_new_tokens=60, deadline=30))
    except PromptError as error:
        raise HTTPException(400, str(error)) from None
    finally:
        free.release()
    return {"answer": result.text, "ended": result.stop, "tokens_per_second": result.stats.tokens_per_second}
