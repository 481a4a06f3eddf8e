"""The held-out examples of clients that a model predicts correctly."""

import numpy as np
import torch
from torch import nn

from fedprox.data.federated import ClientIndex, FederatedData, LabelledData
from fedprox.evaluation.personal import HeldOut


def test_examples_with_several_labels_count_if_all_of_them_are_right():
    # The model's outputs are the features themselves: a label is predicted where its feature is above 0.
    features = np.array([[1, -1], [1, 1], [-1, -1], [1, -1]], np.float32)
    labels = np.array([[0, 0], [1, 1], [0, 1], [1, 0]])  # one wrong, right, one wrong, right
    data = LabelledData.without_test_set(features, labels, 2, task="multilabel")
    federated = FederatedData(data, ClientIndex.from_lists([[0], [1]]), ClientIndex.from_lists([[2, 3], []]))
    held_out = HeldOut(nn.Identity(), federated, "cpu", np.array([True, True]))
    assert held_out.sizes.tolist() == [2, 0]
    assert held_out.num_correct({}, 0) == 1


def test_examples_of_classes_count_if_the_largest_logit_is_the_classs():
    data = LabelledData.without_test_set(np.array([[3.0], [-2.0], [1.0]]), [1, 0, 0], 2)
    federated = FederatedData(data, ClientIndex.from_lists([[0]]), ClientIndex.from_lists([[1, 2]]))
    model = nn.Linear(1, 2, bias=False)
    weights = {"weight": torch.tensor([[0.0], [1.0]])}  # class 1 where x > 0
    assert HeldOut(model, federated, "cpu", np.array([True])).num_correct(weights, 0) == 1
