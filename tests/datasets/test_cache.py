"""The cache of a clip: round trips, rounding, whole or not at all, broken files, forked readers."""

import itertools
import os
import signal
import subprocess
import sys

import h5py
import numpy as np
import pytest
import torch

from diffslic.datasets.cache import cached_clip, is_current, write_clip_cache
from diffslic.datasets.clip import Clip

LENGTH, SIZE = 4, (6, 8)
CONFIGURATION = {"network": "small", "iterations": 12, "lambda": 0.5, "layers": [1, 2]}


def _clip(length: int = LENGTH, size: tuple[int, int] = SIZE) -> Clip:
    return Clip("bear", size, {"frame": lambda t: torch.zeros(3, *size)}, length)


def _fields() -> dict[str, list[torch.Tensor]]:
    torch.manual_seed(0)
    return {"flow": list(torch.randn(LENGTH - 1, 2, *SIZE) * 30),
            "backward_flow": list(torch.randn(LENGTH - 1, 2, *SIZE) * 30),
            "superpixel_labels": list(torch.randint(0, 40000, (LENGTH, *SIZE))),
            "superpixel_vectors": list(torch.randn(LENGTH, 5, 3))}


def _write(path, length=LENGTH, attributes=CONFIGURATION, **changes):
    fields = {**_fields(), **changes}
    write_clip_cache(path, {name: iter(values) for name, values in fields.items()}, length, attributes)
    return fields


def test_what_is_written_is_read(tmp_path):
    fields = _write(tmp_path / "bear.h5")
    clip = cached_clip(_clip(), tmp_path / "bear.h5")
    for t in range(LENGTH - 1):
        assert (clip.flow(t) - fields["flow"][t]).abs().max() <= 0.5 / 64
        assert (clip.backward_flow(t + 1) - fields["backward_flow"][t]).abs().max() <= 0.5 / 64
    for t in range(LENGTH):
        assert torch.equal(clip.superpixel_labels(t), fields["superpixel_labels"][t])
        torch.testing.assert_close(clip.superpixel_vectors(t), fields["superpixel_vectors"][t], rtol=2**-11, atol=0)
    assert clip.flow(0).dtype == clip.superpixel_vectors(0).dtype == torch.float32
    assert clip.superpixel_labels(0).dtype == torch.int64
    for kind, t in (("flow", LENGTH - 1), ("backward_flow", 0)):
        with pytest.raises(IndexError):
            getattr(clip, kind)(t)


def test_storage_is_one_compressed_chunk_per_frame(tmp_path):
    _write(tmp_path / "a.h5")
    with h5py.File(tmp_path / "a.h5") as file:
        flow = file["flow"]
        assert (flow.dtype, flow.shape, flow.chunks) == (np.int16, (3, 2, 6, 8), (1, 2, 6, 8))
        assert (flow.compression, flow.compression_opts, flow.shuffle) == ("gzip", 4, True)
        assert file["superpixel_labels"].dtype == np.uint16 and file["superpixel_vectors"].dtype == np.float16


def test_long_flow_saturates(tmp_path):
    flow = torch.tensor([-9000.0, -511.984375, 511.984375, 1e6]).reshape(1, 1, 2, 2).expand(2, 2, 2, 2)
    write_clip_cache(tmp_path / "a.h5", {"flow": flow}, 3, {})
    read = cached_clip(_clip(3, (2, 2)), tmp_path / "a.h5").flow(1)
    assert read[0].flatten().tolist() == [-511.984375, -511.984375, 511.984375, 511.984375]


def test_fields_are_drawn_in_turn_so_one_producer_can_feed_several(tmp_path):
    alive = []

    def produce():
        for t in range(LENGTH):
            alive.append(t)
            yield torch.full(SIZE, t), torch.full((5, 3), float(t))

    first, second = itertools.tee(produce())
    ahead = []

    def vectors():
        for _, value in second:
            ahead.append(len(alive) - 1 - int(value[0, 0]))
            yield value

    write_clip_cache(tmp_path / "a.h5", {"superpixel_labels": (labels for labels, _ in first),
                                         "superpixel_vectors": vectors()}, LENGTH, {})
    assert ahead == [0] * LENGTH


def test_is_current_compares_configuration_and_length(tmp_path):
    path = tmp_path / "a.h5"
    assert not is_current(path, CONFIGURATION, LENGTH)
    _write(path)
    assert is_current(path, CONFIGURATION, LENGTH)
    assert is_current(path, {**CONFIGURATION, "layers": (1, 2)}, LENGTH)  # JSON knows no tuples
    assert not is_current(path, {**CONFIGURATION, "iterations": 11}, LENGTH)
    assert not is_current(path, CONFIGURATION, LENGTH + 1)


