"""Soft SLIC against a loop over pixels, figures of other implementations, and small truths."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from diffslic.superpixels import SoftSLIC, grid_for, slic, soft_slic

CASES = ["edge_c5_11x70_onerow", "image_c20_24x32", "image_c5_61x47", "image_c5_80x120", "rand_c20_37x29",
         "rand_c5_48x64"]


def naive_soft_slic(features, grid, n_iters, distance):
    """Pixel by pixel, as the paper's algorithm is written: affinities (9, H, W) and centroids (S, C)."""
    channels, height, width = features.shape
    rows, columns = grid
    centroids = []
    for i in range(rows):
        for j in range(columns):
            window = features[:, i * height // rows:math.ceil((i + 1) * height / rows),
                              j * width // columns:math.ceil((j + 1) * width / columns)]
            centroids.append(window.mean(axis=(1, 2)))
    centroids = np.array(centroids)
    for _ in range(n_iters):
        affinity = np.zeros((9, height, width))
        sums, weights = np.zeros((rows * columns, channels)), np.zeros(rows * columns)
        for y in range(height):
            for x in range(width):
                cell_row, cell_column = y * rows // height, x * columns // width
                near = {}
                for k in range(9):
                    i, j = cell_row + k // 3 - 1, cell_column + k % 3 - 1
                    if 0 <= i < rows and 0 <= j < columns:
                        squared = ((features[:, y, x] - centroids[i * columns + j]) ** 2).sum()
                        near[k] = (i * columns + j, math.exp(-(squared if distance == "squared" else squared ** 0.5)))
                total = sum(e for _, e in near.values())
                for k, (s, e) in near.items():
                    affinity[k, y, x] = e / total
                    sums[s] += e / total * features[:, y, x]
                    weights[s] += e / total
        centroids = sums / (weights[:, None] + 1e-16)
    return affinity, centroids


@pytest.mark.parametrize("distance", ["l2", "squared"])
@pytest.mark.parametrize(("size", "grid"), [((7, 8), (3, 3)), ((6, 6), (2, 3)), ((5, 4), (3, 1)), ((1, 9), (1, 4)),
                                            ((3, 3), (3, 3)), ((1, 1), (1, 1))])
def test_equals_a_loop_over_pixels(size, grid, distance):
    features = torch.randn(2, 3, *size, dtype=torch.float64)
    soft = soft_slic(features, grid, 3, distance)
    for image in range(2):
        affinity, centroids = naive_soft_slic(features[image].numpy(), grid, 3, distance)
        np.testing.assert_allclose(soft.affinity[image], affinity, atol=1e-12)
        np.testing.assert_allclose(soft.centroids[image], centroids, atol=1e-12)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("distance", ["sq", "l2"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_equals_the_reference(reference, case, distance, dtype):
    figures = np.load(reference / f"reference/ssn/soft_slic_{case}.npz")
    features = torch.from_numpy(figures["features"])[None].to(dtype)
    grid = (int(figures["nh"]), int(figures["nw"]))
    assert grid_for(int(figures["n_spixels"]), *features.shape[-2:]) == grid
    for n_iters in (1, 5, 10):
        soft = soft_slic(features, grid, n_iters, {"sq": "squared", "l2": "l2"}[distance])
        affinity, name = soft.affinity[0].numpy(), f"{distance}_aff_{n_iters}"
        if name in figures:
            stored_as_double = figures[name].dtype == np.float64
            tolerance = ((1e-11 if stored_as_double else 1e-7) if dtype == torch.float64
                         else {"sq": 2e-3, "l2": 2e-4}[distance])
            np.testing.assert_allclose(affinity, figures[name], rtol=0, atol=tolerance)
        np.testing.assert_allclose(soft.centroids[0], figures[f"{distance}_centroids_{n_iters}"], rtol=0,
                                   atol=1e-10 if dtype == torch.float64 else 1e-3)
        sure = figures[f"{distance}_sure_{n_iters}"]
        np.testing.assert_array_equal(soft.labels[0].numpy()[sure], figures[f"{distance}_labels_{n_iters}"][sure])
    np.testing.assert_array_equal(soft.candidates, figures["cand"])


@pytest.mark.parametrize(("distance", "tolerance"), [("l2", 2e-4), ("squared", 2e-3)])
def test_far_from_the_origin_single_precision_keeps_its_digits(distance, tolerance):
    """An expanded square about the origin is off by 0.01 here, and the affinities with it."""
    far = torch.randn(1, 5, 24, 30) + 100
    soft, expected = soft_slic(far, (3, 4), 5, distance), soft_slic(far.double(), (3, 4), 5, distance)
    torch.testing.assert_close(soft.affinity.double(), expected.affinity, rtol=0, atol=tolerance)


def test_colour_blocks_become_the_superpixels():
    """Four flat colours whose borders lie off the grid's cell borders."""
    labels = torch.zeros(24, 24, dtype=torch.int64)
    labels[:, 14:] += 1
    labels[10:] += 2
    features = 20 * F.one_hot(labels).permute(2, 0, 1)[None].float()
    soft = soft_slic(features, (2, 2))
    assert torch.equal(soft.labels[0], labels)
    torch.testing.assert_close(soft.centroids[0], 20 * torch.eye(4), rtol=0, atol=0.01)


def test_affinities_sum_to_one_and_stay_inside_the_image():
    soft = soft_slic(torch.randn(2, 4, 13, 17), (3, 4))
    torch.testing.assert_close(soft.affinity.sum(1), torch.ones(2, 13, 17))
    assert (soft.affinity[:, soft.candidates < 0] == 0).all()
    # A pixel in the first column has no candidate in the last one: the image does not wrap around.
    assert set((soft.candidates[:, :, 0] % 4)[soft.candidates[:, :, 0] >= 0].tolist()) == {0, 1}


def test_labels_are_the_candidate_of_largest_affinity_and_the_first_on_ties():
    soft = soft_slic(torch.randn(2, 4, 13, 17), (3, 4))
    expected = soft.candidates[None].expand(2, -1, -1, -1).gather(1, soft.affinity.argmax(1, keepdim=True))[:, 0]
    assert torch.equal(soft.labels, expected)
    assert soft.labels.dtype == torch.int64
    flat = soft_slic(torch.zeros(1, 1, 6, 6), (3, 3))
    first = flat.candidates.masked_fill(flat.candidates < 0, 9).amin(0)
    assert torch.equal(flat.labels[0], first)


@pytest.mark.parametrize("distance", ["l2", "squared"])
@pytest.mark.parametrize(("size", "grid"), [((5, 7), (2, 3)), ((4, 4), (2, 2)), ((3, 1), (3, 1))])
def test_gradients_are_right(size, grid, distance):
    features = torch.randn(2, 2, *size, dtype=torch.float64, requires_grad=True)

    def outputs(features):
        soft = soft_slic(features, grid, 3, distance)
        return soft.affinity, soft.centroids, soft.pool(features), soft.unpool(soft.centroids)

    assert torch.autograd.gradcheck(outputs, features)


@pytest.mark.parametrize("distance", ["l2", "squared"])
def test_cells_some_at_a_time_give_the_same(monkeypatch, distance):
    def outcome():
        features = torch.from_numpy(np.random.default_rng(0).standard_normal((2, 3, 9, 10))).requires_grad_()
        soft = soft_slic(features, (3, 4), 3, distance)
        (soft.affinity[:, 2].sum() + soft.centroids.square().sum()).backward()
        return soft.affinity.detach(), soft.centroids.detach(), features.grad

    whole = outcome()
    monkeypatch.setattr(slic, "CACHE", 5 * 8 * 9 * 5)  # five of the 24 cells
    for a, b in zip(whole, outcome()):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-13)


@pytest.mark.parametrize("output", ["affinity", "centroids"])
def test_each_output_alone_has_its_gradient(output):
    features = torch.randn(1, 2, 5, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: getattr(soft_slic(x, (2, 3), 2), output), features)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_gradient_at_zero_distance_is_finite(dtype):
    """Every pixel is its own centroid: each distance to the own cell is exactly zero."""
    features = torch.arange(9, dtype=dtype).reshape(1, 1, 3, 3).requires_grad_()
    soft_slic(features, (3, 3), 3).affinity[:, 4].sum().backward()
    assert torch.isfinite(features.grad).all()
    flat = torch.ones(1, 2, 8, 8, dtype=dtype, requires_grad=True)
    soft_slic(flat, (2, 2), 3).centroids.square().sum().backward()
    assert torch.isfinite(flat.grad).all()
    assert flat.grad.abs().sum() > 0


def test_half_precision_is_lifted():
    features = torch.randn(1, 3, 12, 12).half()
    soft = soft_slic(features, (2, 2))
    assert soft.affinity.dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = soft_slic(features.float(), (2, 2))
        pooled = inside.pool(features.float())
    assert torch.equal(soft.affinity, inside.affinity)
    assert torch.equal(pooled, inside.pool(features.float()))


@pytest.mark.gpu
def test_a_gpu_equals_the_cpu(device):
    features = torch.randn(2, 5, 45, 61, dtype=torch.float64, requires_grad=True)
    copy = features.detach().to(device).requires_grad_()
    here, there = soft_slic(features, (4, 5)), soft_slic(copy, (4, 5))
    here.pool(features).square().sum().backward()
    there.pool(copy).square().sum().backward()
    torch.testing.assert_close(there.affinity.cpu(), here.affinity)
    torch.testing.assert_close(copy.grad.cpu(), features.grad)
    assert torch.equal(there.labels.cpu(), here.labels)
    assert torch.equal(there.candidates.cpu(), here.candidates)


def dense_affinity(soft: SoftSLIC):
    """(B, S, H * W) affinities of every superpixel."""
    batch, _, height, width = soft.affinity.shape
    count = soft.grid[0] * soft.grid[1]
    dense = torch.zeros(batch, count + 1, height * width, dtype=soft.affinity.dtype)
    candidates = soft.candidates.flatten(1).remainder(count + 1)  # -1 goes to the extra row
    dense.scatter_(1, candidates.expand(batch, -1, -1), soft.affinity.flatten(2))
    return dense[:, :-1]


def test_pool_and_unpool_equal_dense_products():
    soft = soft_slic(torch.randn(2, 4, 13, 17, dtype=torch.float64), (3, 4))
    q = dense_affinity(soft)
    x, s = torch.randn(2, 5, 13, 17, dtype=torch.float64), torch.randn(2, 12, 5, dtype=torch.float64)
    torch.testing.assert_close(soft.pool(x), q @ x.flatten(2).mT / q.sum(2, keepdim=True))
    torch.testing.assert_close(soft.unpool(s), (q.mT @ s).mT.reshape(2, 5, 13, 17))
    torch.testing.assert_close(soft.pool(x[:1])[1], soft.pool(x[:1].expand(2, -1, -1, -1))[1])


def test_hard_pooling_gives_each_label_its_own_mean_and_the_round_trip_keeps_it():
    soft = soft_slic(5 * torch.randn(1, 4, 13, 17), (3, 4)).harden()
    x = torch.randn(1, 2, 13, 17)
    pooled = soft.pool(x)
    for s in soft.labels.unique().tolist():
        torch.testing.assert_close(pooled[0, s], x[0][:, soft.labels[0] == s].mean(1))
    spread = soft.unpool(pooled)
    torch.testing.assert_close(soft.pool(spread), pooled)
    torch.testing.assert_close(spread[0, :, 3, 5], pooled[0, soft.labels[0, 3, 5]])


def test_centroids_are_the_pooled_features():
    features = torch.randn(2, 4, 13, 17, dtype=torch.float64)
    soft = soft_slic(features, (3, 4))
    torch.testing.assert_close(soft.pool(features), soft.centroids)


@pytest.mark.parametrize(("n_spixels", "size", "grid"), [
    (100, (321, 481), (8, 12)), (1, (7, 5), (1, 1)), (35, (7, 5), (7, 5)), (4, (1, 100), (1, 4)),
    (4, (100, 1), (4, 1)), (7, (11, 70), (1, 6)), (9, (90, 90), (3, 3)), (1, (1, 1), (1, 1))])
def test_grid_for(n_spixels, size, grid):
    assert grid_for(n_spixels, *size) == grid


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 1), (6, 7), (3, 29)])
def test_every_possible_count_gives_a_grid_that_fits(size):
    for n_spixels in range(1, size[0] * size[1] + 1):
        rows, columns = grid_for(n_spixels, *size)
        assert 1 <= rows <= size[0]
        assert 1 <= columns <= size[1]
        assert rows * columns <= n_spixels


