"""The tiny target whose draft the tests train."""

from __future__ import annotations

import pytest

from export.checkpoints.hugging_face import HuggingFaceCheckpoint


@pytest.fixture(scope="session")
def target(tmp_path_factory: pytest.TempPathFactory) -> HuggingFaceCheckpoint:
    """A tiny llama whose rotary frequencies are rescaled, with a head of its own."""
    from tests.support.tiny import write_checkpoint

    directory = tmp_path_factory.mktemp("target")
    write_checkpoint(directory, "llama-llama3", tied=False)
    return HuggingFaceCheckpoint(directory)
