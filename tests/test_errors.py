"""One-line texts of errors."""

import pytest

from fedprox.errors import UserError, one_line, printable, with_location


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain words, été, 日本", "plain words, été, 日本"),
        ("\x1b[31mred\x07", "\\x1b[31mred\\x07"),
        ("two\nlines\r\u2028", "two\\nlines\\r\\u2028"),
        ("gnp.\u202eexe", "gnp.\\u202eexe"),  # written from right to left
        ("half \ud83d", "half \\ud83d"),  # as names that are not UTF-8 have them
        ("<_io.BytesIO object at 0x7f747a5d7c90> broke", "<_io.BytesIO object> broke"),
    ],
)
def test_a_text_is_made_safe_for_terminals(text, shown):
    assert printable(text) == shown
    assert printable(shown) == shown
    shown.encode()  # fails for half of a surrogate pair


@pytest.mark.parametrize("text", [one_line, with_location])
def test_control_characters_in_an_error_are_escaped(text):
    assert "a\\x1b[2Jb" in text(UserError("a\x1b[2Jb"))
    assert "a\\x1b[2Jb" in text(FileNotFoundError(2, "gone", "a\x1b[2Jb"))
    assert "\n" not in text(UserError("a\nb"))


def test_the_lines_of_a_message_are_joined():
    error = ValueError("two problems:\n  the first.\n\n  the second")
    assert one_line(error) == "two problems: the first; the second"
    assert with_location(error) == "ValueError: two problems: the first; the second"


def test_failed_files_and_memory_have_a_remedy():
    assert one_line(OSError(28, "No space left", "a/run.json")).startswith("a/run.json: No space left; name another")
    assert one_line(MemoryError()) == "out of memory; reduce num_clients, batch_size or dataset.size"
    assert one_line(MemoryError("8 EiB")) == "out of memory (8 EiB); reduce num_clients, batch_size or dataset.size"
