"""What an attempt failed with, as it is recorded."""

import pytest

from service.errors import Unprocessable
from service.schemas import storable
from workers.failures import MOST_CHARACTERS, described
from workers.training.errors import TrainingFailed


@pytest.mark.parametrize("kind", [RuntimeError, lambda text: TrainingFailed("x", text), Unprocessable])
@pytest.mark.parametrize(
    "text", ["a\0b", "half \ud800 of a pair", "x" * 1_000_000, "\0" * 3000, "\udfff" * 3000]
)
def test_whatever_a_message_quotes_it_can_be_recorded(kind, text: str) -> None:  # type: ignore[no-untyped-def]  # any error
    message = described(kind(text)).message
    assert storable(message)
    assert len(message) <= MOST_CHARACTERS


def test_what_cannot_be_stored_is_written_out_and_the_rest_is_left_as_it_is() -> None:
    assert described(RuntimeError("a\0b \ud800 größer")).message == "a\\x00b \\ud800 größer"
    assert described(RuntimeError("x" * 3000)).message == "x" * (MOST_CHARACTERS - 1) + "…"
    assert described(RuntimeError("x" * MOST_CHARACTERS)).message == "x" * MOST_CHARACTERS


def test_a_path_of_the_worker_is_not_told_to_whoever_asked_for_the_update() -> None:
    error = FileNotFoundError(2, "No such file or directory", "/srv/models/secret/config.json")
    assert described(error).message == "No such file or directory"
