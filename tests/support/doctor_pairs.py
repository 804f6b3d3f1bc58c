"""The demo model's pair with a fault, as users meet it: through resps-export and resps-bench --doctor."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from export.checkpoints.models import MODELS
from runtime.console import run_command
from tests.support.doctor_faults import FAULTS, Change, changed, plant
from tests.support.exporting import elsewhere

DEMO = "smollm2-135m"
LLAMA_2 = "{{ bos_token }}{% for m in messages %}[INST] {{ m['content'] }} [/INST]{% endfor %}"
UNOPENED = "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}{% endfor %}"

Case = Callable[[Path], Iterator[list[str]]]
"""In an empty folder: the options of resps-export, then, once that ran, those of resps-bench --doctor."""


def shipped_draft() -> Path:
    draft = MODELS[DEMO].draft
    assert isinstance(draft, Path)
    return draft


def _draft(fault: Change) -> Case:
    def case(folder: Path) -> Iterator[list[str]]:
        yield ["--model", DEMO, "--draft-weights", str(plant(shipped_draft(), folder / "draft", fault))]
        yield []

    return case


def _template(source: str) -> Case:
    def case(folder: Path) -> Iterator[list[str]]:
        from scripts.peers.models.hf_copy import write_hf_directory

        target = write_hf_directory(folder / "target")
        changed(target / "tokenizer_config.json", chat_template=source)
        yield ["--weights", str(target), "--draft-weights", str(shipped_draft())]
        yield []

    return case


def _corrected_too_late(folder: Path) -> Iterator[list[str]]:
    """The fault is gone from the checkpoint, and still in the engine."""
    draft = plant(shipped_draft(), folder / "draft", lambda config, tensors: config.update(norm_before_residual=True))
    yield ["--model", DEMO, "--draft-weights", str(draft)]
    changed(draft / "config.json", norm_before_residual=False)
    yield []


def _coarse_target(folder: Path) -> Iterator[list[str]]:
    """Four bits and one scale for a whole row, rounded to the nearest."""
    from scripts.lab.quantized_copy import main
    from scripts.peers.models.hf_copy import write_hf_directory

    plain = write_hf_directory(folder / "plain")
    assert run_command(main, "quantized_copy", ["--scheme", "gptq whole rows", str(plain), str(folder)]) == 0
    yield ["--weights", str(folder / "quantized"), "--draft-weights", str(shipped_draft())]
    yield ["--weights", str(plain)]


CASES: Mapping[str, Case] = {
    **{says: _draft(fault) for says, fault in FAULTS.items()},
    "the chat template never writes <|im_start|>": _template(LLAMA_2),
    "there is no chat template, and the tokenizer has <|im_start|>": _template(""),
    "the chat template does not open the answer with <|im_start|>": _template(UNOPENED),
    "the engine does not draft as the checkpoint says, but with norm_before_residual true": _corrected_too_late,
    "the draft was trained for the unquantized target": _coarse_target,
}
"""What the doctor says -> what makes it true."""


def exported(folder: Path, precision: str, *options: str) -> Path:
    """An engine directory of the demo model in ``folder``."""
    line = ["--precision", precision, "--out", str(folder), "--name", precision, "--max-context", "1024", *options]
    ended = elsewhere("from export.cli import main; main()", *line)
    assert ended.returncode == 0, ended.stderr
    return folder / precision


def examined(engine: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """resps-bench --doctor."""
    return elsewhere("from runtime.bench.cli import main; main()", "--doctor", "--engine-dir", str(engine), *options)


def examined_case(case: Case, folder: Path, precision: str, *options: str) -> subprocess.CompletedProcess[str]:
    """A case exported in ``precision``, and what the doctor says of it."""
    steps = case(folder)
    engine = exported(folder, precision, *next(steps))
    return examined(engine, *next(steps), *options)


def findings(ended: subprocess.CompletedProcess[str]) -> list[str]:
    """What the doctor named, or the last line that it printed."""
    named = [line for line in ended.stdout.splitlines() if " — " in line]
    return named or (ended.stdout or ended.stderr).splitlines()[-1:]
