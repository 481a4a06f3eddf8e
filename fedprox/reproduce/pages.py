"""Pages of the documentation that are made of tables of accuracies: tables, findings with their numbers, settings."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite

from fedprox.report.style import plus_minus
from fedprox.reproduce.accuracies import Cell, Cells, Table, rows_of, shown

Read = Callable[[str, str], Cell]  # a row and a column of a table -> its cell


@dataclass(frozen=True)
class Finding:
    """A claim, and what the runs say about it.

    Attributes:
        claim: One sentence.
        is_confirmed: Whether the runs agree.
        measured: Their numbers.
    """

    claim: str
    is_confirmed: bool
    measured: str

    def __str__(self) -> str:
        """Return a line of the page."""
        return f"- **{self.claim}**: {'confirmed' if self.is_confirmed else 'not confirmed'}. {self.measured}"


def said(cell: Cell) -> str:
    """Return "91.7 ± 0.8%"."""
    return f"{plus_minus(100 * cell.mean, 100 * cell.std, '.1f')}%"


def points(higher: Cell, lower: Cell) -> str:
    """Return "6.2 points", the difference of two means."""
    return f"{100 * (higher.mean - lower.mean):.1f} points"


@dataclass(frozen=True)
class Section:
    """What the page says about a table.

    Attributes:
        title: Its heading.
        text: Its data and settings.
        findings: What is read from it.
    """

    title: str
    text: str
    findings: tuple[Callable[[Read], Finding], ...]


@dataclass(frozen=True)
class Page:
    """A page that one command makes, `python -m fedprox.reproduce NAME`.

    Attributes:
        name: Of the command, and of the files.
        title: Its heading.
        subject: One sentence: what the page is about.
        text: How its numbers are to be read.
        tables: Its tables, in their order.
        sections: What is said about each, by its name.
        has_bars: Whether its figure has bars from 0, or points on an axis that shows small differences.
    """

    name: str
    title: str
    subject: str
    text: str
    tables: Sequence[Table]
    sections: Mapping[str, Section]
    has_bars: bool = True

    @property
    def datasets(self) -> tuple[str, ...]:
        """The data sets of its tables."""
        return tuple(dict.fromkeys(table.dataset for table in self.tables))

    @property
    def figure(self) -> str:
        """Path of its figure."""
        return f"figures/{self.name}.png"

    def findings(self, table: Table, cells: Cells) -> list[Finding]:
        """Return what is read from a table."""
        return [find(lambda row, column: cells[table.name, row, column]) for find in self.sections[table.name].findings]

    def written(self, cells: Cells) -> str:
        """Return the whole page in Markdown."""
        num_runs = max(cell.runs for cell in cells.values())
        counted = "one run" if num_runs == 1 else f"{num_runs} repetitions: mean ± standard deviation"
        parts = [
            f"# {self.title}\n",
            f"{self.subject} One command makes this page, its figure and its numbers:\n",
            f"```sh\npython -m fedprox.reproduce {self.name}\n```\n",
            f"Every number is the test accuracy, the mean of a run's last ten rounds, over {counted}. {self.text}\n",
            f"![Test accuracy by table]({self.figure})\n",
        ]
        return "\n".join([*parts, *(self._section(table, cells) for table in shown(self.tables, cells))])

    def _section(self, table: Table, cells: Cells) -> str:
        section = self.sections[table.name]
        lines = "\n".join(map(str, self.findings(table, cells)))
        return f"## {section.title}\n\n{section.text}\n\n{_markdown(table, cells)}\n\n{lines}\n\n{_settings(table)}\n"


def _markdown(table: Table, cells: Cells) -> str:
    names = [factor.name for factor in table.rows]
    columns = list(table.columns.choices)
    rows = [[*row.split(", "), *(said(cells[table.name, row, column]) for column in columns)] for row in rows_of(table)]
    rule = ["---"] * (len(names) + len(columns))
    heads = [*names, *(_head(table, column, cells) for column in columns)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (heads, rule, *rows))


def _head(table: Table, column: str, cells: Cells) -> str:
    """Return a column's name, with the epsilon that all its runs cost."""
    costs = {cells[table.name, row, column].epsilon for row in rows_of(table)}
    return f"{column}, epsilon {costs.pop():.2f}" if len(costs) == 1 and isfinite(min(costs)) else column


def _settings(table: Table) -> str:
    """Return the settings of a table's runs."""
    factors = "; ".join(
        f"{factor.name}: " + ", ".join(f"{name} `{' '.join(words)}`" for name, words in factor.choices.items() if words)
        for factor in (*table.rows, table.columns)
        if any(factor.choices.values())
    )
    return f"The settings: `{' '.join(table.overrides)}`; {factors}; repetitions: `+repeat_num=`."