@pytest.mark.parametrize("n_spixels", [0, -3, 36])
def test_a_count_that_the_image_cannot_hold_is_refused(n_spixels):
    with pytest.raises(ValueError, match=f"between 1 and the 35 pixels of the 7 x 5 image, got {n_spixels}"):
        grid_for(n_spixels, 7, 5)


@pytest.mark.parametrize(("features", "options", "message"), [
    (torch.zeros(3, 8, 8), {}, r"\(B, C, H, W\), got torch.float32 \(3, 8, 8\)"),
    (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), {}, "floating point.*got torch.uint8"),
    (torch.zeros(1, 0, 8, 8), {}, r"got torch.float32 \(1, 0, 8, 8\)"),
    (torch.zeros(1, 3, 8, 8), {"n_iters": 0}, "n_iters must be at least 1, got 0"),
    (torch.zeros(1, 3, 8, 8), {"distance": "l1"}, "'l2' or 'squared', got 'l1'"),
    (torch.zeros(1, 3, 8, 8), {"grid": (9, 2)}, "8 x 8 pixels, got 9 x 2"),
    (torch.zeros(1, 3, 8, 8), {"grid": (0, 2)}, "8 x 8 pixels, got 0 x 2"),
    (torch.full((1, 3, 8, 8), torch.nan), {}, "finite"),
    (torch.full((1, 3, 8, 8), torch.inf), {}, "finite"),
])
def test_wrong_input_is_refused(features, options, message):
    with pytest.raises(ValueError, match=message):
        soft_slic(features, **{"grid": (2, 2), **options})


