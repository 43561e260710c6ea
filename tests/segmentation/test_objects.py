"""Several objects: a frame as a graph, its proposals, and tracks that keep their names."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from diffslic import metrics
from diffslic.segmentation import (
    Regions,
    Tracker,
    largest_objects,
    linked_components,
    proposals,
    regions_of,
    soft_masks,
)
from diffslic.segmentation.propagation import Frame, carry, follow, with_given

SIZE, CELL = (32, 64), 4
COLOURS = torch.tensor([[0.1, 0.1, 0.1], [0.9, 0.1, 0.1], [0.1, 0.2, 0.9]])


def squares() -> torch.Tensor:
    """Superpixels (H, W): a grid of squares."""
    row, column = torch.meshgrid(torch.arange(SIZE[0]) // CELL, torch.arange(SIZE[1]) // CELL, indexing="ij")
    return row * (SIZE[1] // CELL) + column


def frame_of(left: int | None, right: int | None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Labels, image and flow of a red body that moves to the right and a blue one that moves to the left.

    Each is 16 pixels wide and begins at the column given; the red one is in front.
    """
    labels = torch.zeros(SIZE, dtype=torch.int64)
    for name, at in ((2, right), (1, left)):
        if at is not None:
            labels[8:24, max(0, at):max(0, at + 16)] = name
    flow = torch.stack([torch.tensor([0.0, 4.0, -4.0])[labels], torch.zeros(SIZE)])
    return labels, COLOURS[labels].permute(2, 0, 1), flow


def tracked(places, foreground=None, **how) -> tuple[np.ndarray, np.ndarray]:
    """Labels (T, H, W) by a tracker, and the truth, of bodies at these places in each frame."""
    tracker, found, truth = Tracker(**how), [], []
    for t, (left, right) in enumerate(places):
        labels, image, flow = frame_of(left, right)
        moving = labels > 0 if foreground is None else foreground(t, labels)
        regions = regions_of(squares(), image, flow, moving)
        frame = tracker.step(regions, proposals(regions, smallest=16), -flow if t else None)
        found.append(frame.labels.numpy())
        truth.append(labels.numpy())
    return np.stack(found), np.stack(truth)


def crossing(n_frames: int = 13) -> list[tuple[int, int]]:
    return [(4 * t, 48 - 4 * t) for t in range(n_frames)]


def test_a_graph_of_four_squares():
    superpixels = torch.tensor([[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3], [2, 2, 3, 3]])
    image = torch.rand(3, 4, 4)
    flow = torch.randn(2, 4, 4)
    foreground = superpixels == 1
    foreground[0, 0] = True
    occluded = torch.zeros(4, 4, dtype=torch.bool)
    occluded[0, 1] = True
    regions = regions_of(superpixels, image, flow, foreground, occluded)
    assert regions.area.tolist() == [4, 4, 4, 4]
    assert regions.foreground.tolist() == [0.25, 1, 0, 0]
    np.testing.assert_allclose(regions.motion[0], flow[:, 0, 0], rtol=1e-6)  # of the foreground's pixel alone
    np.testing.assert_allclose(regions.motion[3], flow[:, 2:, 2:].mean((1, 2)), rtol=1e-5)
    np.testing.assert_allclose(regions.colour[2], image[:, 2:, :2].mean((1, 2)), rtol=1e-5)
    assert regions.histogram.sum(1).tolist() == [4, 4, 4, 4]
    assert regions.edges.tolist() == [[0, 1], [0, 2], [1, 3], [2, 3]]
    assert regions.border.tolist() == [2, 2, 2, 2]
    assert regions.hidden.tolist() == [0.5, 0, 0, 0]


def test_bodies_that_touch_are_apart_by_their_motion_alone_and_by_colour_alone():
    labels, image, flow = frame_of(8, 24)
    grey = torch.full_like(image, 0.5)
    still = torch.zeros_like(flow)
    for picture, field, n_bodies in ((grey, flow, 2), (image, still, 2), (grey, still, 1)):
        found = proposals(regions_of(squares(), picture, field, labels > 0), smallest=16)
        assert found.max() + 1 == n_bodies
        of_pixels = found[squares().numpy()]
        assert ((of_pixels >= 0) == (labels > 0).numpy()).all()
        if n_bodies == 2:
            assert len(np.unique(of_pixels[labels == 1])) == len(np.unique(of_pixels[labels == 2])) == 1


def test_a_border_with_hidden_pixels_keeps_apart_what_motion_does_not():
    labels, image, flow = frame_of(8, 24)
    hidden = torch.zeros(SIZE, dtype=torch.bool)
    hidden[:, 23] = True
    graph = regions_of(squares(), torch.zeros_like(image), torch.zeros_like(flow), labels > 0, hidden)
    assert proposals(graph, hidden=1, smallest=16).max() == 1
    assert proposals(graph, hidden=0, smallest=16).max() == 0


