"""Tars that strangers send: which of the few files of an adapter lie where, and a refusal of everything else.

The headers are read one by one and bounded, and the files are copied from where the checks saw them. `tarfile` never unpacks
such a tar: it takes extended headers of any size into memory, reads them with a regular expression that long numbers hold up
for minutes, and follows names and sizes that they put in place of the visible ones.
"""

import re
import shutil
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from service.errors import Unprocessable

BLOCK = tarfile.BLOCKSIZE
ADAPTER_CONFIG, ADAPTER_TENSORS = "adapter_config.json", "adapter_model.safetensors"
HEAD, LABELS, VERSION_FACTS = "head.safetensors", "labels.json", "version.json"
IGNORED = frozenset({"README.md"})  # PEFT writes one
FILES = frozenset({ADAPTER_CONFIG, ADAPTER_TENSORS, HEAD, LABELS, VERSION_FACTS}) | IGNORED

MOST_HEADERS = 64
CHUNK = 1024 * 1024
EXTENDED = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE)
# What an extended header may say: nothing that gives a file another name, size or shape.
HARMLESS = re.compile(rb"(mtime|atime|ctime|comment|uname|gname|(LIBARCHIVE|SCHILY)\.[!-<>-~]+)=")
RECORD_LENGTH = re.compile(rb"([1-9][0-9]{0,2}) ")
PACKERS = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"(\xb5/\xfd": "zstd", b"PK": "zip"}
KINDS = {
    tarfile.LNKTYPE: "a hard link", tarfile.SYMTYPE: "a symbolic link", tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device", tarfile.FIFOTYPE: "a named pipe",
}  # fmt: skip
HOW = "Pack the files of the folder themselves: tar -C FOLDER -cf adapter.tar adapter_config.json …"


@dataclass(frozen=True, slots=True)
class Member:
    """Where a file's bytes lie in the tar."""

    offset: int
    size: int


def refused(detail: str, *, code: str) -> Unprocessable:
    """The error for an upload that cannot become a version."""
    return Unprocessable(detail, code=code, param="body")


def shown(name: str) -> str:
    """Returns a stranger's name as a message may quote it."""
    return repr(name if len(name) <= 100 else f"{name[:100]}…")


