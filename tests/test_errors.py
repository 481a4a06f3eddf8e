"""Errors as they are told."""

import pytest

from fedprox.errors import UserError, one_line, printable, reason


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("plain words, été, 日本", "plain words, été, 日本"),
        ("\x1b[31mred\x07", "\\x1b[31mred\\x07"),
        ("two\nlines\r\u2028", "two\\nlines\\r\\u2028"),
        ("gnp.\u202eexe", "gnp.\\u202eexe"),  # written from right to left
        ("half \ud83d", "half \\ud83d"),  # as names that are not UTF-8 have them
        ("<_io.BytesIO object at 0x7f747a5d7c90> broke", "<_io.BytesIO object> broke"),
    ],
)
def test_a_text_is_made_safe_for_terminals(text, told):
    assert printable(text) == told
    assert printable(told) == told
    told.encode()  # which fails for halves


@pytest.mark.parametrize("tell", [one_line, reason])
def test_what_an_error_quotes_cannot_write_on_the_terminal(tell):
    assert "a\\x1b[2Jb" in tell(UserError("a\x1b[2Jb"))
    assert "a\\x1b[2Jb" in tell(FileNotFoundError(2, "gone", "a\x1b[2Jb"))
    assert "\n" not in tell(UserError("a\nb"))
