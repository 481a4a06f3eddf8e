"""GloVe word vectors (Pennington et al. 2014) from their text files, such as glove.6B.300d.txt."""

import re
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path

import numpy as np

from fedprox.data.federated import Floats
from fedprox.errors import UserError
from fedprox.storage import check_regular

_ENDS_IN_NUMBER = re.compile(r" [-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?$", re.IGNORECASE)  # a line has a number too many


@dataclass(frozen=True)
class Glove:
    """Words and their vectors.

    Attributes:
        index: Each word's row, the first one if it is there twice. Unknown words have row `unknown`.
        vectors: Shape (unknown + 1, width), the last row zero.
    """

    index: dict[str, int]
    vectors: Floats

    @property
    def unknown(self) -> int:
        """The row of all words that are not in the file: the last one."""
        return len(self.vectors) - 1


@lru_cache(maxsize=1)
def read_glove(path: str, max_words: int | None = None) -> Glove:
    """Return the words of a file; a process reads it once for the data set and the model.

    A last row of zeros stands for all other words, as in the authors' program (litian96/FedProx,
    flearn/utils/language_utils.py; LEAF, models/sent140/get_embs.py).

    Args:
        path: A text file with lines "word v1 v2 ...", all of one width, separated by single spaces.
        max_words: Number of words to read, from the first line on (the files begin with the most frequent words); None
            reads all.

    Raises:
        UserError: If the file cannot be read or a line is not like that.
    """
    if max_words is not None and max_words < 1:
        raise UserError(f"max_words must be >= 1, got {max_words}; leave it out for all words of the file")
    file = Path(path).expanduser()
    index: dict[str, int] = {}
    rows: list[Floats] = []
    try:
        check_regular(file)
        with file.open(encoding="utf-8") as lines:
            for number, line in enumerate(islice(lines, max_words)):
                word, row = _parse_line(f"{file}, line {number + 1}", line, len(rows[0]) if rows else None)
                index.setdefault(word, number)
                rows.append(row)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise UserError(
            f"{file} cannot be read: {reason}; set dataset.glove= to GloVe vectors as text, such as "
            "glove.6B.300d.txt from nlp.stanford.edu/projects/glove"
        ) from error
    if not rows:
        raise UserError(f"{file} is empty; set dataset.glove= to GloVe vectors as text, such as glove.6B.300d.txt")
    return Glove(index, np.stack([*rows, np.zeros_like(rows[0])]))


def _parse_line(where: str, line: str, width: int | None) -> tuple[str, Floats]:
    """Return one word and its vector.

    Args:
        where: File and line number, for errors.
        line: "word v1 v2 ..."; the word may hold spaces except in the first line, as some of glove.840B do.
        width: Number of values in the first line; None for the first line itself.
    """
    word, *numbers = line.rstrip().rsplit(" ", -1 if width is None else width)
    try:
        row = np.array(numbers, dtype=np.float32)
    except ValueError:
        row = np.empty(0, dtype=np.float32)
    fits = len(row) >= 2 if width is None else len(row) == width  # a header line has one
    if not word or not fits or _ENDS_IN_NUMBER.search(word) or not np.isfinite(row).all():
        expected = "at least 2 finite numbers" if width is None else f"{width} finite numbers, as the first line does"
        raise UserError(
            f"{where}: each line must hold a word and {expected}, got {line[:40]!r}...; "
            "fix the file or download it again"
        )
    return word, row
