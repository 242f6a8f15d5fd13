"""Packed rows: the same logits as alone, and no row that another one can see."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from workers.training.adapters import attach_new
from workers.training.base_models import load_decoder, load_tokenizer
from workers.training.batches import Pick, TokenTable
from workers.training.contract import AdapterSettings, BaseFolder
from workers.training.errors import TrainingFailed
from workers.training.language_model import LanguageModel
from workers.training.packing import first_fit, pack
from workers.training.sequences import CausalRow, as_table, encode

NOTHING = np.zeros(0, dtype=np.int64)


@pytest.fixture(scope="module")
def model(tiny_lm: BaseFolder) -> LanguageModel:
    torch.manual_seed(2)
    model = LanguageModel(attach_new(load_decoder(tiny_lm), AdapterSettings(r=4, alpha=8.0)))
    with torch.no_grad():
        for parameter in model.trainable().values():
            parameter.normal_(std=0.1)
    return model.eval()


@pytest.fixture(scope="module")
def table(tiny_lm: BaseFolder) -> TokenTable:
    texts = [
        "a b c d e f g h i j k l m n",
        "one two three",
        "red green blue black",
        "x y z",
        "up and down we go",
    ]
    rows = [CausalRow(i, {"prompt": text, "completion": f" {text} {i}"}) for i, text in enumerate(texts)]
    tokenizer = load_tokenizer(tiny_lm)
    sequences = encode(rows, tokenizer, max_length=64, poll=lambda _: None)
    return as_table(sequences, [row.id for row in rows], padding_id=tokenizer.pad_token_id)


def logits(model: LanguageModel, table: TokenTable, *, packed: bool, rows: Any = range(5)) -> torch.Tensor:
    with torch.no_grad():
        return model(pack(table, table, Pick(np.array(rows), NOTHING, NOTHING), packed=packed))


def test_packed_logits_equal_those_of_each_row_alone(model: LanguageModel, table: TokenTable) -> None:
    together = logits(model, table, packed=True)
    alone = torch.cat([logits(model, table, packed=False, rows=[row]) for row in range(5)])
    padded = logits(model, table, packed=False)
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-4)
    torch.testing.assert_close(padded, alone, rtol=0, atol=1e-4)


def test_changing_one_packed_row_leaves_the_others_as_they_were(
    model: LanguageModel, table: TokenTable
) -> None:
    pick = Pick(np.arange(5), NOTHING, NOTHING)
    batch = pack(table, table, pick, packed=True)
    assert len(batch.input_ids) < 5, "rows share sequences"
    tokens = table.tokens.copy()
    tokens[table.starts[1] : table.starts[2]] += 1
    changed = logits(model, replace(table, tokens=tokens), packed=True)
    before, others = logits(model, table, packed=True), batch.rows != 1
    assert torch.equal(changed[others], before[others])
    assert not torch.allclose(changed[~others], before[~others], atol=1e-3)


def test_logits_are_those_of_plain_transformers_at_the_answers(
    tiny_lm: BaseFolder, table: TokenTable
) -> None:
    plain = load_decoder(tiny_lm)
    for row in range(5):
        ids, mask = table.tokens_and_answers(row)
        with torch.no_grad():
            expected = plain(torch.from_numpy(ids.astype(np.int64))[None]).logits[0]
        found = logits(LanguageModel(load_decoder(tiny_lm)), table, packed=False, rows=[row])
        torch.testing.assert_close(found, expected[np.flatnonzero(mask) - 1], rtol=0, atol=1e-5)


def test_labels_are_the_answer_tokens_and_nothing_else_is_in_the_loss(
    model: LanguageModel, table: TokenTable
) -> None:
    batch = pack(table, table, Pick(np.array([3, 1]), np.array([2]), np.array([1])), packed=False)
    expected = [table.row(row)[table.tokens_and_answers(row)[1]].tolist() for row in (3, 1, 2)]
    assert batch.labels.tolist() == [token for answer in expected for token in answer]
    assert batch.replayed.tolist() == [False] * len(expected[0] + expected[1]) + [True] * len(expected[2])
    assert batch.ids == (3, 1, 2)
    with torch.no_grad():
        loss = functional.cross_entropy(model(batch), batch.labels)
        # The usual way: all logits, everything but answers ignored.
        labels = torch.full_like(batch.input_ids, -100)
        for place, row in enumerate((3, 1, 2)):
            mask = np.flatnonzero(table.tokens_and_answers(row)[1])
            labels[place, mask] = batch.input_ids[place, mask]
        usual = model.encoder(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=labels
        ).loss
    torch.testing.assert_close(loss, usual)


def test_rows_fill_sequences_first_fit_and_none_is_longer_than_the_longest_row() -> None:
    assert first_fit([3, 10, 4, 6, 7], 10) == [[1], [4, 0], [3, 2]]


def test_the_output_layer_takes_no_adapter(tiny_lm: BaseFolder) -> None:
    wrapped = attach_new(load_decoder(tiny_lm), AdapterSettings(target_modules=("q_proj", "lm_head")))
    with pytest.raises(TrainingFailed, match="output layer"):
        LanguageModel(wrapped)
