"""The bench's language-model lineages: general text is learnt first, rehearsed after, and watched from the base on."""

import json
from pathlib import Path

import numpy as np
import pytest

from bench.cells import perplexities
from bench.lineage import Lineage, learn
from bench.skills import described_functions, passages
from bench.streams import Row, Stream, Task
from workers.training.contract import BaseFolder, TrainingSettings


def texts(*words: str) -> list[Row]:
    return [{"text": f"{word} {word} {word}"} for word in words]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("lineage")


@pytest.fixture(scope="module")
def lineage(tiny_lm: BaseFolder, folder: Path) -> Lineage:
    stream = Stream(
        name="tiny",
        task_type="causal-lm",
        base=tiny_lm,
        tasks=[Task("birds", texts("wren", "owl"), texts("crow")), Task("fish", texts("cod"), texts("eel"))],
        capacity=10,
        settings=TrainingSettings(epochs=1, max_length=16),
        general=Task("general", texts("house", "tree"), texts("stone")),
    )
    return learn(stream, "replay", seed=0, folder=folder)


def tasks_in(path: Path) -> list[str]:
    return [json.loads(line)["task"] for line in path.read_text().splitlines()]


@pytest.mark.usefixtures("lineage")
def test_general_text_is_learnt_with_the_first_task_and_rehearsed_with_every_other(folder: Path) -> None:
    assert tasks_in(folder / "fresh-1.ndjson") == ["birds"] * 2 + ["general"] * 2
    assert tasks_in(folder / "fresh-2.ndjson") == ["fish"]
    assert sorted(tasks_in(folder / "replay-2.ndjson")) == ["birds"] * 2 + ["general"] * 2


def test_every_version_and_the_base_are_scored_on_every_task(lineage: Lineage) -> None:
    assert lineage.tasks == ("birds", "fish", "general")
    assert lineage.learnt_at == (1, 2, 0)
    assert [len([score for score in row if score is not None]) for row in lineage.matrix] == [3, 3, 3]


def test_forgetting_counts_from_what_the_base_could_do(lineage: Lineage) -> None:
    matrix = np.array(lineage.matrix)[:, [0, 2]]  # birds and general text; fish is of the last version
    lost = matrix[:2].max(0) - matrix[2]
    assert lineage.summary.forgetting == pytest.approx(lost.mean())


def test_general_text_is_weighed_against_the_base_at_the_last_and_at_the_worst_version() -> None:
    found = perplexities(
        Lineage(
            tasks=("birds", "general"),
            matrix=[],
            learnt_at=(1, 0),
            seconds=0.0,
            peak_memory_bytes=0,
            perplexity=[[90.0, 20.0], [9.0, 25.0], [8.0, 19.0]],
        )
    )
    assert found["general_perplexity_change_percent"] == pytest.approx(-5.0)
    assert found["highest_general_perplexity_change_percent"] == pytest.approx(25.0)


def test_no_description_gives_the_name_of_its_function_away() -> None:
    found = described_functions()
    assert found["Find the n smallest elements in a dataset."] == "heapq.nsmallest"
    assert not [name for text, name in found.items() if name.rsplit(".", 1)[-1].lower() in text.lower()]


def test_a_tale_is_cut_between_sentences() -> None:
    sentence = " ".join(["word"] * 20) + "."
    assert list(passages(" ".join([sentence] * 5))) == [f"{sentence} {sentence}"] * 2
