"""Mean and std of what models take: by feature of rows, by channel of images."""

import numpy as np
import pytest

from fedprox.data.sources.normalisation import mean_and_std

AXES = {"rows": ((5,), (0,)), "grey images": ((4, 3), (0, 1, 2)), "colours": ((3, 4, 2), (0, 2, 3))}


@pytest.mark.parametrize(("shape", "axes"), AXES.values(), ids=AXES)
@pytest.mark.parametrize("dtype", [np.float32, np.uint8])
def test_they_are_numpys_over_all_examples(shape, axes, dtype):
    features = np.random.default_rng(0).uniform(0, 255, size=(50, *shape)).astype(dtype)
    mean, std = mean_and_std(features)
    assert mean == pytest.approx(features.mean(axis=axes, dtype=np.float64, keepdims=True)[0], rel=1e-6)
    assert std == pytest.approx(features.std(axis=axes, dtype=np.float64, keepdims=True)[0], rel=1e-6)
    assert np.broadcast_shapes(mean.shape, shape) == shape


def test_what_never_varies_has_std_1_and_tokens_stay_as_they_are():
    mean, std = mean_and_std(np.full((3, 2), 7, dtype=np.float32))
    assert (mean.tolist(), std.tolist()) == ([7, 7], [1, 1])
    assert [float(each) for each in mean_and_std(np.array([[3], [5]]))] == [0, 1]
