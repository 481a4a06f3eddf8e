"""The size of figures, and how they are written."""

import re

import pytest

from fedprox.errors import UserError
from fedprox.report.style import Paper, blank_figure, save, text_width


def test_a_width_is_that_of_a_column_or_a_page_or_in_inches():
    assert [Paper.of(width).width for width in ("column", "page", "5.5", None)] == [3.3, 6.9, 5.5, 9.0]
    assert [Paper.of(width).text for width in ("column", "page", "5.5", None)] == [8.0, 8.0, 8.0, 10.0]


@pytest.mark.parametrize("width", ["wide", "0", "1.9", "41", "-3", "nan", "inf"])
def test_any_other_width_is_refused(width):
    with pytest.raises(UserError, match=rf"--width must be column .3\.3 inches., page .* 2 to 40, got {width}"):
        Paper.of(width)


def test_a_text_is_measured_as_it_is_drawn():
    figure = blank_figure(height=1.0)
    text = figure.text(0, 0, "FedProx (mu = 0.01)", size=8)
    drawn = text.get_window_extent(figure.canvas.get_renderer()).width / figure.dpi
    assert text_width("FedProx (mu = 0.01)", 8) == pytest.approx(drawn, rel=0.05)  # a renderer fits letters to pixels


def test_a_pdf_has_truetype_fonts(tmp_path):
    figure = blank_figure(height=1.0)
    figure.text(0, 0, "round")
    save(figure, tmp_path / "figure.pdf")
    kinds = set(re.findall(rb"/Subtype /(\w+)\s*/BaseFont", (tmp_path / "figure.pdf").read_bytes()))
    assert kinds
    assert b"Type3" not in kinds  # matplotlib's usual kind, which journals refuse
    assert b"/FontFile2" in (tmp_path / "figure.pdf").read_bytes()  # TrueType