def test_a_cut_or_foreign_file_is_named(tmp_path):
    path = tmp_path / "a.h5"
    _write(path)
    content = path.read_bytes()
    path.write_bytes(content[:len(content) // 2])
    assert not is_current(path, CONFIGURATION, LENGTH)
    with pytest.raises(ValueError, match=r"a.h5: not a whole HDF5 file \(.*truncated"):
        cached_clip(_clip(), path)
    (tmp_path / "b.h5").write_text("text")
    with pytest.raises(ValueError, match="b.h5: not a whole HDF5 file"):
        cached_clip(_clip(), tmp_path / "b.h5")
    with h5py.File(tmp_path / "c.h5", "w") as file:
        file["x"] = 1
    with pytest.raises(ValueError, match="c.h5: an HDF5 file, but not a cache"):
        cached_clip(_clip(), tmp_path / "c.h5")
    assert not is_current(tmp_path / "c.h5", CONFIGURATION, LENGTH)
    with pytest.raises(FileNotFoundError, match="no file .*none.h5"):
        cached_clip(_clip(), tmp_path / "none.h5")


def test_a_damaged_frame_is_named_when_it_is_read(tmp_path):
    path = tmp_path / "a.h5"
    _write(path)
    with h5py.File(path) as file:
        chunk = file["flow"].id.get_chunk_info(1)
    content = bytearray(path.read_bytes())
    content[chunk.byte_offset:chunk.byte_offset + chunk.size] = b"\0" * chunk.size
    path.write_bytes(content)
    clip = cached_clip(_clip(), path)
    clip.flow(0)
    with pytest.raises(ValueError, match="a.h5: not a whole HDF5 file"):
        clip.flow(1)


def test_a_cache_of_another_clip_is_refused(tmp_path):
    _write(tmp_path / "a.h5")
    with pytest.raises(ValueError, match="a.h5: made for 4 frames, clip 'bear' has 5"):
        cached_clip(_clip(5), tmp_path / "a.h5")
    with pytest.raises(ValueError, match=r"a.h5: flow is \(6, 8\) \(rows, columns\), clip 'bear' is \(6, 9\)"):
        cached_clip(_clip(size=(6, 9)), tmp_path / "a.h5")


@pytest.mark.parametrize(("changes", "message"), [
    ({"flow": []}, "expected 3 frames of flow, got 0"),
    ({"superpixel_labels": [torch.zeros(SIZE).long()] * 5}, "expected 4 frames of superpixel_labels .* got more"),
    ({"flow": [torch.zeros(2, 6, 8), torch.zeros(2, 6, 7)]}, r"flow, item 1: expected shape \(2, 6, 8\) as before"),
    ({"flow": [torch.full((2, 6, 8), float("nan"))]}, "flow, item 0: flow must be finite"),
    ({"superpixel_labels": [torch.full(SIZE, 70000)]}, "superpixels are numbered 0..65535, got 70000..70000"),
    ({"superpixel_vectors": [torch.full((5, 3), 1e5)]}, "within float16"),
    ({"depth": []}, "a cache holds flow, .* got 'depth'"),
])
def test_bad_fields_are_refused_and_leave_nothing(tmp_path, changes, message):
    with pytest.raises(ValueError, match=f"a.h5: .*{message}"):
        _write(tmp_path / "a.h5", **changes)
    assert list(tmp_path.iterdir()) == []


def test_a_cache_without_fields_is_refused(tmp_path):
    with pytest.raises(ValueError, match="a cache holds"):
        write_clip_cache(tmp_path / "a.h5", {}, 3, {})


def test_no_place_to_write(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="cannot write .*a.h5"):
        _write(tmp_path / "file" / "a.h5")


def test_a_killed_writer_keeps_the_old_cache_and_a_rerun_cleans_up(tmp_path):
    path = tmp_path / "a.h5"
    _write(path)
    program = ("import sys, time, torch; from diffslic.datasets.cache import write_clip_cache\n"
               "def flow():\n    yield torch.ones(2, 6, 8); print('half', flush=True); time.sleep(60)\n"
               "write_clip_cache(sys.argv[1], {'flow': flow()}, 4, {})")
    with subprocess.Popen([sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout.readline() == "half\n"
        os.kill(writer.pid, signal.SIGKILL)
    assert len(list(tmp_path.iterdir())) == 2 and is_current(path, CONFIGURATION, LENGTH)
    _write(path, attributes={"rerun": True})
    assert list(tmp_path.iterdir()) == [path] and is_current(path, {"rerun": True}, LENGTH)


class _Flows(torch.utils.data.Dataset):
    def __init__(self, clip: Clip) -> None:
        self.clip = clip

    def __len__(self) -> int:
        return len(self.clip) - 1

    def __getitem__(self, t: int) -> torch.Tensor:
        return self.clip.flow(t)


def test_forked_workers_read_the_same(tmp_path):
    _write(tmp_path / "a.h5")
    clip = cached_clip(_clip(), tmp_path / "a.h5")
    alone = torch.stack([clip.flow(t) for t in range(LENGTH - 1)])
    loader = torch.utils.data.DataLoader(_Flows(clip), batch_size=LENGTH - 1, num_workers=2,
                                         multiprocessing_context="fork")
    assert torch.equal(next(iter(loader)), alone)