def test_crumbs_join_a_neighbour_or_nothing():
    labels, image, flow = frame_of(8, None)
    image[:, 8:12, 8:12] = 1.0                      # a white corner of the body, one superpixel
    labels[0:4, 60:64] = 1                          # and a speck far away
    found = proposals(regions_of(squares(), image, flow, labels > 0), smallest=17)
    assert found.max() == 0
    assert found[squares()[0, 60]] == -1 and found[squares()[8, 8]] == 0


def test_bodies_that_cross_keep_their_names():
    found, truth = tracked(crossing())
    score = metrics.clear_mot(found, truth)
    assert score.switches == 0 and score.misses <= 2  # behind the other nothing is seen
    assert metrics.davis(found.astype(np.uint8), truth.astype(np.uint8), "unsupervised").summary()["J-Mean"] > 0.9
    assert found.max() == 2


def test_linked_components_lose_one_where_bodies_touch():
    truth = tracked(crossing())[1]
    labels = linked_components(truth > 0, smallest=16)
    assert labels[0].max() == 2 and labels[3].max() == 2
    assert len(np.unique(labels[6])) == 2           # one body there, and the background
    assert metrics.clear_mot(labels, truth).switches == 2


def test_linked_components_are_one_to_one_and_new_where_nothing_was():
    masks = np.zeros((3, 8, 20), int)
    masks[0, :, :8] = 1
    masks[1, :, :3] = masks[1, :, 5:8] = masks[1, :, 12:] = 1
    labels = linked_components(masks, smallest=16)
    assert labels[0].max() == 1
    assert len({int(labels[1, 0, x]) for x in (0, 6, 14)}) == 3 and 1 in (labels[1, 0, 0], labels[1, 0, 6])
    assert labels[2].max() == 0
    with pytest.raises(ValueError, match="masks must be"):
        linked_components(masks[0])


def test_a_body_that_stops_moving_is_not_lost():
    """From frame 4 on nothing is foreground; the flow still says where the bodies go."""
    found, truth = tracked(crossing(6), foreground=lambda t, labels: (labels > 0) & (t < 3))
    assert metrics.clear_mot(found, truth) == metrics.ClearMOT(0, 0, 0, 12)


def test_a_body_that_comes_back_is_known_by_its_colours():
    places = [(8, None), (12, None), (None, None), (None, None), (32, None), (36, None)]
    found, _ = tracked(places)
    assert found[0].max() == found[5].max() == 1
    other = [(8, None), (12, None), (None, None), (None, None), (None, 32), (None, 28)]
    assert tracked(other)[0].max() == 2             # another colour is another object


def test_what_stands_still_is_not_lost_and_its_name_not_given_to_another():
    """A red body stops; another red one begins to move elsewhere."""
    tracker, names = Tracker(), []
    for t in range(6):
        labels = torch.zeros(SIZE, dtype=torch.int64)
        first = 4 * min(t, 2)
        labels[8:24, first:first + 16] = 1
        labels[8:24, 36 + 4 * max(0, t - 3):52 + 4 * max(0, t - 3)] = 2
        image = COLOURS[labels.clip(max=1)].permute(2, 0, 1)
        moves = torch.tensor([0.0, 4.0 if t < 2 else 0.0, 4.0 if t >= 3 else 0.0])[labels]
        flow = torch.stack([moves, torch.zeros(SIZE)])
        came = torch.tensor([0.0, 4.0 if 0 < t <= 2 else 0.0, 4.0 if t > 3 else 0.0])[labels]
        regions = regions_of(squares(), image, flow, moves != 0)
        back = torch.stack([-came, torch.zeros(SIZE)])
        frame = tracker.step(regions, proposals(regions, smallest=16), back if t else None)
        names.append([int(frame.labels[labels == body].mode().values) for body in (1, 2)])
    assert names[:3] == [[1, 0]] * 3 and names[4:] == [[1, 2]] * 2


def test_there_are_no_more_names_than_asked_for_and_a_long_lost_one_is_given_again():
    found, _ = tracked(crossing(3), most=1)
    assert found.max() == 1
    away = [(None, None)] * 45
    found, _ = tracked([(8, None), (12, None), *away, (None, 32), (None, 28)], most=1)
    assert found[1].max() == found[-1].max() == 1
    assert tracked([(8, None), (12, None), *away[:9], (None, 32), (None, 28)], most=1)[0][-1].max() == 0


def still(superpixels: torch.Tensor) -> Regions:
    """A frame of which only the superpixels count."""
    size = superpixels.shape
    return regions_of(superpixels, torch.zeros(3, *size), torch.zeros(2, *size), torch.zeros(size, dtype=torch.bool))


def test_labels_go_along_the_flow_and_pixels_that_come_from_nowhere_do_not_vote():
    regions, labels = still(squares()), np.zeros(SIZE, dtype=np.int64)
    labels[:, :6] = 2                                # a superpixel and a half
    back = torch.zeros(2, *SIZE)
    back[0] = -4.0                                   # all goes four pixels to the right
    revealed = torch.zeros(SIZE, dtype=torch.bool)
    revealed[:, 4:6] = True
    carried = carry(regions, labels, 3, back, revealed)
    assert (carried.labels[0, :12] == [-1] * 4 + [2] * 6 + [0] * 2).all()
    assert not carried.known[:, :6].any() and carried.known[:, 6:].all()
    assert carried.share[0].tolist() == [0, 0, 0]    # nothing is known of what came in
    assert carried.share[1].tolist() == [0, 0, 1] and carried.share[2].tolist() == [0.5, 0, 0.5]
    frame = follow(regions, carried)
    assert (frame.labels[0, :12] == torch.tensor([0] * 4 + [2] * 6 + [0] * 2)).all()
    assert frame.decision[1] == 2 and frame.decision[3] == 0