def test_values_of_another_size_are_refused():
    soft = soft_slic(torch.randn(2, 3, 8, 9), (2, 2))
    with pytest.raises(ValueError, match=r"pool needs \(2, C, 8, 9\) values, got \(2, 3, 9, 8\)"):
        soft.pool(torch.zeros(2, 3, 9, 8))
    with pytest.raises(ValueError, match=r"pool needs .* got \(3, 3, 8, 9\)"):
        soft.pool(torch.zeros(3, 3, 8, 9))
    with pytest.raises(ValueError, match=r"unpool needs \(2, 4, C\) values, got \(2, 5, 3\)"):
        soft.unpool(torch.zeros(2, 5, 3))


def test_weights_count_in_the_distance_alone():
    features, grid = torch.randn(2, 5, 20, 26, dtype=torch.float64), (4, 5)
    weights = torch.tensor([1, 0.5, 2, 0, 3], dtype=torch.float64)
    soft = soft_slic(features, grid, 4, weights=weights)
    scaled = soft_slic(weights[:, None, None] * features, grid, 4)
    assert torch.equal(soft.affinity, scaled.affinity)
    torch.testing.assert_close(weights * soft.centroids, scaled.centroids)
    torch.testing.assert_close(soft.centroids, soft.pool(features))
    with pytest.raises(ValueError, match=r"weights must be \(5,\), one per channel, got \(4,\)"):
        soft_slic(features, grid, 4, weights=weights[:4])
