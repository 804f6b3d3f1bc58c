"""A conversation in your own process."""

from runtime import Decoder, RespsError, SamplingParams

try:
    with Decoder("engines/smollm2-135m") as decoder:
        decoder.warmup()
        history = [{"role": "user", "content": "Name a river in France."}]
        for question in ("Which sea does it flow into?", None):
            with decoder.stream(history, SamplingParams(temperature=0.5, seed=1, max_new_tokens=40, deadline=60)) as answer:
                text = "".join(chunk.text for chunk in answer)
            print(f"{text}\n  ({answer.stop}, {answer.stats.tokens_per_cycle:.1f} tokens a cycle)")
            history += [{"role": "assistant", "content": text}, {"role": "user", "content": question}]  # its tokens stay in the cache
except RespsError as error:
    print(error)  # one line: what happened — what to do