def test_superpixels_that_are_nearly_of_one_label_are_wholly_of_it():
    regions, labels = still(squares()), np.zeros(SIZE, dtype=np.int64)
    labels[:, :3] = 1                                # three quarters of a superpixel
    labels[:, 16:18] = 1                             # half of one
    frame = follow(regions, carry(regions, labels, 2, torch.zeros(2, *SIZE)))
    assert (frame.labels[0, :4] == 1).all()
    assert frame.labels[0, 16:20].tolist() == [1, 1, 0, 0]


def test_what_was_hardly_shown_goes_by_its_colours():
    """A red superpixel that flow has lost stays with the red body; a grey one beside it is revealed ground."""
    image = torch.full((3, *SIZE), 0.5)
    image[:, :, 8:24] = torch.tensor([0.9, 0.1, 0.1])[:, None, None]
    nothing = torch.zeros(SIZE, dtype=torch.bool)
    regions = regions_of(squares(), image, torch.zeros(2, *SIZE), nothing)
    labels = np.zeros(SIZE, dtype=np.int64)
    labels[:, 8:32] = 3
    revealed = nothing.clone()
    revealed[:, 20:28] = True
    frame = follow(regions, carry(regions, labels, 4, torch.zeros(2, *SIZE), revealed))
    assert (frame.labels[:, 8:24] == 3).all() and (frame.labels[:, 24:28] == 0).all()
    assert frame.decision[5] == 3 and frame.decision[6] == 0


def test_given_objects_count_where_they_say_something():
    regions = still(squares())
    frame = Frame(torch.ones(SIZE, dtype=torch.int64), torch.ones(len(regions.area), dtype=torch.int64))
    given = torch.zeros(SIZE, dtype=torch.int64)
    given[:, :4], given[:, 8:12] = 9, 255
    now = with_given(frame, regions, given)
    assert (now.labels[:, :4] == 9).all() and (now.labels[:, 4:] == 1).all()
    assert now.decision[0] == 9 and now.decision[2] == 1


def test_propagation_refuses_nonsense():
    regions, labels = still(squares()), np.zeros(SIZE, dtype=np.int64)
    for back in (None, torch.zeros(2, 4, 4)):
        with pytest.raises(ValueError, match="flow back"):
            carry(regions, labels, 1, back)
    with pytest.raises(ValueError, match="revealed pixels"):
        carry(regions, labels, 1, torch.zeros(2, *SIZE), torch.zeros(4, 4, dtype=torch.bool))


def test_superpixels_decide_as_softly_as_they_are():
    soft = SimpleNamespace(unpool=lambda values: values.transpose(1, 2).unflatten(2, (1, 3)))  # a pixel each
    masks = soft_masks(soft, torch.tensor([0, 4, 7]), [4, 9])
    assert masks[:, 0].tolist() == [[1, 0, 1], [0, 1, 0], [0, 0, 0]]  # 7 was not asked for, 9 is nowhere


def test_the_largest_objects_are_numbered_anew():
    labels = np.array([[[0, 7, 7, 7, 3, 9, 9]]])
    assert largest_objects(labels, 2).tolist() == [[[0, 1, 1, 1, 0, 2, 2]]]
    assert largest_objects(labels).tolist() == [[[0, 2, 2, 2, 1, 3, 3]]]
    assert largest_objects(np.zeros((2, 3, 4), int)).max() == 0


def test_nothing_moves_and_no_frame_has_objects():
    found, _ = tracked([(None, None)] * 3)
    assert found.max() == 0


def test_nonsense_is_refused():
    labels, image, flow = frame_of(8, 24)
    for wrong, told in (((squares()[1:], image, flow, labels > 0), "superpixels must be"),
                        ((squares(), image[:, 1:], flow, labels > 0), "image must be"),
                        ((squares(), image, flow, labels[1:] > 0), "foreground must be"),
                        ((squares().float(), image, flow, labels > 0), "integers from 0"),
                        ((squares() - 1, image, flow, labels > 0), "integers from 0"),
                        ((squares(), image, flow * torch.nan, labels > 0), "known")):
        with pytest.raises(ValueError, match=told):
            regions_of(*wrong)
    tracker, regions = Tracker(), regions_of(squares(), image, flow, labels > 0)
    found = proposals(regions, smallest=16)
    tracker.step(regions, found)
    for back in (None, flow[:, 1:]):
        with pytest.raises(ValueError, match="flow back"):
            tracker.step(regions, found, back)
    with pytest.raises(ValueError, match="proposals must be those of 128"):
        tracker.step(regions, found[1:], -flow)
