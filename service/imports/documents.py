"""JSON and safetensors headers of strangers, read with bounds and without torch."""

import json
import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, BinaryIO, NoReturn

from service.errors import Unprocessable
from service.imports.archive import Member, read_member, refused, shown
from service.schemas import storable

MOST_JSON_BYTES = 1024 * 1024
MOST_HEADER_BYTES = 4 * 1024 * 1024
MOST_DIMENSIONS = 4
DEEPEST = 64  # levels of a JSON file, far below what ends Python's recursion
ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}


@dataclass(frozen=True, slots=True)
class TensorShape:
    """What the header of a safetensors file says of one tensor."""

    dtype: str
    shape: tuple[int, ...]


def read_json(file: BinaryIO, member: Member, *, name: str) -> Any:
    """Returns a JSON file's value.

    Raises `Unprocessable` (`bad_json`) for what is no strict JSON in UTF-8, and for text and numbers that cannot be stored.
    """
    return _parsed(read_member(file, member, name=name, most=MOST_JSON_BYTES), name=name, code="bad_json")


def read_tensor_shapes(file: BinaryIO, member: Member, *, name: str) -> dict[str, TensorShape]:
    """Returns the tensors of a safetensors file by name, after checking that they fill the file without gap or overlap.

    Raises `Unprocessable` (`bad_safetensors`).
    """
    file.seek(member.offset)
    length = int.from_bytes(file.read(8), "little") if member.size >= 8 else 0
    if not 2 <= length <= min(MOST_HEADER_BYTES, member.size - 8):
        raise _bad(name, f"its header would have {length} bytes")
    header = _parsed(file.read(length), name=name, code="bad_safetensors")
    if not isinstance(header, dict):
        raise _bad(name, "its header is no JSON object")
    header.pop("__metadata__", None)
    spans = {tensor: _span(name, tensor, entry) for tensor, entry in header.items()}
    _check_filled(name, sorted(spans.values()), data_bytes=member.size - 8 - length)
    return {tensor: TensorShape(entry["dtype"], tuple(entry["shape"])) for tensor, entry in header.items()}


def _span(name: str, tensor: str, entry: Any) -> tuple[int, int]:
    """Returns where a tensor's bytes begin and end, which must be as many as its shape takes."""
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise _bad(name, f"{shown(tensor)} lacks dtype, shape or data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise _bad(name, f"{shown(tensor)} is of type {shown(str(dtype))}; {', '.join(ITEM_BYTES)} are taken")
    if not _sizes(shape) or len(shape) > MOST_DIMENSIONS or not _sizes(offsets) or len(offsets) != 2:
        raise _bad(name, f"the shape or the offsets of {shown(tensor)} are not what they should be")
    begin, end = offsets
    if end - begin != math.prod(shape) * ITEM_BYTES[dtype] or begin == end:
        raise _bad(name, f"{shown(tensor)} is empty, or takes other bytes than its shape needs")
    return begin, end


def _sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 2**40 for item in value)


def _check_filled(name: str, spans: list[tuple[int, int]], *, data_bytes: int) -> None:
    if not spans:
        raise _bad(name, "it holds no tensor")
    together = all(before[1] == after[0] for before, after in pairwise(spans))
    if spans[0][0] != 0 or not together or spans[-1][1] != data_bytes:
        raise _bad(name, "its tensors overlap, or do not fill the file")


def _parsed(raw: bytes, *, name: str, code: str) -> Any:
    try:
        value = json.loads(
            raw.decode(), parse_constant=_no_constant, parse_float=_finite, object_pairs_hook=_each_once
        )
        _check_texts(value)
        return value
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deep" if isinstance(error, RecursionError) else str(error)[:200]
        raise refused(f"{name} cannot be read as JSON: {reason}.", code=code) from None


def _check_texts(value: object) -> None:
    """Checks every key and string of a JSON value. Raises ValueError, also where it is nested too deep."""
    waiting = [(value, 0)]
    while waiting:
        item, depth = waiting.pop()
        if depth > DEEPEST:
            raise ValueError("it is nested too deep")
        if isinstance(item, str):
            storable(item)
        elif isinstance(item, dict | list):
            parts = (*item.keys(), *item.values()) if isinstance(item, dict) else item
            waiting += [(part, depth + 1) for part in parts]


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError("a number in it is too large")
    return number


def _no_constant(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands twice in one object")
    return found


def _bad(name: str, why: str) -> Unprocessable:
    return refused(f"{name} is not a sound safetensors file: {why}.", code="bad_safetensors")
