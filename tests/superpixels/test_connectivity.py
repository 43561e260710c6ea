"""Connected superpixels: the invariants of enforced connectivity on figures of other implementations and on noise."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from diffslic.superpixels import connect


def components(labels):
    """4-connected pieces of equal label, one label at a time: (H, W) numbers from 0."""
    pieces, count = np.zeros(labels.shape, dtype=np.int64), 0
    for value in np.unique(labels):
        found, n = ndimage.label(labels == value)
        pieces[found > 0] = found[found > 0] - 1 + count
        count += n
    return pieces


def assert_connected(labels, min_size, output):
    """Invariants I1 to I5: one piece, not small, kept pieces whole, kept pieces apart, as many labels as kept."""
    pieces = components(labels)
    kept = [piece for piece, size in enumerate(np.bincount(pieces.ravel())) if size >= min_size]
    for value in np.unique(output):
        assert ndimage.label(output == value)[1] == 1
        assert (output == value).sum() >= min_size
    homes = [np.unique(output[pieces == piece]) for piece in kept]
    assert all(len(home) == 1 for home in homes)
    assert len({home[0] for home in homes}) == len(kept)
    assert sorted(np.unique(output)) == list(range(len(kept)))


@pytest.mark.parametrize("case", ["firstsmall", "noise", "planted", "softslic"])
def test_invariants_on_the_reference_labels(reference, case):
    figures = np.load(reference / f"reference/ssn/connectivity_{case}.npz")
    output = connect(torch.from_numpy(figures["labels"]), int(figures["min_size"])).numpy()
    assert_connected(figures["labels"], int(figures["min_size"]), output)
    assert output.max() + 1 == figures["n_kept"]
    # The same partition of the kept pixels as the stored example, under other numbers.
    pairs = np.unique(np.stack([output[figures["kept_mask"]], figures["example_valid"][figures["kept_mask"]]]), axis=1)
    assert pairs.shape[1] == figures["n_kept"]


@pytest.mark.parametrize("n_labels", [2, 3, 8])
@pytest.mark.parametrize("min_size", [0, 2, 5, 12])
def test_invariants_on_smooth_noise(n_labels, min_size):
    generator = np.random.default_rng(n_labels)
    noise = ndimage.gaussian_filter(generator.standard_normal((23, 31)), 1)
    labels = np.digitize(noise, np.quantile(noise, np.arange(1, n_labels) / n_labels))
    output = connect(torch.from_numpy(labels), min_size).numpy()
    assert_connected(labels, min_size, output)


def test_a_small_piece_joins_the_neighbour_with_the_longest_border():
    labels = torch.tensor([[0, 0, 0, 0, 0],
                           [0, 2, 2, 2, 1],
                           [1, 1, 1, 1, 1]])
    expected = torch.tensor([[0, 0, 0, 0, 0],
                             [0, 0, 0, 0, 1],
                             [1, 1, 1, 1, 1]])
    assert torch.equal(connect(labels, 4), expected)  # four sides to 0, four to 1: the lower wins
    labels[0, 3] = 1
    labels[0, 4] = 1
    expected[1, 1:4] = expected[0, 3:] = 1
    assert torch.equal(connect(labels, 4), expected)  # three sides to 0, five to 1


def test_small_pieces_behind_small_pieces_join_breadth_first():
    labels = torch.tensor([[0, 0, 0, 0, 1, 2, 3, 4, 5, 5, 5, 5]])
    assert connect(labels, 3).tolist() == [[0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1]]


def test_pieces_of_one_label_get_labels_of_their_own_in_raster_order():
    labels = torch.tensor([[7, 7, 3, 7, 7]])
    assert connect(labels, 1).tolist() == [[0, 0, 1, 2, 2]]


def test_negative_labels_are_labels_like_others():
    assert connect(torch.tensor([[-1, -1, 0, 0, -5]]), 1).tolist() == [[0, 0, 1, 1, 2]]


def test_where_every_piece_is_small_the_largest_takes_the_image():
    assert (connect(torch.tensor([[0, 1, 1], [2, 3, 4]]), 4) == 0).all()


def test_images_of_a_batch_are_independent():
    labels = torch.randint(0, 3, (3, 9, 11))
    output = connect(labels, 4)
    assert output.dtype == torch.int64
    for image in range(3):
        assert torch.equal(output[image], connect(labels[image], 4))


@pytest.mark.parametrize("size", [(1, 1), (1, 6), (6, 1)])
def test_one_row_one_column_one_pixel(size):
    labels = torch.arange(size[0] * size[1]).reshape(size)
    assert torch.equal(connect(labels, 1), labels)


@pytest.mark.parametrize("labels", [torch.zeros(4, 4), torch.zeros(2, 2, dtype=torch.bool),
                                    torch.zeros(4, dtype=torch.int64), torch.zeros(0, 4, dtype=torch.int64)])
def test_what_is_not_a_label_map_is_refused(labels):
    with pytest.raises(ValueError, match=r"labels must be whole numbers \(H, W\) or \(B, H, W\), got torch"):
        connect(labels, 3)


@pytest.mark.parametrize("count", [1, 2, 9, 40, 300, 29 * 31])
@pytest.mark.parametrize("n_labels", [1, 6, 200])
def test_exactly_the_requested_count_each_in_one_piece(count, n_labels):
    labels = torch.randint(0, n_labels, (2, 29, 31))
    for image in connect(labels, 4, count).numpy():
        assert np.array_equal(np.unique(image), np.arange(count))
        assert len(np.unique(components(image))) == count
        _, first = np.unique(image, return_index=True)
        assert (np.diff(first) > 0).all()  # numbered as a raster scan meets them


def test_the_smallest_joins_its_longest_border_and_the_largest_is_halved():
    labels = torch.tensor([[0, 0, 0, 0, 1, 2, 2],
                           [0, 0, 0, 0, 1, 2, 2],
                           [3, 3, 3, 3, 3, 2, 2]])
    assert connect(labels, 1, 4).tolist() == labels.tolist()
    # The 1 (2 pixels) has two sides with 0, two with 2 and one with 3: the lower number of the longest.
    assert connect(labels, 1, 3).tolist() == [[0, 0, 0, 0, 0, 1, 1], [0, 0, 0, 0, 0, 1, 1], [2, 2, 2, 2, 2, 1, 1]]
    # The 0 (8 pixels) is cut in two halves of 2x2.
    assert connect(labels, 1, 5).tolist() == [[0, 0, 1, 1, 2, 3, 3], [0, 0, 1, 1, 2, 3, 3], [4, 4, 4, 4, 4, 3, 3]]


def test_a_crescent_is_cut_into_two_pieces():
    y, x = np.mgrid[:40, :40] - 20
    ring = ((np.hypot(y, x) < 19) & (np.hypot(y, x) > 15) & ~((x > 10) & (abs(y) < 6))).astype(np.int64)
    for count in range(3, 12):
        image = connect(torch.from_numpy(ring), 1, count).numpy()
        assert len(np.unique(image)) == len(np.unique(components(image))) == count


@pytest.mark.parametrize("count", [0, -3, 21])
def test_a_count_that_the_image_cannot_hold_is_refused(count):
    with pytest.raises(ValueError, match=f"count must be between 1 and the 20 pixels of an image, got {count}"):
        connect(torch.zeros(4, 5, dtype=torch.int64), 1, count)
