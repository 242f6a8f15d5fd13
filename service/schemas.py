"""Types that several rooms' requests share."""

import json
from typing import Annotated, Any

from fastapi import Path
from pydantic import AfterValidator, Field

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
MAX_METADATA_BYTES = 16 * 1024

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
    try:
        encoded = json.dumps(metadata, ensure_ascii=False, allow_nan=False)
    except ValueError:
        raise ValueError("NaN and Infinity are not JSON") from None
    if "\\u0000" in encoded:
        raise ValueError("the NUL character cannot be stored; remove it")
    storable(encoded)
    if len(encoded.encode()) > MAX_METADATA_BYTES:
        raise ValueError(f"metadata may hold {MAX_METADATA_BYTES} bytes of JSON at most")
    return metadata


FreeText = Annotated[str, Field(min_length=1, max_length=2000), AfterValidator(storable)]
Metadata = Annotated[
    dict[str, Any], AfterValidator(_storable_metadata), Field(description="Yours; kept as it is")
]
