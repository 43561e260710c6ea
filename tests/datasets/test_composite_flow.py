"""The composite study's flow files: what is written is read, in our order of channels, and wrong files are named."""

import h5py
import numpy as np
import pytest
import torch

from diffslic import datasets, geometry
from diffslic.datasets.composite_flow import (
    flow_both_ways,
    read_flow_both_ways,
    with_composite_flow,
    with_flow_from,
    write_composite_flow,
)


@pytest.fixture
def clip():
    return datasets.open("scenes", preset="lab", n_clips=1, n_frames=4, size=(24, 36))[0]


@pytest.fixture
def path(clip, tmp_path):
    write_composite_flow(clip, tmp_path / "lab.h5")
    return tmp_path / "lab.h5"


def test_what_is_written_is_read(clip, path):
    frames_alone = datasets.Clip("lab", clip.size, {"frame": clip.frame}, len(clip))
    read = with_composite_flow(frames_alone, path)
    for t in range(3):
        torch.testing.assert_close(read.flow(t), clip.flow(t), rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(read.backward_flow(t + 1), clip.backward_flow(t + 1), rtol=1e-3, atol=1e-3)
    with pytest.raises(IndexError):
        read.flow(3)


def test_the_file_holds_v_before_u_with_the_channels_last(clip, path):
    with h5py.File(path) as file:
        assert file["flows"].shape == file["inv_flows"].shape == (3, 24, 36, 2) and file["flows"].dtype == np.float16
        np.testing.assert_allclose(file["flows"][1][..., 0], clip.flow(1)[1], rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(file["inv_flows"][0][..., 1], clip.backward_flow(1)[0], rtol=1e-3, atol=1e-3)


def test_there_is_no_way_on_from_the_last_frame_and_none_back_from_the_first(clip):
    first, middle, last = (flow_both_ways(clip, t) for t in (0, 1, 3))
    assert torch.equal(first[:2], clip.flow(0)) and (first[2:] == 0).all()
    assert torch.equal(middle, torch.cat([clip.flow(1), clip.backward_flow(1)]))
    assert (last[:2] == 0).all() and torch.equal(last[2:], clip.backward_flow(3))


def test_a_file_alone_gives_a_frames_flow(clip, path):
    for t in range(4):
        torch.testing.assert_close(read_flow_both_ways(path, t), flow_both_ways(clip, t), rtol=1e-3, atol=1e-3)
    with pytest.raises(ValueError, match=r"lab\.h5: the flow of 4 frames, 0 to 3; there is no frame 4"):
        read_flow_both_ways(path, 4)
    with h5py.File(path, "a") as file:
        file["other"] = file["inv_flows"][:2]
        del file["inv_flows"]
        file.move("other", "inv_flows")
    with pytest.raises(ValueError, match=r"of one shape \(T - 1, rows, columns, 2\), got \(3, .*\) and \(2, "):
        read_flow_both_ways(path, 1)


def test_flow_is_found_by_the_clips_name_in_either_layout(clip, path, tmp_path):
    path.rename(tmp_path / f"{clip.name}.h5")
    torch.testing.assert_close(with_flow_from(clip, tmp_path).flow(1), clip.flow(1), rtol=1e-3, atol=1e-3)
    fields = {"flow": [2 * clip.flow(t) for t in range(3)], "backward_flow": [clip.backward_flow(t) for t in (1, 2, 3)]}
    datasets.write_clip_cache(tmp_path / "ours" / f"{clip.name}.h5", fields, len(clip), {})
    torch.testing.assert_close(with_flow_from(clip, tmp_path / "ours").flow(1), 2 * clip.flow(1), rtol=0, atol=0.01)


def test_flow_of_another_size_is_brought_to_the_frames(clip, path):
    large = datasets.Clip("lab", (48, 72), {}, len(clip))
    flow = with_composite_flow(large, path).flow(1)
    assert flow.shape == (2, 48, 72)
    expected = geometry.resize_flow(clip.flow(1)[None], (48, 72))[0]
    torch.testing.assert_close(flow, expected, rtol=1e-3, atol=1e-2)
    assert flow.abs().mean() > 1.5 * clip.flow(1).abs().mean()  # twice as many pixels a frame
    with pytest.raises(ValueError, match=r"expected flows of shape \(3, 48, 60, 2\)"):
        with_composite_flow(datasets.Clip("lab", (48, 60), {}, len(clip)), path)


def test_a_cache_of_one_way_is_refused_and_one_of_both_is_read(clip, tmp_path):
    one, both = tmp_path / "one" / f"{clip.name}.h5", tmp_path / "both" / f"{clip.name}.h5"
    flow = [clip.flow(t) for t in range(3)]
    datasets.write_clip_cache(one, {"flow": flow}, len(clip), {})
    with pytest.raises(ValueError, match="a cache without backward_flow; precompute flow both ways"):
        with_flow_from(clip, one.parent)
    datasets.write_clip_cache(both, {"flow": flow, "backward_flow": [clip.backward_flow(t) for t in (1, 2, 3)]},
                              len(clip), {})
    torch.testing.assert_close(read_flow_both_ways(both, 2), flow_both_ways(clip, 2), rtol=0, atol=0.01)


def test_one_frame_has_no_flow(clip, tmp_path):
    with pytest.raises(ValueError, match="has 1 frame, and so no flow"):
        write_composite_flow(clip.part(0, 1), tmp_path / "one.h5")
    assert list(tmp_path.iterdir()) == []


def test_wrong_files_are_named(clip, path, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file .*none\.h5"):
        with_composite_flow(clip, tmp_path / "none.h5")
    with pytest.raises(ValueError, match=r"lab\.h5: expected flows of shape \(2, 24, 36, 2\) for the 3 frames of"):
        with_composite_flow(clip.part(0, 3), path)
    with h5py.File(path, "a") as file:
        del file["inv_flows"]
    with pytest.raises(ValueError, match=r"lab\.h5: expected inv_flows of shape \(3, 24, 36, 2\) .*, got none"):
        with_composite_flow(clip, path)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match=r"lab\.h5: not a whole HDF5 file"):
        with_composite_flow(clip, path)


def test_flow_that_is_not_finite_is_named_when_it_is_read(clip, path):
    with h5py.File(path, "a") as file:
        file["inv_flows"][1, 0, 0, 0] = np.nan
    read = with_composite_flow(clip, path)
    read.backward_flow(1)
    with pytest.raises(ValueError, match=r"lab\.h5: inv_flows, frame 2: expected finite flow"):
        read.backward_flow(2)


def test_nothing_is_left_where_a_clip_lacks_the_way_back(clip, tmp_path):
    one_way = datasets.Clip("lab", clip.size, {"frame": clip.frame, "flow": clip.flow}, len(clip))
    with pytest.raises(LookupError, match="has no backward_flow"):
        write_composite_flow(one_way, tmp_path / "a.h5")
    assert list(tmp_path.iterdir()) == []
