"""GloVe word vectors (Pennington et al. 2014) from their text files, such as glove.6B.300d.txt."""

import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from fedprox.data.federated import Floats
from fedprox.errors import UserError
from fedprox.storage import check_regular


@dataclass(frozen=True)
class Glove:
    """Words and their vectors.

    Attributes:
        index: Each word's row; the first of a word that stands twice. Unknown words have row `unknown`.
        vectors: Shape (unknown + 1, width), the last row zero.
    """

    index: dict[str, int]
    vectors: Floats

    @property
    def unknown(self) -> int:
        """The row of every word that is not in the file: the last one."""
        return len(self.vectors) - 1


@lru_cache(maxsize=1)
def read_glove(path: str, max_words: int | None = None) -> Glove:
    """Return the words of a file; a process reads it once for the data set and the model.

    One more row than there are words stands for all others and is zero, as in the authors' program
    (litian96/FedProx, flearn/utils/language_utils.py; LEAF, models/sent140/get_embs.py).

    Args:
        path: A text file with lines "word v1 v2 ...", all of one width; separated by single spaces.
        max_words: How many words to take, from the first line on (the files begin with the most frequent
            ones); None takes all.

    Raises:
        UserError: If the file cannot be read or a line is not like that.
    """
    if max_words is not None and max_words < 1:
        raise UserError(f"max_words must be >= 1, got {max_words}; leave it out for all words of the file")
    words, rows = _parse(Path(path).expanduser(), max_words)
    index: dict[str, int] = {}
    for row, word in enumerate(words):
        index.setdefault(word, row)
    return Glove(index, np.stack([*rows, np.zeros_like(rows[0])]))


def _parse(path: Path, max_words: int | None) -> tuple[list[str], list[Floats]]:
    """Return the words and their vectors, each of shape (width,)."""
    words: list[str] = []
    rows: list[Floats] = []
    try:
        check_regular(path)
        with path.open(encoding="utf-8") as lines:
            for line in lines:
                if len(words) == max_words:
                    break
                word, row = _parse_line(f"{path}, line {len(words) + 1}", line, len(rows[0]) if rows else None)
                words.append(word)
                rows.append(row)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise UserError(
            f"{path} cannot be read: {reason}; set dataset.glove= to GloVe vectors as text, such as "
            "glove.6B.300d.txt from nlp.stanford.edu/projects/glove"
        ) from error
    if not words:
        raise UserError(f"{path} is empty; set dataset.glove= to GloVe vectors as text, such as glove.6B.300d.txt")
    return words, rows


def _parse_line(where: str, line: str, width: int | None) -> tuple[str, Floats]:
    """Return one word and its vector.

    Args:
        where: File and number of the line, for errors.
        line: "word v1 v2 ..."; the word may hold blanks except in the first line, as some of glove.840B do.
        width: How many numbers the first line has; None for the first line itself.
    """
    word, *numbers = line.rstrip().rsplit(" ", -1 if width is None else width)
    try:
        row = np.array(numbers, dtype=np.float32)
    except ValueError:
        row = np.empty(0, dtype=np.float32)
    fits = len(row) >= 2 if width is None else len(row) == width  # a header line has one
    if not word or not fits or _ends_in_number(word) or not np.isfinite(row).all():
        expected = "at least 2 finite numbers" if width is None else f"{width} finite numbers, as the first line does"
        raise UserError(
            f"{where}: each line must hold a word and {expected}, got {line[:40]!r}...; "
            "mend the file or download it again"
        )
    return word, row


def _ends_in_number(word: str) -> bool:
    """Return whether a word ends in a blank and a number, as it does where a line has a number too many."""
    before, _, last = word.rpartition(" ")
    try:
        return bool(before) and math.isfinite(float(last))
    except ValueError:
        return False
