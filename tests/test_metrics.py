"""Scores: against figures of the official codes where they are at hand, and against small truths of our own."""

import json
import math

import numpy as np
import pytest
import torch

from diffslic import metrics

# ---------------------------------------------------------------- DAVIS, reference figures

VIDEOS = ["synth_appear", "synth_few_proposals", "synth_late_id3", "synth_novoid", "long_T300", "long_T700",
          "real_bike-packing", "real_car-shadow", "real_dogs-jump", "real_gold-fish", "real_india", "real_judo"]
GROUPS = {"synthetic": VIDEOS[:4], "long": VIDEOS[4:6], "real": VIDEOS[6:]}
EXACT = {"rtol": 0, "atol": 1e-9}


@pytest.fixture(scope="module")
def scored(reference):
    """Every stored video with its semi-supervised and unsupervised score."""
    videos = {}
    for name in VIDEOS:
        with np.load(reference / "reference" / "motion" / f"davis_{name}.npz") as file:
            stored = dict(file)
        videos[name] = (stored, metrics.davis(stored["res_semi"], stored["gt"], "semi-supervised"),
                        metrics.davis(stored["res_unsup"], stored["gt"], "unsupervised"))
    return videos


@pytest.mark.parametrize("name", VIDEOS)
def test_davis_equals_the_official_scores(scored, name):
    stored, semi, unsup = scored[name]
    np.testing.assert_allclose(semi.j, stored["semi_J"], **EXACT)
    np.testing.assert_allclose(semi.f, stored["semi_F"], **EXACT)
    np.testing.assert_allclose(semi.statistics, stored["semi_stats_int64"], **EXACT)
    assert semi.summary()["J&F-Mean"] == pytest.approx(float(stored["semi_JandF"]), abs=1e-9)
    truth_order = np.argsort(stored["unsup_col"])
    np.testing.assert_array_equal(unsup.assignment, stored["unsup_row"][truth_order] + 1)
    np.testing.assert_allclose(unsup.j, stored["unsup_J"][truth_order], **EXACT)
    np.testing.assert_allclose(unsup.f, stored["unsup_F"][truth_order], **EXACT)
    np.testing.assert_allclose(unsup.pairs, stored["unsup_score"], **EXACT)
    np.testing.assert_allclose(unsup.statistics, stored["unsup_stats_int64"][truth_order], **EXACT)
    assert unsup.summary()["J&F-Mean"] == pytest.approx(float(stored["unsup_JandF"]), abs=1e-9)


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize(("column", "task"), [(1, "semi-supervised"), (2, "unsupervised")])
def test_davis_summary_equals_the_official_averages(reference, scored, group, column, task):
    summary = json.loads((reference / "reference" / "motion" / "davis_summary.json").read_text())[group][task]
    ours = metrics.davis_summary([scored[name][column] for name in GROUPS[group]])
    for short, name in zip(("JM", "JR", "JD", "FM", "FR", "FD"), metrics.STATISTICS):
        assert ours[name] == pytest.approx(summary["int64_indices"][short], abs=1e-9)
    assert ours["J&F-Mean"] == pytest.approx(summary["J&F"], abs=1e-9)


def test_davis_edge_cases_equal_the_official_ones(reference):
    with np.load(reference / "reference" / "motion" / "davis_edge_cases.npz") as file:
        stored = dict(file)
    count, height, width = stored["shape"]
    truth, pred, void = (np.unpackbits(stored[key], axis=-1, count=width) for key in ("gt", "res", "void"))
    assert truth.shape == (count, height, width)
    repeat = [0, *range(count), 0]  # davis2016 drops the first and last
    plain = metrics.davis(pred[repeat], truth[repeat], "davis2016")
    np.testing.assert_allclose(plain.j[0], stored["J_novoid"], **EXACT)
    np.testing.assert_allclose(plain.f[0], stored["F_novoid"], **EXACT)
    everything = np.ones((1, height, width), dtype=np.uint8)  # frame 0 says that there is one object
    masked = metrics.davis(np.concatenate([everything, pred]),
                           np.concatenate([everything, np.where(void > 0, 255, truth)]), "unsupervised")
    np.testing.assert_allclose(masked.j[0, 1:], stored["J"], **EXACT)
    np.testing.assert_allclose(masked.f[0, 1:], stored["F"], **EXACT)


# ---------------------------------------------------------------- DAVIS, truths of our own


