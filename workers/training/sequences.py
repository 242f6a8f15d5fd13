"""Rows of causal-lm as token sequences that know which of their tokens are answers.

- `{"prompt", "completion"}`: the two texts one after the other as they stand, without the chat template, tokenised
  apart so that the completion begins as it does when generated; the completion ends with the end-of-sequence
  token. Answers are the completion and that token.
- `{"messages"}`: the model's own chat template. Answers are every assistant turn, up to and with the special token
  that the template closes it with.
- `{"text"}`: the text as it stands. Answers are all tokens but the first, which nothing precedes.

A sequence over `max_length` loses tokens on the left of its last answer first, down to one token of context; only
then is the answer cut on the right.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workers.training.batches import TOKENISE_ROWS, TokenTable
from workers.training.errors import TrainingFailed

MARK = "\ufdd0answer\ufdd1"
"""Stands for an assistant turn while the chat template is applied; Unicode keeps these code points out of texts."""


@dataclass(frozen=True, slots=True)
class CausalRow:
    """One row to learn from: `content` has the keys of one of the three shapes."""

    id: int
    content: Mapping[str, Any]

    @property
    def prompted(self) -> bool:
        """Whether the row asks for an answer, rather than being plain text."""
        return "text" not in self.content


@dataclass(frozen=True, slots=True)
class TokenSequence:
    """The tokens of one row, which of them are answers, and whether its last answer is there to the end."""

    tokens: NDArray[np.int32]
    answers: NDArray[np.bool_]
    whole: bool


def read_causal_rows(path: str) -> list[CausalRow]:
    """Read an NDJSON file of rows, in ascending order of id; an empty `path` stands for no rows.

    Raises:
        TrainingFailed: `bad_row`, naming the line.
    """
    if not path:
        return []
    with Path(path).open(encoding="utf-8") as stream:
        rows = [_parse(line, number) for number, line in enumerate(stream, start=1) if line.strip()]
    return sorted(rows, key=lambda row: row.id)


def _parse(line: str, number: int) -> CausalRow:
    try:
        value = json.loads(line)
        row = CausalRow(value["id"], _content(value))
        if not isinstance(row.id, int):
            raise TypeError("id is an integer")
    except (ValueError, KeyError, TypeError) as error:
        raise TrainingFailed(
            "bad_row", f"line {number} is no causal-lm row: {error!r}", {"line": number}
        ) from error
    return row


def _content(value: Mapping[str, Any]) -> dict[str, Any]:
    """The one shape that the row has."""
    if value.get("messages") is not None:
        turns = [{"role": str(turn["role"]), "content": turn["content"]} for turn in value["messages"]]
        if not all(isinstance(turn["content"], str) for turn in turns):
            raise TypeError("the content of every message is a string")
        return {"messages": turns}
    keys = ("prompt", "completion") if value.get("prompt") is not None else ("text",)
    content = {key: value[key] for key in keys}
    if not all(isinstance(text, str) for text in content.values()):
        raise TypeError(f"{' and '.join(keys)} must be strings")
    return content


def encode(
    rows: Sequence[CausalRow],
    tokenizer: Any,
    *,
    max_length: int,
    poll: Callable[[int], None],
    unanswered: bool = False,
) -> list[TokenSequence]:
    """Tokenise every row once; `poll` is called with the rows done between chunks.

    With `unanswered`, rows of which nothing can be predicted (a text of one token) come without answers.

    Raises:
        TrainingFailed: `no_answer` when nothing of a row can be predicted, `no_chat_template` for messages to a
            model without one, `bad_row` when the template refuses them; each names the row by its id.
    """
    sequences: list[TokenSequence] = []
    for start in range(0, len(rows), TOKENISE_ROWS):
        poll(start)
        chunk = rows[start : start + TOKENISE_ROWS]
        stretches = [_stretches(row, tokenizer) for row in chunk]
        texts = [text for row in stretches for text, _ in row]
        tokens = iter(tokenizer(texts, add_special_tokens=False, return_attention_mask=False)["input_ids"])
        for row, parts in zip(chunk, stretches, strict=True):
            sequence = _sequence([(next(tokens), answer) for _, answer in parts], max_length)
            if not (unanswered or sequence.answers.any()):
                raise _no_answer(row)
            sequences.append(sequence)
    return sequences


def _no_answer(row: CausalRow) -> TrainingFailed:
    return TrainingFailed(
        "no_answer",
        f"row {row.id} has no token that could be predicted from one before it",
        {"id": row.id},
    )


def _sequence(parts: Sequence[tuple[Sequence[int], bool]], max_length: int) -> TokenSequence:
    tokens = np.concatenate([np.asarray(ids, dtype=np.int32) for ids, _ in parts])
    answers = np.concatenate([np.full(len(ids), answer) for ids, answer in parts])
    return cut(tokens, answers, max_length)


def _stretches(row: CausalRow, tokenizer: Any) -> list[tuple[str, bool]]:
    """The row's text in stretches that are tokenised apart, each with whether it is to be learnt."""
    if "messages" in row.content:
        return _chat(row, tokenizer)
    # Sequences begin as the tokenizer begins them; it is never left to close one that is to be continued.
    begins = tokenizer.bos_token_id is not None and tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id
    opening = tokenizer.bos_token if begins else ""
    if "text" in row.content:
        return [(opening + row.content["text"], True)]
    return [(opening + row.content["prompt"], False), (row.content["completion"] + tokenizer.eos_token, True)]


