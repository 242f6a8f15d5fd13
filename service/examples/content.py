"""What an example says, apart from how it is filed: its content, its hashes, and the split they give it.

- Content hash: BLAKE2b-256 over the shape, the texts exactly as sent, and the label. Two rows of one task with
  equal content hashes are the same row; a corrected label or text makes another.
- Text hash: BLAKE2b-128 over the model's input alone (the text; the prompt; the messages before the last
  answer), normalised: Unicode NFC, case folded, white space collapsed. It decides the split, so that one text
  never stands on both sides, whatever its label, task or spelling of blanks.
"""

import hashlib
import json
import unicodedata
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

EVAL_ONE_IN = 10
ROLES = ("system", "user", "assistant", "tool")
encode_json = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode


class RowProblem(Exception):
    """A row cannot be taken; carries a stable code and what to do about it."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code, self.detail = code, detail


class Content(NamedTuple):
    """The content of one row: JSON as stored, label, and the two hashes."""

    json: str
    label: str | None
    content_hash: bytes
    text_hash: bytes


def normalised(text: str) -> str:
    """Returns the text as the split sees it: NFC, case folded, runs of white space as one blank, no ends."""
    if not text.isascii():
        text = unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())
    return " ".join(text.lower().split())


def text_hash(text: str) -> bytes:
    """Returns the 16-byte hash of the normalised text."""
    return hashlib.blake2b(normalised(text).encode(), digest_size=16).digest()


def split_of(text_hash: bytes) -> str:
    """Returns where a text goes that nobody has placed: one in ten to eval, for ever the same ones."""
    return "eval" if int.from_bytes(text_hash[:8]) % EVAL_ONE_IN == 0 else "train"


def classification_content(row: Mapping[str, Any], *, max_label_length: int) -> Content:
    """Returns the content of a `{"text", "label"}` row. Raises `RowProblem`."""
    text = _text(row, "text")
    label = _label(row.get("label"), max_label_length=max_label_length)
    return Content(
        f'{{"text":{encode_json(text)}}}', label, _content_hash("text", text, label), text_hash(text)
    )


def causal_content(row: Mapping[str, Any]) -> Content:
    """Returns the content of a `prompt` + `completion`, `messages` or `text` row. Raises `RowProblem`."""
    if row.get("label") is not None:
        raise RowProblem(
            "unexpected_label", "a causal-lm row has no label; put the answer into `completion` or `messages`"
        )
    shapes = [shape for shape in _CAUSAL if row.get(shape) is not None]
    if row.get("completion") is not None and "prompt" not in shapes:
        raise RowProblem("missing_text", "`completion` needs a `prompt`")
    if not shapes:
        raise RowProblem("missing_text", "send `prompt` and `completion`, or `messages`, or `text`")
    if len(shapes) > 1:
        raise RowProblem(
            "wrong_type", f"send one of {', '.join(f'`{shape}`' for shape in shapes)}, not several"
        )
    return _CAUSAL[shapes[0]](row)


def _prompt_and_completion(row: Mapping[str, Any]) -> Content:
    prompt, completion = _text(row, "prompt"), _text(row, "completion")
    return Content(
        encode_json({"prompt": prompt, "completion": completion}), None,
        _content_hash("prompt", prompt, completion), text_hash(prompt),
    )  # fmt: skip


def _plain_text(row: Mapping[str, Any]) -> Content:
    text = _text(row, "text")
    return Content(encode_json({"text": text}), None, _content_hash("text", text, None), text_hash(text))


def _messages(row: Mapping[str, Any]) -> Content:
    messages = row["messages"]
    if not isinstance(messages, list):
        raise RowProblem("wrong_type", '`messages` must be a list of {"role", "content"}')
    turns = [_message(message, index) for index, message in enumerate(messages)]
    answers = [index for index, (role, _) in enumerate(turns) if role == "assistant"]
    if not answers:
        raise RowProblem("missing_text", "`messages` needs an assistant message: it is what is learnt")
    before = turns[: answers[-1]] or turns
    parts = [part for turn in turns for part in turn]
    stored = [{"role": role, "content": content} for role, content in turns]
    return Content(
        encode_json({"messages": stored}), None, _content_hash("messages", *parts),
        text_hash("\n".join(content for _, content in before)),
    )  # fmt: skip


def _message(message: object, index: int) -> tuple[str, str]:
    if not isinstance(message, dict):
        raise RowProblem("wrong_type", f'messages[{index}] must be an object {{"role", "content"}}')
    unknown = sorted(message.keys() - {"role", "content"})
    if unknown:
        raise RowProblem("unknown_field", f"messages[{index}] has an unknown key {unknown[0][:100]!r}")
    if message.get("role") not in ROLES:
        raise RowProblem("wrong_type", f"messages[{index}].role must be one of {', '.join(ROLES)}")
    return message["role"], _text(message, "content", where=f"messages[{index}].content")


_CAUSAL: dict[str, Callable[[Mapping[str, Any]], Content]] = {
    "prompt": _prompt_and_completion, "messages": _messages, "text": _plain_text,
}  # fmt: skip


def _text(row: Mapping[str, Any], key: str, *, where: str | None = None) -> str:
    value = row.get(key)
    if value is None:
        raise RowProblem("missing_text", f"`{where or key}` is missing")
    if not isinstance(value, str):
        raise RowProblem("wrong_type", f"`{where or key}` must be a string")
    if not value or value.isspace():
        raise RowProblem("empty_text", f"`{where or key}` is empty")
    return value


def _label(value: object, *, max_label_length: int) -> str:
    if value is None:
        raise RowProblem("missing_label", "`label` is missing; a text-classification row needs one")
    if not isinstance(value, str):
        raise RowProblem("wrong_type", '`label` must be a string; write a number as one, such as "3"')
    if not value or value.isspace():
        raise RowProblem("empty_label", "`label` is empty")
    if len(value) > max_label_length:
        raise RowProblem(
            "label_too_long", f"`label` has {len(value)} characters; {max_label_length} are allowed"
        )
    return value


def _content_hash(shape: str, *parts: str | None) -> bytes:
    # No part holds a NUL, so that the joined bytes can be read in one way only.
    joined = "\0".join((shape, *(part or "" for part in parts)))
    return hashlib.blake2b(joined.encode(), digest_size=32).digest()
