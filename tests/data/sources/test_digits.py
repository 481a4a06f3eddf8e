"""Scikit-learn's digits."""

import numpy as np
from sklearn.datasets import load_digits

from fedprox.data.sources.digits import digits


def test_every_digit_is_either_for_training_or_for_testing():
    data, source = digits(), load_digits()
    ours = np.concatenate([data.features, data.test_features]).reshape(-1, 64)
    labels = np.concatenate([data.labels, data.test_labels])
    rows = sorted(map(tuple, np.column_stack([ours, labels]).tolist()))
    assert rows == sorted(map(tuple, np.column_stack([source.data, source.target]).astype(int).tolist()))


def test_every_fifth_example_of_each_class_is_a_test_example():
    data, source = digits(), load_digits()
    for label in range(10):
        images = source.images[source.target == label]
        assert (data.test_features[data.test_labels == label] == images[4::5]).all()
        assert (data.test_labels == label).sum() == len(images) // 5


def test_the_sizes_are_those_of_the_docstring():
    # The classes have 178 182 177 183 181 182 181 179 174 180 examples; their fifths are 35 or 36: 355.
    assert (digits().features.shape, digits().test_features.shape) == ((1442, 8, 8), (355, 8, 8))
    assert digits().features.dtype == np.uint8
    assert digits().num_classes == 10


def test_model_input_of_the_training_part_has_mean_0_and_std_1():
    data = digits()
    model_input = data.model_input(data.features).astype(np.float64)
    assert abs(model_input.mean()) < 1e-6  # float32 holds seven digits
    assert abs(model_input.std() - 1) < 1e-6
