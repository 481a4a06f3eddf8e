"""Word vectors from generated files in GloVe's format."""

from pathlib import Path

import numpy as np
import pytest

from fedprox.data.sources.glove import read_glove
from tests.data.refusals import line_of

WORDS = ("the", ",", "i", "don't", "!", "good", "bad")
WIDTH = 300


def glove_lines(words: tuple[str, ...] = WORDS, width: int = WIDTH) -> list[str]:
    """Return lines whose vector of word k is k + 1, k + 1.25, k + 1, k + 1.25, ..."""
    return [
        " ".join([word, *(f"{row + 1 + 0.25 * (place % 2):g}" for place in range(width))])
        for row, word in enumerate(words)
    ]


@pytest.fixture
def glove(tmp_path) -> Path:
    path = tmp_path / "glove.6B.300d.txt"
    path.write_text("\n".join(glove_lines()) + "\n")
    return path


def error_line(path: Path, **settings) -> str:
    return line_of(read_glove, str(path), **settings)


def test_rows_are_the_words_in_file_order_and_a_zero_row_for_all_others(glove):
    words = read_glove(str(glove))
    assert words.index == {word: row for row, word in enumerate(WORDS)}
    assert words.unknown == 7
    assert words.vectors.shape == (8, 300)
    assert words.vectors.dtype == np.float32
    assert words.vectors[:, 0].tolist() == [1, 2, 3, 4, 5, 6, 7, 0]
    assert words.vectors[:, 299].tolist() == [1.25, 2.25, 3.25, 4.25, 5.25, 6.25, 7.25, 0]


def test_line_ends_and_spaces_before_them_do_not_matter(glove):
    glove.write_bytes(" \r\n".join(glove_lines()).encode())
    assert (read_glove(str(glove)).vectors[:, 299] == [1.25, 2.25, 3.25, 4.25, 5.25, 6.25, 7.25, 0]).all()


def test_only_the_first_max_words_are_read(glove):
    glove.write_text("\n".join([*glove_lines()[:3], "a damaged line"]))
    words = read_glove(str(glove), 3)
    assert (list(words.index), words.unknown) == (["the", ",", "i"], 3)
    assert (words.vectors[3] == 0).all()


def test_words_with_spaces_or_rare_separators_are_words(glove):
    # glove.840B has ". . ."; at U+0085 and U+2028 str.splitlines would end a line.
    glove.write_text("\n".join(glove_lines(("the", ". . .", "a\u0085b", "\u2028"))), encoding="utf-8")
    assert list(read_glove(str(glove)).index) == ["the", ". . .", "a\u0085b", "\u2028"]


@pytest.mark.parametrize(
    ("number", "line", "rule"),
    [
        (4, " ".join(["word", *["0.5"] * 299]), "a word and 300 finite numbers, as the first line does"),
        (4, " ".join(["word", *["0.5"] * 299, "half"]), "a word and 300 finite numbers, as the first line does"),
        (4, " ".join(["word", *["0.5"] * 301]), "a word and 300 finite numbers, as the first line does"),
        (7, " ".join(["word", *["0.5"] * 299, "1e400"]), "a word and 300 finite numbers, as the first line does"),
        (1, "", "a word and at least 2 finite numbers"),
        (1, "word one two", "a word and at least 2 finite numbers"),
        (1, "7 300", "a word and at least 2 finite numbers"),  # word2vec's header
    ],
)
def test_a_line_of_another_form_is_refused_with_its_number(glove, number, line, rule):
    lines = glove_lines()
    lines[number - 1] = line
    glove.write_text("\n".join(lines) + "\n")
    assert f"{glove}, line {number}: each line must hold {rule}" in error_line(glove)


def test_a_file_that_is_missing_empty_or_not_text_is_refused_with_the_remedy(tmp_path, glove):
    glove.write_bytes(b"PK\x03\x04\xff\xfe\x80 1.0\n")
    empty = tmp_path / "empty.txt"
    empty.touch()
    for path, reason in (
        (tmp_path / "none.txt", "No such file"),
        (tmp_path, "Is a directory"),
        (empty, "is empty"),
        (glove, "it is not UTF-8 text"),
    ):
        line = error_line(path)
        assert f"{path} " in line
        assert reason in line
        assert "dataset.glove=" in line


def test_max_words_below_one_is_refused(glove):
    assert "max_words must be >= 1, got 0" in error_line(glove, max_words=0)
