"""Rows of causal-lm as tokens: what is learnt, what is context, what is cut."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from workers.training.base_models import load_tokenizer
from workers.training.contract import BaseFolder
from workers.training.errors import TrainingFailed
from workers.training.sequences import CausalRow, TokenSequence, cut, encode, read_causal_rows


@pytest.fixture(scope="module")
def tokenizer(tiny_lm: BaseFolder) -> Any:
    return load_tokenizer(tiny_lm)


def encoded(tokenizer: Any, content: dict[str, Any], *, max_length: int = 64) -> TokenSequence:
    return encode([CausalRow(7, content)], tokenizer, max_length=max_length, poll=lambda _: None)[0]


def learnt(tokenizer: Any, sequence: TokenSequence) -> str:
    return str(tokenizer.decode(sequence.tokens[sequence.answers]))


def test_a_completion_follows_its_prompt_as_it_stands_and_ends_the_sequence(tokenizer: Any) -> None:
    sequence = encoded(tokenizer, {"prompt": "2 + 2 =", "completion": " 4"})
    assert tokenizer.decode(sequence.tokens) == "2 + 2 = 4<|im_end|>"
    assert learnt(tokenizer, sequence) == " 4<|im_end|>"


def test_the_completion_is_tokenised_as_it_is_generated(tokenizer: Any) -> None:
    # Together these letters make one token; a model that continues the prompt gives it in two pieces.
    sequence = encoded(tokenizer, {"prompt": "hel", "completion": "lo"})
    prompt = tokenizer("hel")["input_ids"]
    assert sequence.tokens[: len(prompt)].tolist() == prompt
    assert not sequence.answers[: len(prompt)].any()


def test_messages_go_through_the_chat_template_and_only_assistant_turns_are_learnt(tokenizer: Any) -> None:
    messages = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello!"},
        {"role": "user", "content": "Bye"},
        {"role": "assistant", "content": "So long."},
    ]
    sequence = encoded(tokenizer, {"messages": messages}, max_length=128)
    template = tokenizer.apply_chat_template(messages, tokenize=False)
    assert "You are a helpful AI assistant named SmolLM" in template
    assert tokenizer.decode(sequence.tokens) == template.removesuffix("\n")
    assert learnt(tokenizer, sequence) == "Hello!<|im_end|>So long.<|im_end|>"


def test_an_answer_begins_where_the_generation_prompt_ends(tokenizer: Any) -> None:
    question = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]
    sequence = encoded(tokenizer, {"messages": [*question, {"role": "assistant", "content": "Because."}]})
    prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_dict=True)[
        "input_ids"
    ]
    assert sequence.tokens[: len(prompt)].tolist() == prompt
    assert int(np.argmax(sequence.answers)) == len(prompt)


def test_a_plain_text_is_learnt_whole_but_for_its_first_token(tokenizer: Any) -> None:
    sequence = encoded(tokenizer, {"text": "The sun rises in the east."})
    assert tokenizer.decode(sequence.tokens) == "The sun rises in the east."
    assert sequence.answers.tolist() == [False] + [True] * (len(sequence.tokens) - 1)


def test_every_digit_is_a_token_as_in_the_models_own_tokenizer(tokenizer: Any) -> None:
    assert tokenizer.tokenize("a  12") == ["a", "ĠĠ", "1", "2"]


def mask(text: str) -> np.ndarray[Any, Any]:
    return np.array([character == "a" for character in text])


@pytest.mark.parametrize(
    ("row", "length", "kept", "answers", "whole"),
    [
        ("ccccaa", 8, "012345", "ccccaa", True),  # fits
        ("ccccaa", 4, "2345", "ccaa", True),  # the prompt loses its beginning
        ("ccaaaa", 4, "1234", "caaa", False),  # one token of prompt stays, then the answer is cut
        (
            "caacaa",
            4,
            "2345",
            "cc" + "aa",
            True,
        ),  # a turn cut in half starts with a token that nothing precedes
        ("aaaaaa", 4, "0123", "caaa", False),  # a text is cut on the right
    ],
)
def test_context_is_cut_before_answers(row: str, length: int, kept: str, answers: str, whole: bool) -> None:
    sequence = cut(np.arange(6, dtype=np.int32), mask(row), length)
    assert "".join(map(str, sequence.tokens)) == kept
    assert sequence.answers.tolist() == mask(answers).tolist()
    assert sequence.whole is whole


def test_a_long_prompt_keeps_its_end_and_the_whole_answer(tokenizer: Any) -> None:
    sequence = encoded(tokenizer, {"prompt": "word " * 200 + "last:", "completion": " yes"}, max_length=16)
    assert len(sequence.tokens) == 16
    assert tokenizer.decode(sequence.tokens).endswith("last: yes<|im_end|>")


def test_a_row_without_an_answer_is_named(tokenizer: Any) -> None:
    with pytest.raises(TrainingFailed, match="row 7") as caught:
        encoded(tokenizer, {"text": "a"})
    assert caught.value.code == "no_answer"


def test_messages_without_a_template_or_an_assistant_are_refused_by_name(tiny_lm: BaseFolder) -> None:
    bare = load_tokenizer(tiny_lm)
    user = {"role": "user", "content": "Hi"}
    with pytest.raises(TrainingFailed, match="row 7") as caught:
        encoded(bare, {"messages": [user]})
    assert caught.value.code == "bad_row"
    bare.chat_template = None
    with pytest.raises(TrainingFailed, match="row 7") as caught:
        encoded(bare, {"messages": [user, {"role": "assistant", "content": "Hello"}]})
    assert caught.value.code == "no_chat_template"


@pytest.mark.parametrize(
    "row",
    [
        {"id": 1},
        {"id": "1", "text": "x"},
        {"id": 1, "prompt": "x"},
        {"id": 1, "messages": [{"role": "user"}]},
    ],
)
def test_a_line_that_is_no_row_is_named(tmp_path: Path, row: dict[str, Any]) -> None:
    path = tmp_path / "rows"
    path.write_text('{"id": 1, "task": "t", "text": "x"}\n' + json.dumps(row), encoding="utf-8")
    with pytest.raises(TrainingFailed, match="line 2") as caught:
        read_causal_rows(str(path))
    assert caught.value.code == "bad_row"
