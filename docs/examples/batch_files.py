"""Every question in a folder, on all cores: python batch_files.py FOLDER. NAME.txt gets NAME.answer; start it again to go on."""

import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from queue import SimpleQueue

from runtime import Decoder, PromptError, SamplingParams
from runtime.backends.cpu.processor import usable_cores

files = [file for file in sorted(Path(sys.argv[1]).glob("*.txt")) if not file.with_suffix(".answer").exists()]
free: SimpleQueue[Decoder] = SimpleQueue()


def answer(file: Path) -> str:
    decoder = free.get()
    try:
        result = decoder.generate([{"role": "user", "content": file.read_text(encoding="utf-8")}], SamplingParams(max_new_tokens=60))
    except PromptError as error:
        return f"{file.name}: {error}"
    finally:
        free.put(decoder)
    unfinished = file.with_suffix(".part")
    unfinished.write_text(result.text, encoding="utf-8")
    unfinished.replace(file.with_suffix(".answer"))
    return f"{file.name}: {result.stats.new_tokens} tokens"


with ExitStack() as stack:
    first = stack.enter_context(Decoder("engines/smollm2-135m", threads=1))
    for decoder in [first, *(stack.enter_context(first.fork()) for _ in range(usable_cores() - 1))]:
        free.put(decoder)
    with ThreadPoolExecutor(usable_cores()) as threads:
        for line in threads.map(answer, files):
            print(line, flush=True)
