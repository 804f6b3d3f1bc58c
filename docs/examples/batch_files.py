"""Every question in a folder, eight at once: python batch_files.py FOLDER. NAME.txt gets NAME.answer; start it again to go on."""

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from runtime import Decoder, PromptError, SamplingParams

files = [file for file in sorted(Path(sys.argv[1]).glob("*.txt")) if not file.with_suffix(".answer").exists()]


def answer(file: Path) -> str:
    question = [{"role": "user", "content": file.read_text(encoding="utf-8")}]
    try:
        result = decoder.generate(question, SamplingParams(max_new_tokens=60))
    except PromptError as error:
        return f"{file.name}: {error}"
    unfinished = file.with_suffix(".part")
    unfinished.write_text(result.text, encoding="utf-8")
    unfinished.replace(file.with_suffix(".answer"))
    return f"{file.name}: {result.stats.new_tokens} tokens"


with Decoder("engines/smollm2-135m", lanes=8) as decoder, ThreadPoolExecutor(decoder.lanes) as threads:
    for line in threads.map(answer, files):
        print(line, flush=True)
