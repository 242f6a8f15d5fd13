"""Base checkpoints on disk: check them, hash them, load them without code or pickles."""

import hashlib
from functools import lru_cache
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from workers.training.contract import BaseFolder
from workers.training.errors import TrainingFailed

HASHED_PATTERNS = (
    "config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.model",
    "chat_template*",
)

transformers_logging.disable_progress_bar()


def folder_sha256(folder: Path) -> str:
    """Return the SHA-256 over a checkpoint's configuration, weights and tokenizer files, as 64 hex digits.

    Each file enters by name and content, in name order, so that READMEs and other bystanders do not matter.
    """
    files = sorted({path for pattern in HASHED_PATTERNS for path in folder.glob(pattern) if path.is_file()})
    stats = [(path, path.stat()) for path in files]
    return _hashed(tuple((path, stat.st_ino, stat.st_size, stat.st_mtime_ns) for path, stat in stats))


@lru_cache(maxsize=8)
def _hashed(files: tuple[tuple[Path, int, int, int], ...]) -> str:
    """The hash of files, known by inode, size and time: a process reads a checkpoint of gigabytes once."""
    total = hashlib.sha256()
    for path, *_ in files:
        with path.open("rb") as stream:
            content = hashlib.file_digest(stream, "sha256").hexdigest()
        total.update(f"{path.name}\0{content}\n".encode())
    return total.hexdigest()


def check_base(base: BaseFolder) -> str:
    """Return the checkpoint's SHA-256, computed where `base` does not bring it.

    Raises:
        TrainingFailed: `base_model_missing` when the folder has no configuration or no safetensors weights;
            `base_model_mismatch` when it is not the checkpoint that the allow-list pins.
    """
    folder = Path(base.folder)
    if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
        raise TrainingFailed(
            "base_model_missing",
            f"base model {base.name!r} has no config.json with safetensors weights in its folder",
            {"base_model": base.name},
        )
    sha256 = base.sha256 or folder_sha256(folder)
    require_pinned(base, sha256)
    return sha256


def require_pinned(base: BaseFolder, sha256: str) -> None:
    """Check a hash against the one the allow-list pins, if it pins one.

    Raises:
        TrainingFailed: `base_model_mismatch`, naming both.
    """
    if base.pinned is not None and base.pinned != sha256:
        raise TrainingFailed(
            "base_model_mismatch",
            f"base model {base.name!r} on this worker has the hash {sha256}, but the catalogue of base models pins "
            f"{base.pinned}; install the pinned checkpoint there, or correct the pin",
            {"base_model": base.name, "pinned": base.pinned, "found": sha256},
        )


def load_tokenizer(base: BaseFolder) -> Any:
    """Load the checkpoint's tokenizer, with a padding token."""
    tokenizer = AutoTokenizer.from_pretrained(base.folder, local_files_only=True, trust_remote_code=False)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    return tokenizer


def load_encoder(base: BaseFolder) -> Any:
    """Load the checkpoint as a frozen float32 encoder (`AutoModel`)."""
    return _load(AutoModel, base)


def load_decoder(base: BaseFolder) -> Any:
    """Load the checkpoint as a frozen float32 decoder with its output layer (`AutoModelForCausalLM`)."""
    # This attention takes the boolean masks that packed sequences need.
    return _load(AutoModelForCausalLM, base, attn_implementation="sdpa")


def _load(kind: Any, base: BaseFolder, **options: str) -> Any:
    model = kind.from_pretrained(
        base.folder,
        local_files_only=True,
        trust_remote_code=False,
        use_safetensors=True,
        dtype="float32",
        **options,
    )
    return model.requires_grad_(False)


def longest_sequence(base: BaseFolder, tokenizer: Any) -> int:
    """Return how many tokens the checkpoint takes at most."""
    config = AutoConfig.from_pretrained(base.folder, local_files_only=True, trust_remote_code=False)
    positions = getattr(config, "max_position_embeddings", None) or tokenizer.model_max_length
    return int(min(positions, tokenizer.model_max_length))


def check_length(max_length: int, base: BaseFolder, tokenizer: Any) -> None:
    """Check that the checkpoint takes sequences of `max_length` tokens.

    Raises:
        TrainingFailed: `sequence_too_long`, naming both lengths.
    """
    limit = longest_sequence(base, tokenizer)
    if max_length > limit:
        raise TrainingFailed(
            "sequence_too_long",
            f"max_length is {max_length} but {base.name!r} takes at most {limit} tokens; lower training.max_length",
            {"max_length": max_length, "limit": limit},
        )
