"""Tables as pandas reads them: numbers as Python reads them, names as they are, and roles of columns."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedprox.data.sources.frames import Roles, read_csv, read_parquet
from fedprox.errors import UserError


@pytest.fixture
def written(tmp_path):
    def write(text, encoding="utf-8"):
        file = tmp_path / "t.csv"
        file.write_bytes(text.encode(encoding))
        return file

    return write


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1))
def test_numbers_are_those_of_python(tmp_path_factory, numbers):
    file = tmp_path_factory.getbasetemp() / "numbers.csv"
    file.write_text("x,label\n" + "".join(f"{number!r},a\n" for number in numbers))
    assert read_csv(file, Roles(("label",))).features[:, 0].tolist() == numbers


def test_names_are_text_even_if_pandas_takes_them_for_missing_or_numbers(written):
    frame = read_csv(written("x,label,who\n1,NA,7\n2,None,7.0\n3,nan, b\n"), Roles(("label",), client="who"))
    assert frame.names["label"].names == ("NA", "None", "nan")
    codes, names = frame.names["who"]
    assert [names[code] for code in codes] == ["7", "7", "b"]


def test_features_are_the_columns_without_another_role_or_those_that_are_named_in_their_order(written):
    file = written("b,a,label,c,day\n1,2,x,True,monday\n4,5,y,False,friday\n")
    frame = read_csv(file, Roles(("label",), ignore=("day",)))
    assert frame.columns == ("b", "a", "c")
    assert frame.features.tolist() == [[1, 2, 1], [4, 5, 0]]
    assert read_csv(file, Roles(("label",), features=("a", "b"))).features.tolist() == [[2, 1], [5, 4]]


def test_labels_that_are_numbers_have_a_column_each(written):
    frame = read_csv(written("x,u,v\n1,0.5,1\n2,-3,0\n"), Roles(("v", "u"), has_classes=False))
    assert frame.labels.tolist() == [[1, 0.5], [0, -3]]
    assert frame.columns == ("x",)


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_other_separators_blank_lines_quotes_and_line_ends(written, ending):
    text = 'x;"the label"\n\n1;"a;b"\n 2;c\n'.replace("\n", ending)
    frame = read_csv(written(text), Roles(("the label",)), separator=";")
    assert frame.features.tolist() == [[1], [2]]
    assert frame.names["the label"].names == ("a;b", "c")


WRONG = {
    "a misspelt column": ("x,labl\n1,a\n", {}, "dataset.label=label, got 2 columns without it; did you mean labl?"),
    "a feature that is not there": ("x,label\n1,a\n", {"features": ("z",)}, "the column dataset.features=z"),
    "an ignored one that is not there": ("x,label\n1,a\n", {"ignore": ("z",)}, "the column dataset.ignore=z"),
    "two roles": (
        "x,label\n1,a\n",
        {"client": "label"},
        "dataset.client must not name label, which is in dataset.label",
    ),
    "twice in the header": ("x,x,label\n1,2,a\n", {}, "t.csv has the column x twice"),
    "no feature that is wanted": (
        "x,label\n1,a\n",
        {"features": ()},
        "t.csv must have a column of numbers besides label",
    ),
    "no feature": ("label\na\n", {}, "t.csv must have a column of numbers besides label"),
    "a missing number": ("x,y,label\n1,2,a\n1,,a\n", {}, "t.csv: y in row 2 has no value; fill it in"),
    "text": ("x,y,label\n1,2,a\n1,male,a\n", {}, "t.csv: y in row 2 must be a finite number; encode text as numbers"),
    "a date": ("x,y,label\n1,2026-01-31,a\n", {}, "t.csv: y in row 1 must be a finite number"),
    "infinite": ("x,label\n1,a\ninf,a\n", {}, "t.csv: x in row 2 must be"),
    "beyond float32": ("x,label\n1,a\n1e39,a\n", {}, "t.csv: x in row 2 must be finite in float32"),
    "a class without a name": ("x,label\n1,a\n2, \n", {}, "t.csv: row 2 has no label"),
    "a client without a name": ("x,label,who\n1,a,\n", {"client": "who"}, "t.csv: row 1 has no who"),
    "text as a label": ("x,label\n1,a\n", {"has_classes": False}, "t.csv: label in row 1 must be a finite number"),
    "nothing": ("", {}, "t.csv is empty"),
    "blank lines": ("\n\n", {}, "t.csv is empty"),
    "a longer row": ("x,label\n1,a\n2,b,c\n", {}, "t.csv: line 3 must have 2 values, got 3"),
    "longer rows": ("x,label\n1,a,b\n2,b,c\n", {}, "t.csv: row 1 has more values than the header"),
    "an open quote": ('x,label\n"1,a\n', {}, "t.csv: a quote that begins in row 1 has no end"),
    "a quote after a value": (
        'x,"lab"el\n1,a\n',
        {},
        "t.csv must be a table with a header, whose values are separated by ','",
    ),
    "a number without bounds": (f"x,label\n1,a\n{'9' * 400},b\n", {}, "t.csv: x in row 2 must be finite in float32"),
}


@pytest.mark.parametrize(("text", "roles", "says"), WRONG.values(), ids=WRONG)
def test_a_wrong_table_is_refused_with_its_row_and_column(written, text, roles, says):
    with pytest.raises(UserError) as refused:
        read_csv(written(text), Roles(("label",), **roles))
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)


def test_other_encodings_binary_files_folders_and_missing_files_are_refused(tmp_path, written):
    with pytest.raises(UserError, match=r"t\.csv must be text in UTF-8"):
        read_csv(written("é,label\n1,a\n", "latin-1"), Roles(("label",)))
    with pytest.raises(UserError, match=r"t\.csv must be text in UTF-8"):
        read_csv(written("x,label\n1,é\n", "latin-1"), Roles(("label",)))
    with pytest.raises(UserError, match=r"nowhere\.csv does not exist"):
        read_csv(tmp_path / "nowhere.csv", Roles(("label",)))
    with pytest.raises(UserError, match=r"cannot be read \(Is a directory\)"):
        read_csv(tmp_path, Roles(("label",)))


def test_a_parquet_file_gives_what_the_csv_file_gives(tmp_path, written):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    columns = {"x": [1.5, 2.5, -1.0], "flag": [True, False, True], "label": [7, 8, 7], "who": ["b", "a", "a"]}
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    text = "x,flag,label,who\n1.5,True,7,b\n2.5,False,8,a\n-1.0,True,7,a\n"
    roles = Roles(("label",), client="who")
    frame, same = read_parquet(tmp_path / "t.parquet", roles), read_csv(written(text), roles)
    assert frame.columns == same.columns == ("x", "flag")
    assert np.array_equal(frame.features, same.features)
    assert [frame.names[name].names for name in ("label", "who")] == [("7", "8"), ("b", "a")]
    assert all(np.array_equal(frame.names[name].codes, same.names[name].codes) for name in ("label", "who"))


def test_an_index_of_pandas_is_no_feature_unless_it_is_named(tmp_path):
    pytest.importorskip("pyarrow")
    import pandas as pd

    table = pd.DataFrame({"x": [1.0, 2.0, 3.0], "label": ["a", "b", "a"]}).iloc[[2, 0, 1]]
    table.to_parquet(tmp_path / "t.parquet")
    assert read_parquet(tmp_path / "t.parquet", Roles(("label",))).features.tolist() == [[3], [1], [2]]
    table.rename_axis("number").to_parquet(tmp_path / "t.parquet")
    assert read_parquet(tmp_path / "t.parquet", Roles(("label",))).columns == ("x",)
    assert read_parquet(tmp_path / "t.parquet", Roles(("label",), features=("number",))).features.tolist() == [
        [2],
        [0],
        [1],
    ]


def test_what_a_parquet_file_can_hold_besides_numbers_is_refused_with_its_row_and_column(tmp_path):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    import datetime

    wrong = {
        "is a date": pa.array([datetime.datetime(2026, 1, 1)] * 2),
        "must be a finite number; encode text": pa.array(["a", "b"]).dictionary_encode(),
        "in row 2 has no value": pa.array([1, None]),
        "in row 1 must be a finite number": pa.array([[1.0], [2.0]]),
    }
    for says, column in wrong.items():
        pq.write_table(pa.table({"x": column, "label": ["a", "b"]}), tmp_path / "t.parquet")
        with pytest.raises(UserError, match=f"t.parquet: x .*{says}|t.parquet: x {says}"):
            read_parquet(tmp_path / "t.parquet", Roles(("label",)))
    pq.write_table(pa.table({"x": [1, 2], "label": ["a", None]}), tmp_path / "t.parquet")
    with pytest.raises(UserError, match="row 2 has no label"):
        read_parquet(tmp_path / "t.parquet", Roles(("label",)))
    (tmp_path / "t.parquet").write_bytes(b"PAR1 cut off")
    with pytest.raises(UserError, match=r"must be a whole \.parquet file"):
        read_parquet(tmp_path / "t.parquet", Roles(("label",)))
