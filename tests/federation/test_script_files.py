"""The files of a training script: libraries, and modules beside it."""

from pathlib import Path

import pytest

from fedprox.errors import UserError
from fedprox.federation.script_files import files, libraries


@pytest.fixture
def script(tmp_path) -> Path:
    lines = ["import os, torch.nn as nn", "from numpy import array", "import mine", "from package.a import b"]
    lines += ["from . import c", "def f():", "    import late", "import os"]
    (tmp_path / "train.py").write_text("\n".join(lines))
    for name, text in {
        "mine.py": "import other, train",
        "other.py": "this is no Python",
        "late.py": "",
        "unused.py": "",
        "package/__init__.py": "",
        "package/a.py": "from . import deep",
        "package/deep/__init__.py": "import of_deep",
        "of_deep.py": "",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path / "train.py"


def test_libraries_are_the_imports_at_the_top_level_but_for_the_scripts_neighbours(script):
    assert libraries(script) == ["os", "torch.nn", "numpy"]


def test_files_are_the_script_and_what_it_imports_from_beside_it_in_any_function_or_module(script):
    found = {str(file.relative_to(script.parent)) for file in files(script)}
    packages = {"package/__init__.py", "package/a.py", "package/deep/__init__.py"}
    assert found == {"train.py", "mine.py", "other.py", "late.py", "of_deep.py", *packages}


@pytest.mark.parametrize("function", [libraries, files])
def test_a_script_that_is_missing_or_not_python_is_refused(tmp_path, function):
    with pytest.raises(UserError, match=r"client.script=.*none.py: No such file or directory; name a Python program"):
        function(tmp_path / "none.py")
    with pytest.raises(UserError, match="Is a directory"):
        function(tmp_path)
    for text in (b"for i in 1; do echo $i; done", b"\x00\x01", b"\xff\xfe"):
        (tmp_path / "train.py").write_bytes(text)
        with pytest.raises(UserError, match=r"train.py is not a Python program: "):
            function(tmp_path / "train.py")