def blocks(n_frames: int = 5, size: tuple[int, int] = (40, 60)) -> np.ndarray:
    """Two squares, labels 1 and 2, that move one pixel per frame."""
    maps = np.zeros((n_frames, *size), dtype=np.uint8)
    for t in range(n_frames):
        maps[t, 5:15, 5 + t:15 + t] = 1
        maps[t, 20:32, 40 - t:52 - t] = 2
    return maps


def naive_f(pred: np.ndarray, truth: np.ndarray) -> float:
    """F of two bool masks by loops over pixels and over the disk."""
    height, width = truth.shape
    radius = math.ceil(0.008 * math.hypot(height, width))

    def boundary(mask):
        return {(y, x) for y in range(height) for x in range(width)
                if any(mask[y, x] != mask[min(y + dy, height - 1), min(x + dx, width - 1)]
                       for dy, dx in ((0, 1), (1, 0), (1, 1)))}

    def share(points, others):
        reached = sum(any((y + dy, x + dx) in others for dy in range(-radius, radius + 1)
                          for dx in range(-radius, radius + 1) if dy * dy + dx * dx <= radius * radius)
                      for y, x in points)
        return reached / len(points)

    pred_points, true_points = boundary(pred), boundary(truth)
    if not pred_points or not true_points:
        return float(not pred_points and not true_points)
    precision, recall = share(pred_points, true_points), share(true_points, pred_points)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


@pytest.mark.parametrize("protocol", metrics.PROTOCOLS)
def test_a_perfect_prediction_scores_one(protocol):
    truth = blocks()
    score = metrics.davis(truth, truth, protocol)
    expected = {"davis2016": (1, 3), "semi-supervised": (2, 3), "unsupervised": (2, 5)}[protocol]
    assert score.j.shape == score.f.shape == expected
    assert (score.j == 1).all()
    assert (score.f == 1).all()
    np.testing.assert_array_equal(score.frames, range(5) if protocol == "unsupervised" else [1, 2, 3])
    np.testing.assert_array_equal(score.objects, np.arange(expected[0]) + 1)
    np.testing.assert_array_equal(score.assignment, score.objects)
    assert score.summary() == {"J&F-Mean": 1, "J-Mean": 1, "J-Recall": 1, "J-Decay": 0,
                               "F-Mean": 1, "F-Recall": 1, "F-Decay": 0}


def test_j_and_f_of_a_shifted_square():
    truth = np.zeros((3, 100, 100), dtype=np.uint8)  # radius 2
    truth[:, 30:50, 30:50] = 1
    near, far = np.roll(truth, 2, axis=2), np.roll(truth, 10, axis=2)
    score = metrics.davis(near, truth)
    assert score.j[0, 0] == pytest.approx(18 / 22)
    assert score.f[0, 0] == 1
    score = metrics.davis(far, truth)
    assert score.j[0, 0] == pytest.approx(10 / 30)
    assert score.f[0, 0] == naive_f(far[1] > 0, truth[1] > 0)
    assert 0.2 < score.f[0, 0] < 0.4


