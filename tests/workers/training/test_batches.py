"""Mixing and bucketing: what an epoch is made of."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from workers.training.batches import Mix, Pick, TokenTable, collate, read_rows
from workers.training.errors import TrainingFailed


def mix(fresh: int, replay: int, *, fraction: float = 0.5, batch_size: int = 16, seed: int = 0) -> Mix:
    generator = np.random.default_rng(5)
    lengths = (generator.integers(3, 100, size=fresh), generator.integers(3, 100, size=replay))
    return Mix(*lengths, batch_size=batch_size, replay_fraction=fraction, seed=seed)


def table(lengths: list[int]) -> TokenTable:
    starts = np.concatenate([[0], np.cumsum(lengths)])
    size = len(lengths)
    return TokenTable(
        np.arange(starts[-1], dtype=np.int32) + 1, starts, np.arange(size), np.arange(size) * 10, padding_id=0
    )


def test_an_epoch_takes_every_fresh_row_once() -> None:
    drawn = np.concatenate([pick.fresh for pick in mix(333, 90).epoch(4)])
    assert sorted(drawn) == list(range(333))


def test_half_of_the_mix_is_replayed_whatever_the_size_of_the_buffer() -> None:
    for buffer in (7, 400, 5000):
        picks = mix(320, buffer).epoch(0)
        assert sum(len(pick.replay) for pick in picks) == 320
        assert all(abs(len(pick.fresh) - len(pick.replay)) <= 2 for pick in picks)


def test_a_quarter_replayed_is_a_third_of_the_fresh_rows() -> None:
    assert mix(300, 1000, fraction=0.25).replay_rows == 100


def test_no_buffered_row_comes_back_before_all_have_been_replayed() -> None:
    plan = mix(50, 120)
    drawn = np.concatenate([plan.replayed(epoch) for epoch in range(5)])
    assert len(drawn) == 250
    assert max(Counter(drawn[:120]).values()) == 1
    assert max(Counter(drawn[120:240]).values()) == 1
    again = [pick.replay for epoch in range(5) for pick in plan.epoch(epoch)]
    assert Counter(np.concatenate(again)) == Counter(drawn)


def test_batches_hold_rows_of_like_length() -> None:
    plan = mix(2000, 0, fraction=0.0)
    shuffled = np.random.default_rng(0).permutation(2000)
    padding = sum(
        plan.fresh[pick.fresh].max() * len(pick.fresh) - plan.fresh[pick.fresh].sum()
        for pick in plan.epoch(0)
    )
    random_padding = sum(
        plan.fresh[part].max() * 16 - plan.fresh[part].sum() for part in np.array_split(shuffled, 125)
    )
    assert padding < random_padding / 5


def test_every_epoch_has_as_many_batches_none_empty_and_none_too_large() -> None:
    for fresh, replay, fraction in ((1, 0, 0.0), (5, 3, 0.5), (700, 31, 0.9), (257, 64, 0.5)):
        plan = mix(fresh, replay, fraction=fraction)
        for epoch in range(3):
            sizes = [len(pick.fresh) + len(pick.replay) for pick in plan.epoch(epoch)]
            assert len(sizes) == plan.batches
            assert min(sizes) >= 1
            assert max(sizes) <= 17


def test_the_order_is_a_function_of_seed_and_epoch() -> None:
    def order(plan: Mix, epoch: int) -> list[int]:
        return [int(i) for pick in plan.epoch(epoch) for i in pick.fresh]

    assert order(mix(200, 0, fraction=0.0), 1) == order(mix(200, 0, fraction=0.0), 1)
    assert order(mix(200, 0, fraction=0.0), 1) != order(mix(200, 0, fraction=0.0), 2)
    assert order(mix(200, 0, fraction=0.0, seed=1), 1) != order(mix(200, 0, fraction=0.0), 1)


def test_a_batch_is_padded_to_its_longest_row_and_tells_fresh_from_replayed() -> None:
    batch = collate(table([2, 4]), table([3]), Pick(np.array([1, 0]), np.array([0]), np.array([1])))
    assert batch.input_ids.tolist() == [[3, 4, 5, 6], [1, 2, 0, 0], [1, 2, 3, 0]]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]]
    assert batch.replayed.tolist() == [False, False, True]
    assert batch.ids == (10, 0, 0)


def test_a_sample_keeps_its_rows_whole() -> None:
    full = table([2, 4, 3, 5, 1])
    part = full.sample(3, seed=1)
    assert len(part) == 3
    for index, identifier in enumerate(part.ids):
        assert part.row(index).tolist() == full.row(int(identifier) // 10).tolist()


def test_rows_come_in_order_of_id_whatever_their_order_in_the_file(write_rows: Callable[..., str]) -> None:
    rows = [{"id": i, "task": "t", "text": f"row {i}", "label": "a"} for i in (5, 1, 3)]
    assert [row.id for row in read_rows(write_rows("rows", rows))] == [1, 3, 5]


@pytest.mark.parametrize(
    "line",
    [
        "not json",
        json.dumps({"id": 1, "text": "x"}),
        json.dumps({"id": "1", "text": "x", "label": "a"}),
        "[]",
    ],
)
def test_a_line_that_is_no_row_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "rows"
    path.write_text('{"id": 1, "task": "t", "text": "x", "label": "a"}\n' + line + "\n", encoding="utf-8")
    with pytest.raises(TrainingFailed, match="line 2") as caught:
        read_rows(str(path))
    assert caught.value.code == "bad_row"


def test_two_draws_share_every_batch_and_go_through_the_buffer_independently() -> None:
    lengths = np.full(120, 10), np.full(50, 10)
    plan = Mix(*lengths, batch_size=12, replay_fraction=2 / 3, seed=1, draws=2)
    for pick in plan.epoch(0):
        assert (pick.draw == 1).sum() == (pick.draw == 2).sum() == len(pick.fresh) == 4
    first, second = plan.replayed(0, 1), plan.replayed(0, 2)
    assert len(first) == len(second) == 120
    assert not np.array_equal(first, second)


def test_held_out_rows_are_a_share_of_every_label_and_none_of_the_rows_that_stay() -> None:
    rows = table([3] * 30)
    rows.labels[:] = np.arange(30) % 3
    stay, held = rows.split(0.2, seed=0)
    assert np.bincount(held.labels).tolist() == [2, 2, 2]
    assert sorted([*stay.ids, *held.ids]) == sorted(rows.ids)
    np.testing.assert_array_equal(held.row(0), rows.row(int(held.ids[0]) // 10))


def test_a_label_with_one_row_keeps_it_for_training() -> None:
    stay, held = table([3, 4]).split(0.5, seed=0)
    assert (len(stay), len(held)) == (2, 0)
