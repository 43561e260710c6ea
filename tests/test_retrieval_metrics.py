"""Average precision by a naive loop, at its ends, with ties."""

import numpy as np
import pytest

from diffslic import metrics


def naive(distances, wanted):
    """Precision at every wanted pair's distance, averaged."""
    return np.mean([wanted[distances <= distance].mean() for distance in distances[wanted]])


def test_it_is_the_definition():
    rng = np.random.default_rng(0)
    vectors, classes = rng.integers(0, 4, (30, 2)).astype(float), rng.integers(0, 3, 30)  # with many ties
    distances = np.square(vectors[:, None] - vectors).sum(-1)
    alike, (first, second) = classes[:, None] == classes, np.triu_indices(30, 1)
    figures = metrics.retrieval(vectors, classes)
    assert figures["ap"] == pytest.approx(naive(distances[first, second], alike[first, second]))
    each = [naive(np.delete(distances[i], i), np.delete(alike[i], i)) for i in range(30)]
    assert figures["map"] == pytest.approx(np.mean([np.mean(np.array(each)[classes == c]) for c in range(3)]))
    assert figures["chance"] == pytest.approx(alike[first, second].mean())


def test_apart_is_one_and_no_distance_is_chance():
    classes = np.repeat([0, 1], 10)
    assert metrics.retrieval(classes[:, None] * 9.0, classes)["ap"] == 1
    level = metrics.retrieval(np.zeros((20, 1)), classes)
    assert level["ap"] == pytest.approx(level["chance"])


def test_what_has_no_class_is_left_out():
    vectors, classes = np.random.default_rng(1).normal(size=(12, 3)), np.arange(12) % 3
    more = np.concatenate([vectors, np.zeros((5, 3))]), np.concatenate([classes, np.full(5, 255)])
    assert metrics.retrieval(*more) == metrics.retrieval(vectors, classes)


@pytest.mark.parametrize("classes", [[0, 0, 0], [0, 1, 2], [255, 255, 255], [255, 0, 255]])
def test_one_class_or_no_pair_has_no_precision(classes):
    figures = metrics.retrieval(np.eye(3), np.array(classes))
    assert np.isnan(figures["ap"]) and np.isnan(figures["map"])


@pytest.mark.parametrize(("vectors", "classes", "message"), [
    (np.zeros((3, 2)), np.zeros(4, int), "vectors must be"), (np.zeros(3), np.zeros(3, int), "vectors must be"),
    (np.full((2, 2), np.nan), np.zeros(2, int), "finite"), (np.zeros((2, 2)), np.zeros(2), "integer")])
def test_nonsense_is_refused(vectors, classes, message):
    with pytest.raises(ValueError, match=message):
        metrics.retrieval(vectors, classes)