@pytest.mark.parametrize("size", [(23, 31), (1, 40), (40, 1), (60, 130), (2, 2)])
def test_fast_f_and_j_equal_a_naive_loop(size):
    rng = np.random.default_rng(3)
    pred, truth = rng.integers(0, 4, (2, 4, *size), dtype=np.uint8)
    pred[:, : size[0] // 2], truth[:, size[0] // 3: size[0] // 2] = 2, 1  # flat parts as well as noise
    truth[0].flat[0] = 3
    score = metrics.davis(pred, truth, "semi-supervised")
    for n in range(3):
        for column, t in enumerate((1, 2)):
            a, b = pred[t] == n + 1, truth[t] == n + 1
            assert score.j[n, column] == ((a & b).sum() / (a | b).sum() if (a | b).any() else 1)
            assert score.f[n, column] == pytest.approx(naive_f(a, b), abs=1e-12)


def test_more_masks_than_one_byte_and_more_labels_than_one_nibble():
    rng = np.random.default_rng(4)
    truth = np.repeat(np.repeat(rng.integers(0, 19, (3, 8, 8), dtype=np.uint8), 5, axis=1), 5, axis=2)
    truth[0, 0, 0] = 18
    pred = np.where(rng.random(truth.shape) < 0.9, truth, 0).astype(np.uint8)
    score = metrics.davis(pred, truth, "semi-supervised")
    assert score.j.shape == (18, 1)
    for n in range(18):
        a, b = pred[1] == n + 1, truth[1] == n + 1
        assert score.j[n, 0] == ((a & b).sum() / (a | b).sum() if (a | b).any() else 1)
        assert score.f[n, 0] == pytest.approx(naive_f(a, b), abs=1e-12)


def test_masks_cut_by_the_frame_have_no_boundary_there():
    full, empty = np.ones((3, 30, 30), dtype=np.uint8), np.zeros((3, 30, 30), dtype=np.uint8)
    assert metrics.davis(full, full).f[0, 0] == 1  # both boundaries empty
    box = empty.copy()
    box[:, 10:20, 10:20] = 1
    assert metrics.davis(full, box).f[0, 0] == 0
    score = metrics.davis(empty, empty)
    assert (score.j[0, 0], score.f[0, 0]) == (1, 1)
    score = metrics.davis(empty, full)
    assert (score.j[0, 0], score.f[0, 0]) == (0, 1)


def test_decay_and_recall_of_a_long_video():
    truth = np.zeros((302, 6, 8), dtype=np.uint8)
    truth[:, 1:5, 2:6] = 1
    pred = truth.copy()
    pred[201:, :, 4:] = 0  # J = 1/2 for the last 100 of the 300 evaluated frames, which is not above 1/2
    _, recall, decay = metrics.davis(pred, truth).statistics[0, :3]
    assert recall == pytest.approx(200 / 300)
    # Quarters of 300 frames: indices 0..75 and 224..299, the frames from 200 on are halved.
    assert decay == pytest.approx(1 - 0.5)
    pred = truth.copy()
    pred[251:, :, 4:] = 0  # index 250 to 299 of the last 76 frames
    assert metrics.davis(pred, truth).statistics[0, 2] == pytest.approx(1 - (26 + 50 * 0.5) / 76)


def test_assignment_finds_a_permutation_and_empty_proposals():
    truth = blocks()
    shuffled = np.choose(truth, [0, 7, 3]).astype(np.uint8)
    shuffled[:, 35:38, :] = 1  # a proposal for nothing
    score = metrics.davis(shuffled, truth, "unsupervised")
    np.testing.assert_array_equal(score.assignment, [7, 3])
    assert (score.j == 1).all()
    assert score.pairs.shape == (7, 2)
    one = np.where(truth == 2, 1, 0).astype(np.uint8)  # fewer proposals than objects
    score = metrics.davis(one, truth, "unsupervised")
    np.testing.assert_array_equal(score.assignment, [2, 1])
    assert (score.j[0] == 0).all()
    assert (score.j[1] == 1).all()


def test_void_counts_as_background_or_not_at_all():
    truth = blocks()
    pred = truth.copy()
    truth[:, 5:15, 5:10] = 255  # the left of object 1 is undecided
    truth[0, 5, 10] = 1
    assert (metrics.davis(pred, truth, "unsupervised").j == 1).all()
    assert (metrics.davis(pred, truth, "unsupervised").f == 1).all()
    semi = metrics.davis(pred, truth, "semi-supervised")
    assert semi.j[0, 0] == 0.6  # frame 1: columns 6 to 15 predicted, 10 to 15 true
    assert (semi.j[1] == 1).all()
    assert (metrics.davis(pred, np.where(truth == 255, 9, truth), "unsupervised", void=9).j == 1).all()


def test_objects_are_those_of_frame_zero():
    truth, pred = blocks(), blocks()
    truth[2:, 35:38, 2:30] = 3  # appears later: silently background
    score = metrics.davis(pred, truth, "semi-supervised")
    np.testing.assert_array_equal(score.objects, [1, 2])
    assert (score.j == 1).all()
    truth[0] = np.where(truth[0] == 1, 0, truth[0])  # id 1 is absent from frame 0, but not above its largest id
    assert metrics.davis(pred, truth, "semi-supervised").j.shape == (2, 3)


def test_davis2016_takes_every_label_as_one_object():
    truth = blocks()
    score = metrics.davis(torch.from_numpy(truth > 0), truth.astype(np.int64), "davis2016")
    assert score.j.shape == (1, 3)
    assert (score.j == 1).all()
    assert np.isnan(metrics.davis(truth, truth, "semi-supervised").pairs[0, 1])


@pytest.mark.parametrize(("change", "message"), [
    ({"protocol": "davis"}, "protocol must be one of davis2016, semi-supervised, unsupervised, got 'davis'"),
    ({"pred": blocks(4)}, "pred has 4 masks but truth has 5 frames"),
    ({"pred": blocks(size=(40, 61))}, r"pred masks are \(40, 61\) but truth is \(40, 60\)"),
    ({"pred": blocks().astype(float)}, "pred must hold integer labels, got float64"),
    ({"pred": blocks().astype(np.int64) - 1}, r"pred must hold labels in 0\.\.255, got -1\.\.1"),
    ({"pred": blocks()[0]}, r"pred must be \(T, H, W\)"),
    ({"pred": blocks()[:0]}, "at least one pixel"),
    ({"pred": blocks()[:2], "truth": blocks()[:2]}, "needs at least 3 frames, got 2"),
    ({"pred": blocks() + 1}, "pred holds label 3 but frame 0 of the truth has objects 1 to 2"),
    ({"pred": blocks() + 19, "protocol": "unsupervised"}, "pred holds label 21: unsupervised allows at most 20"),
    ({"truth": blocks() * 0}, "no object in frame 0"),
    ({"truth": np.where(blocks() > 0, 255, 0)}, "no object in frame 0"),
    ({"truth": np.where(blocks() > 0, 255, 0), "protocol": "davis2016"}, "pass masks > 0"),
    ({"pred": np.where(blocks() > 0, 255, 0), "protocol": "davis2016"}, "pass masks > 0"),
])
def test_davis_refuses_bad_input(change, message):
    with pytest.raises(ValueError, match=message):
        metrics.davis(**{"pred": blocks(), "truth": blocks(), "protocol": "semi-supervised", **change})


def test_davis_summary_needs_a_video():
    with pytest.raises(ValueError, match="at least one video"):
        metrics.davis_summary([])


def test_davis_summary_is_a_mean_over_objects():
    truth = blocks()
    half = np.where(truth == 1, 1, 0).astype(np.uint8)
    scores = [metrics.davis(half, truth, "semi-supervised"), metrics.davis(half, half, "semi-supervised")]
    assert metrics.davis_summary(scores)["J-Mean"] == pytest.approx(2 / 3)  # 1, 0 and 1; over videos it were 3/4


# ---------------------------------------------------------------- superpixels


@pytest.mark.parametrize("name", ["tiny", "bsds_a", "bsds_b"])
def test_superpixels_equal_the_reference(reference, name):
    with np.load(reference / "reference" / "ssn" / f"metrics_{name}.npz") as file:
        stored = dict(file)
    image = stored["image"].transpose(2, 0, 1) / 255
    keys = {"asa": "asa_mean", "ue": "ue_mean", "br": "br_rd_mean", "bp": "bp_rd_mean", "co": "co", "ev": "ev_rgb",
            "count": "count"}
    for k, labels in enumerate(stored["labels"]):
        ours = metrics.superpixels(labels, list(stored["gt"]), image)
        assert ours.keys() == {*keys, "iou"}
        for key, theirs in keys.items():
            assert ours[key] == pytest.approx(stored[theirs][k], abs=1e-9, nan_ok=True), key


def test_superpixels_of_four_squares():
    labels = np.kron(np.array([[5, 9], [2, 7]]), np.ones((4, 4), dtype=int))
    truth = np.zeros((8, 8), dtype=int)
    truth[:, 3:] = 1  # the true border lies one column to the left of the superpixels'
    image = np.stack([labels, labels, labels]).astype(float)
    score = metrics.superpixels(labels, [truth], image)
    assert score["asa"] == pytest.approx((4 * 16 - 2 * 4) / 64)
    assert score["ue"] == pytest.approx((4 + 4 + 4 + 4) / 64)
    assert score["br"] == 1
    assert score["bp"] == pytest.approx(12 / 15)  # of column 3 and row 3: all of the column, and the row up to x = 4
    assert score["co"] == pytest.approx(math.pi / 4)
    assert score["ev"] == pytest.approx(1)
    assert score["count"] == 4


def test_superpixels_equal_naive_loops():
    rng = np.random.default_rng(5)
    labels, truth = rng.integers(0, 5, (9, 11)), rng.integers(0, 3, (9, 11))
    image = rng.random((3, 9, 11))
    pairs = [(labels == s, [truth == g for g in range(3)]) for s in range(5)]
    asa = sum(max((s & g).sum() for g in segments) for s, segments in pairs) / 99
    ue = sum(min((s & g).sum(), (s & ~g).sum()) for s, segments in pairs for g in segments) / 99
    between = sum(s.sum() * ((image[:, s].mean(axis=1) - image.mean(axis=(1, 2))) ** 2).sum() for s, _ in pairs)
    score = metrics.superpixels(torch.from_numpy(labels), [torch.from_numpy(truth)], torch.from_numpy(image))
    assert score["asa"] == pytest.approx(asa)
    assert score["ue"] == pytest.approx(ue)
    assert score["ev"] == pytest.approx(between / (99 * image.var(axis=(1, 2)).sum()))
    votes = np.array([np.bincount(truth[labels == s]).argmax() for s in range(5)])[labels]
    ious = [((votes == g) & (truth == g)).sum() / ((votes == g) | (truth == g)).sum() for g in range(3)]
    assert score["iou"] == pytest.approx(np.mean(ious))
    two = metrics.superpixels(labels, [truth, labels], image)
    assert two["asa"] == pytest.approx((asa + 1) / 2)


def test_pixels_of_an_ignored_segment_do_not_count():
    labels = np.array([[0, 0, 0, 1, 1, 1]])
    truth = np.array([[0, 0, 4, 4, 5, 5]])
    score = metrics.superpixels(labels, [truth], ignore=0)
    # The first superpixel goes to what is ignored, the second to 5: of the four pixels that count two are right.
    assert score["asa"] == pytest.approx(2 / 4)
    assert score["ue"] == pytest.approx(3 / 4)
    assert score["iou"] == pytest.approx((0 + 2 / 3) / 2)
    assert score["br"] == metrics.superpixels(labels, [truth])["br"]
    assert math.isnan(metrics.superpixels(labels, [np.zeros_like(truth)], ignore=0)["asa"])
    both = metrics.superpixels(labels, [np.zeros_like(truth), truth], ignore=0)
    assert both["asa"] == score["asa"]  # the annotator who saw nothing is left out


def test_superpixels_where_a_score_is_undefined():
    labels = np.arange(12).reshape(3, 4) // 6
    flat = np.zeros((3, 4), dtype=int)
    assert math.isnan(metrics.superpixels(labels, [labels])["ev"])
    assert math.isnan(metrics.superpixels(labels, [labels], np.full((3, 3, 4), 0.1))["ev"])
    assert math.isnan(metrics.superpixels(flat, [labels])["bp"])
    assert metrics.superpixels(labels, [labels, flat])["br"] == 1  # the annotator without a boundary is left out


@pytest.mark.parametrize(("arguments", "message"), [
    ((np.zeros((3, 4), int), []), "at least one annotator"),
    ((np.zeros((3, 4), int), [np.zeros((3, 5), int)]), r"truths\[0\] is \(3, 5\) but labels is \(3, 4\)"),
    ((np.zeros((3, 4)), [np.zeros((3, 4), int)]), "labels must hold integer labels, got float64"),
    ((np.zeros((1, 3, 4), int), [np.zeros((3, 4), int)]), r"labels must be \(H, W\)"),
    ((np.zeros((0, 4), int), [np.zeros((0, 4), int)]), "at least one pixel"),
    ((np.zeros((3, 4), int), [np.zeros((3, 4), int)], np.zeros((3, 4, 3))), r"image must be \(3, 3, 4\)"),
])
def test_superpixels_refuses_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        metrics.superpixels(*arguments)


# ---------------------------------------------------------------- flow


def test_flow_by_hand():
    truth = torch.zeros(1, 2, 2, 3)
    truth[0, 0, 0, 1], truth[0, 0, 0, 2] = 100, math.inf
    truth[0, 1, 1, 0] = 1.7e9
    estimate = torch.zeros(1, 2, 2, 3)
    estimate[0, :, 0, 0] = torch.tensor([3.0, 4.0])  # error 5, an outlier
    estimate[0, :, 0, 1] = torch.tensor([96.0, 0.0])  # error 4, but 4 % of 100
    estimate[0, :, 1, 1] = torch.tensor([0.0, 1.0])  # error 1, not above 1
    score = metrics.flow(estimate, truth)
    assert score == pytest.approx({"epe": 10 / 4, "px1": 2 / 4, "px3": 2 / 4, "fl_all": 1 / 4})
    valid = np.ones((1, 2, 3), dtype=bool)
    valid[0, 0, 0] = False
    assert metrics.flow(estimate.numpy(), truth.numpy(), valid)["epe"] == pytest.approx(5 / 3)
    estimate[0, 0, 0, 2] = math.nan  # no truth there
    assert metrics.flow(estimate, truth) == score


@pytest.mark.parametrize(("arguments", "message"), [
    ((np.zeros((2, 3, 4)), np.zeros((2, 3, 5))), r"flow is \(2, 3, 4\) but truth is \(2, 3, 5\)"),
    ((np.zeros((3, 4, 2)), np.zeros((3, 4, 2))), r"flow must be \(\.\.\., 2, H, W\), got \(3, 4, 2\)"),
    ((np.zeros((2, 3, 4)), np.full((2, 3, 4), np.nan)), "no pixel with known flow"),
    ((np.zeros((2, 0, 4)), np.zeros((2, 0, 4))), "no pixel with known flow"),
    ((np.full((2, 3, 4), np.nan), np.zeros((2, 3, 4))), "flow is not finite at 12 pixels"),
    ((np.zeros((2, 3, 4)), np.zeros((2, 3, 4)), np.ones((3, 4))), "valid must be bool of shape"),
    ((np.zeros((2, 3, 4)), np.zeros((2, 3, 4)), np.ones((2, 3, 4), bool)), r"valid must be bool of shape \(3, 4\)"),
    ((np.zeros((2, 3, 4), complex), np.zeros((2, 3, 4))), "must hold real numbers"),
])
def test_flow_refuses_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        metrics.flow(*arguments)


# ---------------------------------------------------------------- depth


@pytest.mark.parametrize("case", ["lateral", "forward", "rot_trans", "moving"])
@pytest.mark.parametrize("method", ["linear", "gn"])
def test_depth_equals_the_reference(reference, case, method):
    folder = reference / "reference" / "flow"
    stored = json.loads((folder / "depth_metrics.json").read_text())
    with np.load(folder / f"depth_{case}.npz") as file:
        estimate, truth, mask = file[f"Z_{method}"], file["depth"], file["mask"]
    score = metrics.depth(estimate, truth, mask)
    names = dict(zip(("AbsRel", "SqRel", "RMSE", "RMSElog", "delta1", "delta2", "delta3"), score))
    assert list(names) == stored["metric_names"]
    ours = [score[names[name]] for name in stored["metric_names"]]
    assert ours == pytest.approx(stored["cases"][case][method], abs=1e-9)
    assert score["coverage"] == pytest.approx(mask.mean())


def test_depth_by_hand():
    truth = torch.tensor([[[[2.0, 4.0, 10.0, 0.0, math.nan, 5.0, 5.0]]]])
    estimate = torch.tensor([[[[2.0, 5.0, 10.2, 3.0, 3.0, -1.0, math.nan]]]])
    score = metrics.depth(estimate, truth)
    assert score["coverage"] == pytest.approx(3 / 5)
    assert score["abs_rel"] == pytest.approx((1 / 4 + 0.02) / 3, abs=1e-6)
    assert score["sq_rel"] == pytest.approx((1 / 4 + 0.004) / 3, abs=1e-6)
    assert score["rmse"] == pytest.approx(math.sqrt(1.04 / 3), abs=1e-6)
    assert score["rmse_log"] == pytest.approx(math.sqrt((math.log(1.25) ** 2 + math.log(1.02) ** 2) / 3), abs=1e-6)
    assert score["d1"] == pytest.approx(2 / 3)  # 5 / 4 is not below 1.25
    assert score["d2"] == score["d3"] == 1
    assert score["inlier"] == pytest.approx(2 / 3)
    valid = np.ones((1, 1, 1, 7), dtype=bool)
    valid[..., 1] = False
    assert metrics.depth(estimate, truth, valid)["coverage"] == pytest.approx(2 / 5)
    assert metrics.depth(3 * truth, truth)["abs_rel"] == pytest.approx(2)  # never aligned in scale


@pytest.mark.parametrize(("arguments", "message"), [
    ((np.ones((3, 4)), np.ones((3, 5))), r"depth is \(3, 4\) but truth is \(3, 5\)"),
    ((np.ones((3, 4)), np.zeros((3, 4))), r"no pixel has both a depth and a truth \(0 pixels have a truth\)"),
    ((np.zeros((3, 4)), np.ones((3, 4))), r"no pixel has both a depth and a truth \(12 pixels have a truth\)"),
    ((np.ones((3, 4)), np.ones((3, 4)), np.ones((3, 5), bool)), "valid must be bool of shape"),
    ((np.ones((3, 4), bool), np.ones((3, 4))), "must hold real numbers, got bool and float64"),
])
def test_depth_refuses_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        metrics.depth(*arguments)
