"""transformers' generate in float32. Options: model; lookup: number of tokens for prompt lookup, if any."""

from __future__ import annotations

from typing import Any

from scripts.peers.protocol import PeerAnswer, PeerJob, Stopwatch


class Transformers:
    def __init__(self, job: PeerJob) -> None:
        import torch
        from transformers import AutoModelForCausalLM
        from transformers.generation.streamers import BaseStreamer

        torch.set_num_threads(job.threads)
        self._torch, self._stop = torch, job.stop
        self._options = {"prompt_lookup_num_tokens": job.options["lookup"]} if job.options.get("lookup") else {}
        self._model = AutoModelForCausalLM.from_pretrained(job.options["model"], dtype=torch.float32).eval()

        class TransformersStreamer(BaseStreamer):  # type: ignore[misc]
            """The first call brings the prompt, later ones a token or several."""

            def __init__(self) -> None:
                self.stopwatch, self.prompt = Stopwatch(), True

            def put(self, value: Any) -> None:
                if not self.prompt:
                    self.stopwatch.saw(value.flatten().tolist())
                self.prompt = False

            def end(self) -> None:
                pass

        self._streamer = TransformersStreamer

    def answer(self, prompt: list[int], new_tokens: int) -> PeerAnswer:
        ids, streamer = self._torch.tensor([prompt]), self._streamer()
        self._model.generate(
            ids,
            attention_mask=self._torch.ones_like(ids),
            max_new_tokens=new_tokens,
            do_sample=False,
            eos_token_id=self._stop,
            pad_token_id=self._stop[0],
            streamer=streamer,
            **self._options,
        )
        return streamer.stopwatch.answer(self._stop)

    def logits(self, tokens: list[int], start: int) -> Any:
        with self._torch.inference_mode():
            return self._model(self._torch.tensor([tokens])).logits[0, start:].float().numpy()


def open_engine(job: PeerJob) -> Transformers:
    return Transformers(job)
