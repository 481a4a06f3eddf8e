"""Configurations as YAML files."""

import pytest

from fedprox.config.compose import compose
from fedprox.config.files import read_config, write_yaml
from fedprox.errors import UserError


def test_a_configuration_is_read_as_it_was_written(tmp_path):
    config = compose(["experiment=digits", "mu=1e-05", "learning_rate=0.1", "+model.width=3", "+repeat_num=2"])
    write_yaml(config.plain(), tmp_path / "config.yaml")
    assert read_config(tmp_path / "config.yaml") == config


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (None, "cannot be read"),
        ("a: [", "cannot be read"),
        ("mu: 1", "num_clients is required"),
        ("mu: yes\nseed: -1", "config.yaml: "),
    ],
)
def test_a_file_that_is_no_configuration_is_refused_in_one_line_that_names_it(tmp_path, text, line):
    file = tmp_path / "config.yaml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(UserError, match=line) as refused:
        read_config(file)
    assert str(refused.value).startswith(str(file))
    assert "\n" not in str(refused.value)
