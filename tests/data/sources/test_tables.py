"""Tables: labels become names of classes, and what cannot be read is refused without showing a value of the file."""

import numpy as np
import pytest

from fedprox.data.sources.tables import read_csv, read_npz
from fedprox.errors import UserError


@pytest.fixture
def written(tmp_path):
    """Return a function that writes a .csv file and returns its path."""

    def write(text, encoding="utf-8"):
        file = tmp_path / "train.csv"
        file.write_bytes(text.encode(encoding))
        return file

    return write


def test_a_csv_gives_the_columns_besides_the_label_as_numbers(written):
    table = read_csv(written('age, "outcome",dose\n30,"yes, mild",0.5\n\n41,no,-1e3\n'), "outcome")
    assert table.features.dtype == np.float32
    assert table.features.tolist() == [[30.0, 0.5], [41.0, -1000.0]]
    assert table.labels.tolist() == ["yes, mild", "no"]
    assert table.columns == ("age", "dose")


def test_labels_that_are_whole_numbers_have_one_name_however_they_are_written(written, tmp_path):
    assert read_csv(written("x,label\n1,7\n1,7.0\n1, 7.\n1,07\n1,-2.0\n"), "label").labels.tolist() == [
        *("7", "7", "7", "07", "-2")
    ]
    for labels in (np.array([7, -2]), np.array([7.0, -2.0]), np.array([" 7", "-2"])):
        np.savez(tmp_path / "a.npz", features=np.zeros((2, 3)), labels=labels)
        assert read_npz(tmp_path / "a.npz").labels.tolist() == ["7", "-2"]
    np.savez(tmp_path / "a.npz", x=np.zeros((2, 3)), y=np.array([True, False]))
    assert read_npz(tmp_path / "a.npz").labels.tolist() == ["1", "0"]


def test_a_byte_order_mark_of_a_spreadsheet_is_not_part_of_a_name(written):
    assert read_csv(written("x,label\n1,a\n", "utf-8-sig"), "label").columns == ("x",)


SECRET = "123456.5"
BAD_CSV = {
    "no label column": (f"x,y\n{SECRET},1\n", ["dataset.label=label", "got 2 columns without it"]),
    "semicolons": (f"x;label\n{SECRET};1\n", ["got 1 columns"]),
    "no header": (f"{SECRET},1\n{SECRET},1\n", ["got 2 columns without it; add a header"]),
    "twice": (f"x,x,label\n{SECRET},1,1\n", ["the column x twice"]),
    "only labels": (f"label\n{SECRET}\n", ["a column of numbers besides label"]),
    "short": (f"x,label\n1,1\n{SECRET}\n", ["row 2 has no label"]),
    "long": (f"x,label\n1,1\n{SECRET},1,1\n", ["line 3 must have 2 values, got 3"]),
    "longer than the header": (f"x,label\n{SECRET},1,1\n1,1,1\n", ["row 1 has more values than the header"]),
    "text": (f"x,label\n1,1\nMr {SECRET},1\n", ["x in row 2 must be a finite number"]),
    "missing": (f"x,z,label\n{SECRET},,1\n", ["z in row 1 has no value"]),
    "infinite": (f"x,z,label\n{SECRET},1e99,1\n", ["z in row 1 must be finite in float32"]),
    "no label": (f"x,label\n{SECRET}, \n", ["row 1 has no label"]),
    "empty": ("", ["with a header"]),
    "quotes": (f'x,label\n"{SECRET},1\n', ["a quote that begins in row 1"]),
    "a value twice without a header": (f"{SECRET},{SECRET}\n1,2\n", ["got 2 columns without it"]),
    "a name like the label without a header": ("Labe,1\n2,1\n", ["add a header"]),
}


@pytest.mark.parametrize(("text", "says"), BAD_CSV.values(), ids=BAD_CSV)
def test_a_wrong_csv_is_refused_in_a_line_without_its_values(written, text, says):
    with pytest.raises(UserError) as refused:
        read_csv(written(text), "label")
    line = str(refused.value)
    assert line.startswith("train.csv")
    assert [words for words in says if words not in line] == [], line
    assert SECRET not in line
    assert "\n" not in line


def test_other_encodings_are_refused(written):
    with pytest.raises(UserError, match="UTF-8"):
        read_csv(written("ä,label\n1,1\n", "latin-1"), "label")


ROWS = np.full((3, 2), float(SECRET))
BAD_NPZ = {
    "other names": ({"data": ROWS, "labels": [1, 2, 3]}, "features and labels, or x and y"),
    "one axis": ({"x": ROWS[0], "y": [1, 2]}, "shape"),
    "fewer labels": ({"x": ROWS, "y": [1, 2]}, "shape"),
    "one-hot": ({"x": ROWS, "y": np.eye(3)}, "shape"),
    "text": ({"x": ROWS.astype(str), "y": [1, 2, 3]}, "numbers"),
    "fractions": ({"x": ROWS, "y": [0.5, 1, 2]}, "whole numbers or text"),
    "pickled": ({"x": ROWS, "y": np.array([{}, {}, {}])}, "without pickled objects"),
}


@pytest.mark.parametrize(("arrays", "says"), BAD_NPZ.values(), ids=BAD_NPZ)
def test_a_wrong_npz_is_refused_in_a_line_without_its_values(tmp_path, arrays, says):
    np.savez(tmp_path / "train.npz", **arrays)
    with pytest.raises(UserError, match=says) as refused:
        read_npz(tmp_path / "train.npz")
    assert SECRET not in str(refused.value)


def test_a_damaged_npz_and_a_folder_are_refused(tmp_path):
    (tmp_path / "a.npz").write_bytes(b"PK\x03\x04 cut off")
    (tmp_path / "b.npz").mkdir()
    with pytest.raises(UserError, match=r"a\.npz cannot be read as an \.npz file"):
        read_npz(tmp_path / "a.npz")
    with pytest.raises(UserError, match=r"b\.npz cannot be read \(Is a directory\)"):
        read_npz(tmp_path / "b.npz")
