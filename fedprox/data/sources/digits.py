"""Scikit-learn's handwritten digits of 8 x 8 pixels, which need no download."""

import numpy as np

from fedprox.data.federated import LabelledData

TEST_EVERY = 5  # every fifth example of a class is a test example


def digits() -> LabelledData:
    """Return the 1,797 digits, uint8 shape (n, 8, 8) with values 0 .. 16: 1,442 to train on, 355 to test.

    The global test set is every fifth example of each class in file order (the 5th, 10th, ...), so it is the same in
    every run and covers all writers. Features are normalised by the mean and std of all training pixels.
    """
    from sklearn.datasets import load_digits  # here: a second to import

    source = load_digits()
    features, labels = source.images.astype(np.uint8), source.target.astype(np.int64)
    is_test = np.zeros(len(labels), dtype=bool)
    for label in range(10):
        is_test[np.flatnonzero(labels == label)[TEST_EVERY - 1 :: TEST_EVERY]] = True
    train = features[~is_test]
    return LabelledData(
        features=train,
        labels=labels[~is_test],
        test_features=features[is_test],
        test_labels=labels[is_test],
        num_classes=10,
        mean=np.array(train.mean(), dtype=np.float32),
        std=np.array(train.std(), dtype=np.float32),
    )
