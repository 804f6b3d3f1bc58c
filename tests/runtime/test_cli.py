"""resps-run as its users see it: stdout, stderr, exit codes, hostile input."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from runtime import Decoder, SamplingParams
from runtime.cli import command
from runtime.console import run_command

PROMPT = "the cat sat on the"


@dataclass(frozen=True)
class Done:
    """Exit code and output of a run."""

    returncode: int
    stdout: bytes
    stderr: bytes


Run = Callable[..., Done]


def in_a_process(tiny: Path, *arguments: str | bytes, stdin: bytes = b"") -> Done:
    """The installed command in a process of its own."""
    line = [sys.executable, "-c", "from runtime.cli import main; main()", "--engine-dir", str(tiny), *arguments]
    done = subprocess.run(line, input=stdin, capture_output=True, check=False, timeout=120)
    return Done(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def run(capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch) -> Run:
    """The same in this process, which is faster."""

    def run(tiny: Path, *arguments: str, stdin: bytes = b"") -> Done:
        capfdbinary.readouterr()
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        code = run_command(command, "resps-run", ["--engine-dir", str(tiny), *arguments])
        return Done(code, *capfdbinary.readouterr())

    return run


def complaint(done: Done, code: int) -> str:
    """The one line on stderr of a refused call, which wrote nothing to stdout."""
    assert done.returncode == code, done.stderr
    assert done.stdout == b""
    text = done.stderr.decode()
    assert text.startswith("resps-run: ")
    assert text.count("\n") == 1
    assert "Traceback" not in text
    return text


def test_answer_goes_to_stdout_and_statistics_to_stderr(run: Run, tiny_engine: Path) -> None:
    done = in_a_process(tiny_engine, "--max-new-tokens", "20", "--stats", PROMPT)
    assert done.returncode == 0
    assert done.stdout.decode().endswith("\n")
    assert len(done.stderr.decode().splitlines()) == 4
    assert b"tokens per cycle" in done.stderr
    whole = run(tiny_engine, "--max-new-tokens", "20", "--no-stream", PROMPT)
    assert (whole.stdout, whole.stderr) == (done.stdout, b"")


def test_json_is_exactly_one_object(run: Run, tiny_engine: Path) -> None:
    done = run(tiny_engine, "--json", "--max-new-tokens", "20", PROMPT)
    assert done.stderr == b""
    result = json.loads(done.stdout)
    assert done.stdout.count(b"\n") == 1
    assert list(result) == ["schema", "text", "tokens", "stop", "stats", "logprobs"]
    named = {"new_tokens", "cycles", "tokens_per_cycle", "tokens_per_second", "prefill_seconds", "decode_seconds"}
    assert named <= result["stats"].keys()
    plain = run(tiny_engine, "--max-new-tokens", "20", PROMPT)
    assert plain.stdout.decode() == result["text"] + "\n"


def test_prompt_from_argument_dash_and_pipe_are_the_same(run: Run, tiny_engine: Path) -> None:
    answers = {
        run(tiny_engine, "--max-new-tokens", "9", PROMPT).stdout,
        run(tiny_engine, "--max-new-tokens", "9", "-", stdin=PROMPT.encode()).stdout,
        in_a_process(tiny_engine, "--max-new-tokens", "9", stdin=PROMPT.encode() + b"\n").stdout,
    }
    assert len(answers) == 1


def test_chat_and_seed_and_tree_flags(run: Run, tiny_engine: Path) -> None:
    chat = json.loads(run(tiny_engine, "--json", "--chat", "--system", "be brief", "--max-new-tokens", "5", PROMPT).stdout)
    text = json.loads(run(tiny_engine, "--json", "--max-new-tokens", "5", PROMPT).stdout)
    assert chat["stats"]["prompt_tokens"] > text["stats"]["prompt_tokens"]
    sampled = ["--json", "--temperature", "1.2", "--seed", "4", "--max-new-tokens", "30", PROMPT]
    answers = [json.loads(run(tiny_engine, *sampled, *more).stdout) for more in ([], ["--tree", "16,4,4"], ["--draft", "none"])]
    assert len({tuple(each["tokens"]) for each in answers}) == 1
    assert answers[2]["stats"]["drafted"] == 0


def test_sampler_parameters_and_several_answers(run: Run, tiny_engine: Path, decoder: Decoder) -> None:
    given = ["--max-new-tokens", "12", "--temperature", "1.1", "--seed", "3", "--frequency-penalty", "1.2", "--logit-bias", "7=2.5"]
    given += ["--bad-word", "cat", "--bad-word", "the", "--stop-token-id", "9", "--min-tokens", "4", "--ignore-eos", "--min-p", "0.01"]
    params = SamplingParams(
        max_new_tokens=12, temperature=1.1, seed=3, frequency_penalty=1.2, logit_bias={7: 2.5}, bad_words=("cat", "the"),
        stop_token_ids=(9,), min_tokens=4, ignore_eos=True, min_p=0.01,
    )  # fmt: skip
    expected = decoder.answers(PROMPT, 3, params)
    lines = run(tiny_engine, *given, "--n", "3", "--json", PROMPT).stdout.splitlines()
    assert [json.loads(line)["tokens"] for line in lines] == [list(each.tokens) for each in expected]
    shown = run(tiny_engine, *given, "--n", "3", "--stats", PROMPT)
    assert shown.stdout.decode() == "---\n".join(f"{each.text}\n" for each in expected)
    assert shown.stderr.decode().count("new tokens") == 3


def test_the_form_of_an_answer(run: Run, tiny_engine: Path, tmp_path: Path) -> None:
    schema, grammar = tmp_path / "schema.json", tmp_path / "grammar.lark"
    schema.write_text('{"type": "array", "items": {"enum": [1, 2]}, "minItems": 2, "maxItems": 3}')
    grammar.write_text('start: "the" " cat"+')
    assert len(json.loads(run(tiny_engine, "--json-schema", str(schema), PROMPT).stdout)) in (2, 3)
    assert re.fullmatch(r"[0-9]{3}\n", run(tiny_engine, "--regex", "[0-9]{3}", PROMPT).stdout.decode())
    assert run(tiny_engine, "--choice", "yes", "--choice", "no", PROMPT).stdout in (b"yes\n", b"no\n")
    assert run(tiny_engine, "--grammar", str(grammar), "--max-new-tokens", "9", PROMPT).stdout.startswith(b"the cat")
    assert "do not go together" in complaint(run(tiny_engine, "--regex", "a", "--choice", "b", PROMPT), 2)
    assert "constraint: the regex cannot be compiled" in complaint(run(tiny_engine, "--regex", "(a", PROMPT), 2)
    schema.write_text("{")
    assert "constraint: the json_schema is not JSON" in complaint(run(tiny_engine, "--json-schema", str(schema), PROMPT), 2)


def test_stop_string(run: Run, tiny_engine: Path) -> None:
    text = json.loads(run(tiny_engine, "--json", "--max-new-tokens", "30", PROMPT).stdout)["text"]
    stop = text[8:11]
    result = json.loads(run(tiny_engine, "--json", "--max-new-tokens", "30", "--stop", stop, PROMPT).stdout)
    assert result["stop"] == "stop_string"
    assert result["text"] == text[: text.index(stop)]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--max-new-tokens", "0", PROMPT], "max-new-tokens"),
        (["--max-new-tokens", "-3", PROMPT], "max-new-tokens"),
        (["--max-new-tokens", "many", PROMPT], "max-new-tokens"),
        (["--temperature", "-1", PROMPT], "temperature"),
        (["--temperature", "nan", PROMPT], "temperature"),
        (["--temperature", "1e300", PROMPT], "temperature"),
        (["--top-p", "0", PROMPT], "top_p"),
        (["--top-k", "-1", PROMPT], "top-k"),
        (["--seed", "-1", PROMPT], "seed"),
        (["--seed", str(2**64), PROMPT], "seed"),
        (["--threads", "0", PROMPT], "threads"),
        (["--threads", "1000000", PROMPT], "threads"),
        (["--tree", "5,1,1", PROMPT], "tree"),
        (["--tree", "big", PROMPT], "tree"),
        (["--tree", "1,0", PROMPT], "tree"),
        (["--draft", "oracle", PROMPT], "draft"),
        (["--policy", "best", PROMPT], "unknown policy 'best' — choose from none, fixed"),
        (["--system", "x", PROMPT], "--chat"),
        (["--stop", "", PROMPT], "stop"),
        (["--min-p", "2", PROMPT], "min_p"),
        (["--typical-p", "0", PROMPT], "typical_p"),
        (["--presence-penalty", "3", PROMPT], "presence_penalty"),
        (["--repetition-penalty", "0", PROMPT], "repetition_penalty"),
        (["--logit-bias", "x=1", PROMPT], "'x=1' is not a token id and a number"),
        (["--logit-bias", "5=200", PROMPT], "logit_bias"),
        (["--logit-bias", "5000=1", PROMPT], "logit_bias: 5000 is not a token id"),
        (["--stop-token-id", "5000", PROMPT], "stop_token_ids: 5000"),
        (["--bad-word", " ", PROMPT], "bad_words"),
        (["--min-tokens", "600", PROMPT], "min_tokens"),
        (["--n", "129", PROMPT], "--n"),
        (["--nonsense", PROMPT], "nonsense"),
        ([PROMPT, "and more"], "more"),
        ([""], "empty"),
        ([" \n "], "empty"),
        (["-"], "empty"),
        (["the cat " * 400], "no longer context"),
    ],
    ids=str,
)
def test_bad_usage_is_one_line_and_exit_2(run: Run, tiny_engine: Path, arguments: list[str], says: str) -> None:
    assert says in complaint(run(tiny_engine, *arguments), 2)


def test_invalid_utf8(run: Run, tiny_engine: Path) -> None:
    assert "byte 3" in complaint(run(tiny_engine, "-", stdin=b"abc\xff\xfe"), 2)
    assert "UTF-8" in complaint(in_a_process(tiny_engine, b"caf\xe9"), 2)


def test_bad_engine_directories_exit_3(run: Run, tiny_engine: Path, tmp_path: Path) -> None:
    assert "resps-export" in complaint(run(tmp_path / "nowhere", PROMPT), 3)
    assert "resps-export" in complaint(run(tmp_path, PROMPT), 3)
    shutil.copytree(tiny_engine, tmp_path / "engine")
    with (tmp_path / "engine" / "target.data").open("r+b") as file:
        file.seek(5000)
        file.write(b"?")
    assert "changed" in complaint(run(tmp_path / "engine", PROMPT), 3)
    assert "no TensorRT plans — make some" in complaint(run(tiny_engine, "--backend", "tensorrt", PROMPT), 3)


def test_closed_pipe_is_quiet(tiny_engine: Path) -> None:
    code = "from runtime.cli import main; main()"
    arguments = [sys.executable, "-c", code, "--engine-dir", str(tiny_engine), "--max-new-tokens", "100", PROMPT]
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(arguments, stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")


def test_interrupt_exits_130(tiny_engine: Path) -> None:
    # A job that a shell started in the background inherits an ignored SIGINT, and Python leaves it so.
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from runtime.cli import main; main()"
    arguments = [sys.executable, "-c", code, "--engine-dir", str(tiny_engine), "-"]
    process = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    while "S (sleeping)" not in Path(f"/proc/{process.pid}/status").read_text():  # until it waits for its prompt
        pass
    while True:
        wait = Path(f"/proc/{process.pid}/syscall").read_text().split()
        if wait[0] == "0" and wait[1] == "0x0":  # read(0, ...)
            break
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors == b"resps-run: interrupted\n"


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (MemoryError("no room"), 1, "there is not enough memory: no room — free some, and try again"),
        (MemoryError(), 1, "there is not enough memory — free some, and try again"),
        (OSError(28, "No space left on device"), 1, "No space left on device — free some space, and try again"),
        (PermissionError(13, "Permission denied", "x.data"), 1, "x.data: Permission denied — check permissions, or choose another place"),
        (IsADirectoryError(21, "Is a directory"), 1, "Is a directory — try again; -vv shows where it happened"),
        (OSError(5, "Input/output error", "x.data"), 1, "x.data: Input/output error — check the file or device"),
        (ImportError("libx.so: cannot open", name="tokenizers"), 1, "tokenizers cannot be imported: libx.so: cannot open — pip install"),
        (RuntimeError("boom"), 1, "-vv"),
    ],
    ids=repr,
)
def test_unexpected_failures_are_one_line_too(
    tiny_engine: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], error: Exception, code: int, says: str
) -> None:
    import runtime.decoder

    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(runtime.decoder, "Decoder", fail)
    assert run_command(command, "resps-run", ["--engine-dir", str(tiny_engine), PROMPT]) == code
    out, err = capfd.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert says in err


def test_double_verbose_shows_the_traceback(tmp_path: Path) -> None:
    done = in_a_process(tmp_path, "-vv", PROMPT)
    assert done.returncode == 3
    assert b"Traceback" in done.stderr


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(command, "resps-run", ["--help"]) == 0
    assert "--engine-dir" in capsys.readouterr().out
    assert run_command(command, "resps-run", ["--version"]) == 0
    assert "0.1.0" in capsys.readouterr().out