def index_tar(file: BinaryIO) -> dict[str, Member]:
    """Returns where each file of the adapter lies, by its name.

    Raises `Unprocessable`: `bad_archive` for what is no whole uncompressed tar, `unsafe_archive` for links, devices, names
    that lead elsewhere and files that come twice, `unexpected_file` for any file but an adapter's.
    """
    length = file.seek(0, 2)
    _refuse_packed(file)
    found: dict[str, Member] = {}
    offset = 0
    for _ in range(MOST_HEADERS):
        header = _header(file, offset)
        if header is None:
            return {name: member for name, member in found.items() if name not in IGNORED}
        offset += BLOCK
        if not 0 <= header.size <= length - offset:
            raise _damaged(f"it ends within {shown(header.name)}")
        if header.type in EXTENDED:
            _check_extended(file, offset, header.size)
        elif name := _file_name(header):
            if name in found:
                raise refused(f"The tar holds {shown(name)} twice. {HOW}", code="unsafe_archive")
            found[name] = Member(offset, header.size)
        offset += -(-header.size // BLOCK) * BLOCK
    raise refused(
        f"The tar has more than {MOST_HEADERS} entries; an adapter has five files.", code="unexpected_file"
    )


def unpack_tar(file: BinaryIO, target: Path) -> None:
    """Copies the adapter's files into the folder `target`, which must not exist yet and appears whole or not at all.

    Raises what `index_tar` does, and OSError.
    """
    members = index_tar(file)
    partial = Path(tempfile.mkdtemp(prefix=".unpacking-", dir=target.parent))
    try:
        for name, member in members.items():
            with (partial / name).open("xb") as copy:
                _copy_member(file, member, copy)
        partial.rename(target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _copy_member(file: BinaryIO, member: Member, target: BinaryIO) -> None:
    file.seek(member.offset)
    left = member.size
    while chunk := file.read(min(left, CHUNK)):
        target.write(chunk)
        left -= len(chunk)
    if left:
        raise _damaged("it is cut off")


def read_member(file: BinaryIO, member: Member, *, name: str, most: int) -> bytes:
    """Returns a small file's bytes. Raises `Unprocessable` (`bad_archive`) past `most` of them."""
    if member.size > most:
        raise refused(f"{name} has {member.size} bytes; {most} are the most it may have.", code="bad_archive")
    file.seek(member.offset)
    return file.read(member.size)


def _refuse_packed(file: BinaryIO) -> None:
    file.seek(0)
    start = file.read(8)
    for magic, packer in PACKERS.items():
        if start.startswith(magic):
            raise _damaged(f"it is a {packer} file")


def _header(file: BinaryIO, offset: int) -> tarfile.TarInfo | None:
    """Reads one header; None at the mark that ends the tar."""
    file.seek(offset)
    block = file.read(BLOCK)
    if len(block) < BLOCK:
        raise _damaged("it is empty" if not offset and not block else "it is cut off")
    if not block.strip(b"\0"):
        return None
    try:
        return tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except (tarfile.HeaderError, ValueError):
        raise _damaged(f"there is no header of a tar at byte {offset}") from None


def _check_extended(file: BinaryIO, offset: int, size: int) -> None:
    """Checks an extended header's records, and that nothing hides behind them in its block."""
    if size > BLOCK:
        raise refused(
            f"An extended header of the tar has {size} bytes; {BLOCK} are the most. Leave extended attributes out of the tar. {HOW}",
            code="unsafe_archive",
        )
    file.seek(offset)
    block = file.read(BLOCK) if size else b""
    if block[size:].strip(b"\0"):
        raise refused(f"An extended header of the tar holds more than it says. {HOW}", code="unsafe_archive")
    _check_records(block[:size])


def _check_records(records: bytes) -> None:
    """Checks records of the form `LENGTH KEYWORD=VALUE\\n`, where the length counts all of it (POSIX pax)."""
    while records:
        length = RECORD_LENGTH.match(records)
        end = int(length[1]) if length else 0
        if length is None or not length.end() < end <= len(records) or records[end - 1 : end] != b"\n":
            raise _damaged("a record of an extended header is no record")
        if HARMLESS.match(records, length.end(), end) is None:
            raise refused(
                f"An extended header of the tar says more than times, owners and comments. {HOW}",
                code="unsafe_archive",
            )
        records = records[end:]


def _file_name(header: tarfile.TarInfo) -> str:
    """Returns the name of an adapter's file, and nothing for the folder that holds them all."""
    if header.type not in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE):
        kind = KINDS.get(header.type, "no plain file")
        raise refused(f"{shown(header.name)} in the tar is {kind}. {HOW}", code="unsafe_archive")
    name = header.name
    while name.startswith("./"):
        name = name[2:]
    if name.startswith("/") or "\\" in name or ".." in name.split("/"):
        raise refused(f"{shown(header.name)} leads out of the tar's folder. {HOW}", code="unsafe_archive")
    if header.type == tarfile.DIRTYPE and name in ("", ".") and header.size == 0:
        return ""
    if header.type == tarfile.DIRTYPE or name not in FILES:
        raise refused(f"The tar holds {shown(header.name)}, {_why_unexpected(name)}", code="unexpected_file")
    return name


def _why_unexpected(name: str) -> str:
    if name.endswith((".bin", ".pt", ".pth", ".pkl")):
        return "and pickles can run code. Save the adapter as safetensors: save_pretrained(FOLDER, safe_serialization=True)."
    if "/" in name:
        return f"within a folder. {HOW}"
    return f"which is no file of an adapter; those are {', '.join(sorted(FILES))}. {HOW}"


def _damaged(why: str) -> Unprocessable:
    return refused(
        f"The body is not a whole, uncompressed tar: {why}. {HOW}; to send it: Content-Type: application/x-tar.",
        code="bad_archive",
    )
