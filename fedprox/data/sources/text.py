"""The paper's data sets of text (Li et al. 2020, sec. 5.1), from the authors' or LEAF's JSON files.

Features are tokens, int64 of shape (num_examples, length). Clients are the files' users in the order of their ids, with
the files' own split into training and test examples; there is no global test set.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fedprox.data.checks import check_between, shown
from fedprox.data.federated import FederatedData, Integers
from fedprox.data.sources.glove import Glove, read_glove
from fedprox.data.sources.leaf import federated
from fedprox.data.sources.leaf_files import LeafExamples, data_folder, json_files, read
from fedprox.errors import UserError

# The authors' 80 characters (litian96/FedProx, flearn/utils/language_utils.py); a character's position is its token.
ALL_LETTERS = "\n !\"&'(),-.0123456789:;>?ABCDEFGHIJKLMNOPQRSTUVWXYZ[]abcdefghijklmnopqrstuvwxyz}"
LENGTH = 80  # characters of one example
_LETTER_OF_CODE = np.full(129, -1, dtype=np.int64)  # of ASCII; the last entry is for all other characters
_LETTER_OF_CODE[[ord(letter) for letter in ALL_LETTERS]] = np.arange(len(ALL_LETTERS))

CLASSES = {0: 0, 1: 1, 4: 1, "0": 0, "1": 1, "4": 1}  # Sentiment140 writes 4 for positive, LEAF as a string
TEXT = 4  # the text's position in a tweet's fields: id, date, query, user, text, ...
MAX_TOKENS = 10_000  # no tweet has so many
TOKEN = re.compile(r"[\w']+|[.,!?;]")  # LEAF's

Tokens = Callable[[LeafExamples], tuple[Integers, Integers]]


def shakespeare(path: str) -> FederatedData:
    """Return the next-character data: 80 characters as tokens 0 .. 79, and the next character as class.

    A client is a speaking role. The paper has 143 of them with 517,106 examples.

    Args:
        path: Folder with train/*.json and test/*.json; x is a string of 80 characters, y one character.

    Raises:
        UserError: If a file is missing or damaged, or an example is not like that or has a character outside the 80.
            (The authors' program gives such a character the token -1.)
    """
    return _federated(path, _letters, len(ALL_LETTERS))


def sent140(path: str, glove: str, num_tokens: int = 25, max_words: int | None = None) -> FederatedData:
    """Return tweets as tokens, which are rows of a GloVe file, and class 1 for positive sentiment.

    A client is a Twitter account. The paper has 772 of them with 40,783 tweets, and 25 tokens.

    Tokens are the words and the marks .,!?; of the unchanged text: glove.6B has no words with upper-case letters.
    Unknown words, and the places after a text's end, have the row after the last word's, whose vector is zero (as in
    the authors' program). The model needs the same file.

    Args:
        path: Folder with train/*.json and test/*.json; x is a list whose item 4 is the text; y is 0 or 1,
            or 0 or 4, as a number or a string.
        glove: Text file with lines "word v1 v2 ...", such as glove.6B.300d.txt.
        num_tokens: Tokens of an example, 1 .. 10,000.
        max_words: Number of the file's words to use; None for all. The model must use the same number.

    Raises:
        UserError: If a file is missing or damaged, or an example is not like that.
    """
    check_between("num_tokens", num_tokens, 1, MAX_TOKENS, "the paper has 25")
    words = read_glove(glove, max_words)
    return _federated(path, lambda examples: _tweets(examples, words, num_tokens), 2)


def _federated(path: str, to_arrays: Tokens, num_classes: int) -> FederatedData:
    """Return all users' examples as tokens."""
    ids, train, test = read(json_files(data_folder(path)), to_arrays)
    features, labels = zip(*train, *test, strict=True)
    sizes = np.array([len(each) for each in labels])
    return federated(ids, np.concatenate(features), np.concatenate(labels), sizes, num_classes)


def _letters(examples: LeafExamples) -> tuple[Integers, Integers]:
    """Return one client's tokens, shape (n, 80), and the next characters, shape (n,)."""
    for texts, length, name in ((examples.x, LENGTH, "x"), (examples.y, 1, "y")):
        for text in texts:
            if not isinstance(text, str) or len(text) != length:
                raise UserError(
                    f"{examples.where}: each {name} must be a string of length {length}, got {shown(text)}; "
                    "prepare the data set with the authors' or LEAF's preprocess.sh for Shakespeare"
                )
    return _numbers(examples, examples.x).reshape(-1, LENGTH), _numbers(examples, examples.y)


def _numbers(examples: LeafExamples, texts: Sequence[str]) -> Integers:
    """Return the tokens of all characters, one after another.

    Raises:
        UserError: If a character is outside the 80.
    """
    joined = "".join(texts)
    codes = np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), dtype="<u4")
    tokens: Integers = _LETTER_OF_CODE[np.minimum(codes, len(_LETTER_OF_CODE) - 1)]
    if len(unknown := np.flatnonzero(tokens < 0)):
        character = joined[unknown[0]]
        raise UserError(
            f"{examples.where} has the character {character!r} (U+{ord(character):04X}), which is not one of "
            f"the {len(ALL_LETTERS)} in the authors' alphabet; replace it or leave the user out"
        )
    return tokens


def _tweets(examples: LeafExamples, words: Glove, num_tokens: int) -> tuple[Integers, Integers]:
    """Return one client's tokens, shape (n, num_tokens), and classes, shape (n,)."""
    tokens = np.full((len(examples.x), num_tokens), words.unknown, dtype=np.int64)
    for row, fields in zip(tokens, examples.x, strict=True):
        found = TOKEN.findall(_text(examples, fields))[:num_tokens]
        row[: len(found)] = [words.index.get(word, words.unknown) for word in found]
    return tokens, np.array([_sentiment(examples, y) for y in examples.y], dtype=np.int64)


def _text(examples: LeafExamples, fields: Any) -> str:
    """Return a tweet's text."""
    if isinstance(fields, list) and len(fields) > TEXT and isinstance(text := fields[TEXT], str):
        return text
    raise UserError(
        f"{examples.where}: each x must be a list with the text as item {TEXT} (counted from 0), got "
        f"{shown(fields)}; prepare the data set with the authors' or LEAF's preprocess.sh for Sent140"
    )


def _sentiment(examples: LeafExamples, y: Any) -> int:
    """Return 1 for a positive tweet, 0 for a negative one."""
    if not isinstance(y, (int, float, str)) or y not in CLASSES:
        raise UserError(
            f"{examples.where}: each y must be 0 or 1, or 0 or 4, got {shown(y)}; leave neutral tweets (2) out"
        )
    return CLASSES[y]
