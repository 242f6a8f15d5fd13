"""Cuts: what an update may see, what of it is fresh, and rows by their ids."""

from collections.abc import Callable

from httpx import Response
from sqlalchemy import select, text
from sqlalchemy.orm import Session

from service.examples.queries import eval_ids, eval_sizes, fresh_rows, has_fresh, rows_by_id, visible
from service.models import Example, Task

Post = Callable[..., Response]


def task_id(session: Session) -> str:
    found = session.scalar(select(Task.id).where(Task.name == "refunds"))
    assert found is not None
    return found


def fresh(session: Session, after: int, up_to: int) -> list[tuple[str, str | None]]:
    rows = fresh_rows(session, task_id=task_id(session), after_batch=after, up_to_batch=up_to)
    return [(row.content["text"], row.label) for row in rows]


def test_fresh_rows_are_those_between_two_cuts_in_the_order_of_the_body(post: Post, session: Session) -> None:
    post(*[{"text": f"one {number}", "label": "a", "split": "train"} for number in (3, 1, 2)])
    post({"text": "two", "label": "a", "split": "train"}, {"text": "eval", "label": "a", "split": "eval"})
    post({"text": "three", "label": "a", "split": "train"})
    assert fresh(session, 0, 1) == [("one 3", "a"), ("one 1", "a"), ("one 2", "a")]
    assert fresh(session, 1, 2) == [("two", "a")]
    has = {
        after: has_fresh(session, task_id=task_id(session), after_batch=after, up_to_batch=3)
        for after in (0, 2, 3)
    }
    assert has == {0: True, 2: True, 3: False}


def test_a_cut_shows_the_row_that_stood_then(post: Post, session: Session) -> None:
    post({"text": "t", "label": "wrong", "id": "1", "split": "train"})
    post({"text": "t", "label": "right", "id": "1"})
    assert fresh(session, 0, 1) == [("t", "wrong")]
    assert fresh(session, 0, 2) == [("t", "right")]
    assert fresh(session, 1, 2) == [("t", "right")]  # a correction is fresh to who learnt the wrong label
    assert session.scalars(select(Example.label).where(visible(1))).all() == ["wrong"]


def test_an_eval_set_is_the_visible_eval_rows_by_id(post: Post, session: Session) -> None:
    post(*[{"text": f"text {number}", "label": "a", "split": "eval", "id": number} for number in range(3)])
    post({"text": "text 1", "label": "b", "id": 1}, {"text": "later", "label": "a", "split": "eval"})
    before, after = (eval_ids(session, task_id=task_id(session), cut=cut) for cut in (1, 2))
    assert before == sorted(before)
    assert (len(before), len(after), len({*before, *after})) == (3, 4, 5)
    of_task = task_id(session)
    assert eval_sizes(session, task_ids=[of_task, "none"], cut=2) == {of_task: 4, "none": 0}


def test_rows_come_back_in_the_order_of_the_ids_without_erased_ones(post: Post, session: Session) -> None:
    post(*[{"text": f"text {number}", "label": "a", "weight": 2} for number in range(4)])
    ids = list(session.scalars(select(Example.id).order_by(Example.id.desc())))
    session.execute(text("DELETE FROM examples WHERE id = :id"), {"id": ids[1]})
    rows = list(rows_by_id(session, ids))
    assert [row.id for row in rows] == [ids[0], ids[2], ids[3]]
    assert rows[0].content == {"text": "text 3"}
    assert rows[0].weight == 2