def _chat(row: CausalRow, tokenizer: Any) -> list[tuple[str, bool]]:
    messages = row.content["messages"]
    answers = [turn["content"] for turn in messages if turn["role"] == "assistant"]
    between = _rendered(row, tokenizer, count=len(answers)).split(MARK)
    if len(between) != len(answers) + 1:
        raise TrainingFailed(
            "bad_row",
            f"row {row.id}: the chat template does not render every assistant turn once",
            {"id": row.id},
        )
    closing = re.compile("|".join(re.escape(token) for token in special_tokens(tokenizer)) or r"(?!)")
    stretches = [(between[0], False)]
    for answer, context in zip(answers, between[1:], strict=True):
        end = closing.search(context)
        at = end.end() if end else 0
        stretches += [(answer + context[:at], True), (context[at:], False)]
    return stretches[:-1]  # what follows the last answer is never seen when it is generated


def special_tokens(tokenizer: Any) -> list[str]:
    """The texts of the tokenizer's special tokens."""
    return [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]


def _rendered(row: CausalRow, tokenizer: Any, *, count: int) -> str:
    """The chat as the template writes it, with a mark in place of each assistant turn."""
    if tokenizer.chat_template is None or count == 0:
        raise TrainingFailed(
            "no_chat_template" if count else "bad_row",
            f"row {row.id} has messages, but "
            + (
                "the base model has no chat template; send prompt and completion"
                if count
                else "none of an assistant"
            ),
            {"id": row.id},
        )
    marked = [
        {**turn, "content": MARK} if turn["role"] == "assistant" else turn for turn in row.content["messages"]
    ]
    try:
        text: str = tokenizer.apply_chat_template(marked, tokenize=False)
    except Exception as error:  # templates raise whatever Jinja and their authors please
        raise TrainingFailed(
            "bad_row", f"row {row.id}: the base model's chat template refuses it: {error}", {"id": row.id}
        ) from error
    return text


def cut(tokens: NDArray[np.int32], answers: NDArray[np.bool_], max_length: int) -> TokenSequence:
    """Cut a row to `max_length` tokens, context before answers, and never the start of the last answer.

    The first token of what is left is no answer any more, since nothing precedes it.
    """
    answers = answers.copy()
    answers[:1] = False
    begins = np.flatnonzero(answers & ~np.concatenate([[False], answers[:-1]]))
    last = int(begins[-1]) if len(begins) else 0
    dropped = max(0, min(len(tokens) - max_length, last - 1))
    whole = len(tokens) - dropped <= max_length
    tokens, answers = tokens[dropped:][:max_length], answers[dropped:][:max_length]
    answers[:1] = False
    return TokenSequence(tokens, answers, whole)


def as_table(sequences: Sequence[TokenSequence], ids: Sequence[int], *, padding_id: int) -> TokenTable:
    """Put sequences into one flat table; its rows carry no labels of their own (all 0)."""
    starts = np.zeros(len(sequences) + 1, dtype=np.int64)
    np.cumsum([len(sequence.tokens) for sequence in sequences], out=starts[1:])
    return TokenTable(
        tokens=np.concatenate([np.zeros(0, dtype=np.int32), *(sequence.tokens for sequence in sequences)]),
        starts=starts,
        labels=np.zeros(len(sequences), dtype=np.int64),
        ids=np.array(ids, dtype=np.int64),
        padding_id=padding_id,
        answers=np.concatenate([np.zeros(0, dtype=np.bool_), *(sequence.answers for sequence in sequences)]),
    )
