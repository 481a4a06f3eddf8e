"""Names of classes, clients and sets, as the rows of tables hold them."""

import re
from collections.abc import Iterable
from typing import NamedTuple, Self

import numpy as np

from fedprox.data.federated import Integers

_WHOLE = re.compile(r"-?\d+")
_WHOLE_AS_FLOAT = re.compile(r"([+-]?\d+)\.0*")


class Categories(NamedTuple):
    """A name for each row.

    Attributes:
        codes: Position of its name in `names`, shape (n,).
        names: The different ones.
    """

    codes: Integers
    names: tuple[str, ...]

    @classmethod
    def of(cls, codes: Integers, values: Iterable[object]) -> Self:
        """Return categories of any values, whose names are their text: 7, 7.0 and " 7" have one name.

        >>> Categories.of(np.array([0, 1, 2]), ["7.0", " a", 7])
        Categories(codes=array([0, 1, 0]), names=('7', 'a'))
        """
        places: dict[str, int] = {}
        place_of = [places.setdefault(_name(str(value).strip()), len(places)) for value in values]
        return cls(np.array(place_of, dtype=np.int64)[codes], tuple(places))

    def in_order(self) -> Self:
        """Return the same with the names in the order of `in_order`."""
        names = in_order(set(self.names))
        places = {name: place for place, name in enumerate(names)}
        return type(self)(np.array([places[name] for name in self.names], dtype=np.int64)[self.codes], names)

    def joined(self, other: Self) -> Self:
        """Return the rows of both, one after the other."""
        return self.of(np.concatenate([self.codes, other.codes + len(self.names)]), self.names + other.names)


def in_order(names: set[str]) -> tuple[str, ...]:
    """Return names by their number if all are whole numbers, else as text.

    >>> in_order({"10", "9"}), in_order({"10", "9", "none"})
    (('9', '10'), ('10', '9', 'none'))
    """
    if all(map(_WHOLE.fullmatch, names)):
        return tuple(sorted(names, key=lambda each: (int(each), each)))
    return tuple(sorted(names))


def _name(text: str) -> str:
    return _WHOLE_AS_FLOAT.sub(r"\1", text) if _WHOLE_AS_FLOAT.fullmatch(text) else text
