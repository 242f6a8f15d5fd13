"""Types that several rooms' requests share."""

import json
from collections.abc import Iterator
from typing import Annotated, Any

from fastapi import Path
from pydantic import AfterValidator, Field

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
MAX_METADATA_BYTES = 16 * 1024
MAX_METADATA_DEPTH = 32

Name = Annotated[
    str,
    Field(
        min_length=1, max_length=128, pattern=NAME_PATTERN, description="Letters, digits, '.', '_' and '-'"
    ),
]
ModelPath = Annotated[
    str,
    Path(
        alias="model",
        min_length=1,
        max_length=128,
        pattern=NAME_PATTERN,
        description="Name or id of the model",
    ),
]
VersionPath = Annotated[
    int, Path(alias="version", ge=0, le=2**31, description="Version number; 0 is the untouched base")
]
UpdatePath = Annotated[
    str, Path(alias="update", max_length=64, pattern=r"^[A-Za-z0-9_]+$", description="Id of the update")
]
ForecastPath = Annotated[
    str, Path(alias="forecast", max_length=64, pattern=r"^[A-Za-z0-9_]+$", description="Id of the forecast")
]


def storable(text: str) -> str:
    """Returns `text` if Postgres can hold it: no NUL character, no lone surrogate."""
    if "\0" in text:
        raise ValueError("the NUL character cannot be stored; remove it")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("half of a surrogate pair cannot be stored; send valid Unicode") from None
    return text


def _storable_metadata(metadata: dict[str, Any]) -> dict[str, Any]:
    for text in _texts(metadata):
        storable(text)
    try:
        size = len(json.dumps(metadata, ensure_ascii=False, allow_nan=False).encode())
    except ValueError:
        raise ValueError("NaN and Infinity are not JSON") from None
    if size > MAX_METADATA_BYTES:
        raise ValueError(f"metadata may hold {MAX_METADATA_BYTES} bytes of JSON at most")
    return metadata


def _texts(value: object) -> Iterator[str]:
    """Yields every key and string inside a JSON value. Raises ValueError when it is nested too deep."""
    waiting = [(value, 0)]
    while waiting:
        item, depth = waiting.pop()
        if depth > MAX_METADATA_DEPTH:
            raise ValueError(f"metadata may be nested {MAX_METADATA_DEPTH} levels deep at most")
        if isinstance(item, str):
            yield item
        elif isinstance(item, dict):
            waiting += [(part, depth + 1) for part in (*item.keys(), *item.values())]
        elif isinstance(item, list):
            waiting += [(part, depth + 1) for part in item]


FreeText = Annotated[str, Field(min_length=1, max_length=2000), AfterValidator(storable)]
Metadata = Annotated[
    dict[str, Any], AfterValidator(_storable_metadata), Field(description="Yours; kept as it is")
]
