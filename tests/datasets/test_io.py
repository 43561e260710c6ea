"""Files: images of every mode, labels with the palette, flow and depth formats, errors, whole writes."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from diffslic.datasets import io as files


def _levels(rows: int, columns: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (rows, columns, channels), dtype=np.uint8)


# ---------------------------------------------------------------- images


def test_image_round_trip_is_exact_in_png(tmp_path):
    levels = _levels(7, 9)
    image = torch.from_numpy(levels).permute(2, 0, 1).float() / 255
    files.write_image(tmp_path / "a.png", image)
    read = files.read_image(tmp_path / "a.png")
    assert read.shape == (3, 7, 9) and read.dtype == torch.float32
    assert torch.equal(read, image)
    assert files.image_size(tmp_path / "a.png") == (7, 9)


def test_every_mode_becomes_rgb(tmp_path):
    levels = _levels(5, 6)
    rgb = torch.from_numpy(levels).permute(2, 0, 1).float() / 255
    grey = torch.from_numpy(levels[..., 0]).float() / 255
    alpha = np.full((5, 6, 1), 100, np.uint8)
    Image.fromarray(np.concatenate([levels, alpha], 2)).save(tmp_path / "rgba.png")
    Image.fromarray(levels[..., 0]).save(tmp_path / "grey.png")
    Image.fromarray(np.concatenate([levels[..., :1], alpha], 2)).save(tmp_path / "grey_alpha.png")
    Image.fromarray(levels[..., 0].astype(np.uint16) * 257).save(tmp_path / "grey16.png")
    palette = Image.fromarray(levels[..., 0])
    palette.putpalette(np.stack([np.arange(256)] * 3, 1).astype(np.uint8).tobytes())
    palette.save(tmp_path / "palette.png")
    Image.fromarray(levels).save(tmp_path / "a.ppm")
    assert torch.equal(files.read_image(tmp_path / "rgba.png"), rgb)
    assert torch.equal(files.read_image(tmp_path / "a.ppm"), rgb)
    for name in ("grey", "grey_alpha", "palette"):
        assert torch.equal(files.read_image(tmp_path / f"{name}.png"), grey.expand(3, -1, -1)), name
    torch.testing.assert_close(files.read_image(tmp_path / "grey16.png"), grey.expand(3, -1, -1), atol=1e-7, rtol=0)


def test_a_camera_held_upright_is_turned(tmp_path):
    picture = Image.fromarray(_levels(4, 8))
    exif = picture.getexif()
    exif[0x0112] = 6  # the picture is to be shown turned by 90 degrees
    picture.save(tmp_path / "phone.jpg", exif=exif)
    assert files.image_size(tmp_path / "phone.jpg") == (8, 4)
    assert files.read_image(tmp_path / "phone.jpg").shape == (3, 8, 4)


def test_broken_images_name_the_file(tmp_path):
    files.write_image(tmp_path / "a.png", torch.rand(3, 64, 64))
    content = (tmp_path / "a.png").read_bytes()
    (tmp_path / "short.png").write_bytes(content[:len(content) // 2])
    (tmp_path / "text.png").write_text("not an image")
    with pytest.raises(ValueError, match=r"short.png: not a whole image file \(.*truncated"):
        files.read_image(tmp_path / "short.png")
    with pytest.raises(ValueError, match="short.png: not a whole image"):
        files.read_labels(tmp_path / "short.png")
    with pytest.raises(ValueError, match="text.png: not a whole image"):
        files.read_image(tmp_path / "text.png")
    with pytest.raises(FileNotFoundError, match="no image .*none.png"):
        files.read_image(tmp_path / "none.png")
    Image.fromarray(np.zeros((2, 2), np.float32)).save(tmp_path / "float.tif")
    with pytest.raises(ValueError, match="float.tif: expected an image of 8 or 16 bits"):
        files.read_image(tmp_path / "float.tif")


def test_a_folder_is_no_image(tmp_path):
    with pytest.raises(ValueError, match="a folder, expected an image file"):
        files.read_image(tmp_path)


def test_write_image_guards_shape_and_clamps(tmp_path):
    with pytest.raises(ValueError, match=r"\(3, H, W\) or \(4, H, W\), got \(1, 4, 4\)"):
        files.write_image(tmp_path / "a.png", torch.zeros(1, 4, 4))
    files.write_image(tmp_path / "a.png", torch.tensor([-1.0, 0.5, 2.0]).reshape(3, 1, 1))
    assert (files.read_image(tmp_path / "a.png").flatten() * 255).tolist() == [0, 128, 255]
    files.write_image(tmp_path / "b.png", torch.tensor([1.0, 0.5, 0.0, 0.25]).reshape(4, 1, 1))
    with Image.open(tmp_path / "b.png") as layer:
        assert layer.mode == "RGBA" and layer.getpixel((0, 0)) == (255, 128, 0, 64)


# ---------------------------------------------------------------- labels


def test_palette_is_voc():
    assert files.PALETTE[[0, 1, 2, 3, 8, 255]].tolist() == [
        [0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0], [64, 0, 0], [224, 224, 192]]
    assert len(np.unique(files.PALETTE, axis=0)) == 256


def test_segments_round_trip_in_16_bits(tmp_path):
    labels = torch.tensor([[0, 1, 255], [256, 40000, 65535]])
    files.write_segments(tmp_path / "a.png", labels)
    assert torch.equal(files.read_labels(tmp_path / "a.png"), labels)
    for wrong in (labels + 1, -labels, labels.float(), labels[0]):
        with pytest.raises(ValueError, match="b.png"):
            files.write_segments(tmp_path / "b.png", wrong)
    assert not (tmp_path / "b.png").exists()


def test_labels_round_trip_keeps_every_id(tmp_path):
    labels = torch.arange(256).reshape(16, 16)
    files.write_labels(tmp_path / "a.png", labels)
    read = files.read_labels(tmp_path / "a.png")
    assert read.dtype == torch.int64 and torch.equal(read, labels)
    with Image.open(tmp_path / "a.png") as image:
        assert image.mode == "P" and image.convert("RGB").getpixel((15, 15)) == (224, 224, 192)


def test_labels_of_other_modes(tmp_path):
    labels = torch.tensor([[0, 1, 2], [5, 20, 255]])
    colours = files.PALETTE[labels.numpy()]
    opaque = np.full((2, 3, 1), 255, np.uint8)
    Image.fromarray(labels.byte().numpy()).save(tmp_path / "L.png")
    Image.fromarray(np.concatenate([labels.byte().numpy()[..., None], opaque], 2)).save(tmp_path / "LA.png")
    Image.fromarray(colours).save(tmp_path / "RGB.png")
    Image.fromarray(np.concatenate([colours, opaque], 2)).save(tmp_path / "RGBA.png")
    for mode in ("L", "LA", "RGB", "RGBA"):
        assert torch.equal(files.read_labels(tmp_path / f"{mode}.png"), labels), mode
    Image.fromarray(labels.numpy() > 4).save(tmp_path / "1.png")
    assert torch.equal(files.read_labels(tmp_path / "1.png"), (labels > 4).long())
    Image.fromarray(labels.numpy().astype(np.uint16) * 200).save(tmp_path / "I16.png")
    assert torch.equal(files.read_labels(tmp_path / "I16.png"), labels * 200)


def test_labels_guards(tmp_path):
    Image.fromarray(np.full((2, 2, 3), 77, np.uint8)).save(tmp_path / "photo.png")
    with pytest.raises(ValueError, match="photo.png: colour #4d4d4d .* is not in the VOC palette"):
        files.read_labels(tmp_path / "photo.png")
    Image.fromarray(np.zeros((2, 2, 3), np.uint8)).convert("CMYK").save(tmp_path / "print.tif")
    with pytest.raises(ValueError, match="print.tif: labels must be .* got mode CMYK"):
        files.read_labels(tmp_path / "print.tif")
    with pytest.raises(ValueError, match=r"a.png: a palette png holds ids 0..255, got 0..256"):
        files.write_labels(tmp_path / "a.png", torch.tensor([[0, 256]]))
    with pytest.raises(ValueError, match=r"\(H, W\) integers"):
        files.write_labels(tmp_path / "a.png", torch.zeros(2, 2))
    assert not (tmp_path / "a.png").exists()


# ---------------------------------------------------------------- flow


def _flow(rows: int = 5, columns: int = 7) -> torch.Tensor:
    return torch.randn(2, rows, columns, generator=torch.Generator().manual_seed(0)) * 20


@pytest.mark.parametrize("suffix", ["flo", "pfm", "npy"])
def test_flow_round_trip(tmp_path, suffix):
    flow, path = _flow(), tmp_path / f"a.{suffix}"
    if suffix == "flo":
        files.write_flo(path, flow)
    elif suffix == "pfm":
        files.write_pfm(path, torch.cat([flow, torch.zeros(1, 5, 7)]))
    else:
        files.write_npy(path, flow.permute(1, 2, 0).numpy())
    read = files.read_flow(path)
    assert torch.equal(read.flow, flow) and read.valid.shape == (5, 7) and read.valid.all()


def test_unknown_and_not_a_number_are_not_valid(tmp_path):
    flow = _flow()
    flow[0, 1, 2], flow[1, 3, 4] = 1.7e9, float("nan")
    files.write_flo(tmp_path / "a.flo", flow)
    read = files.read_flow(tmp_path / "a.flo")
    assert (~read.valid).nonzero().tolist() == [[1, 2], [3, 4]]
    assert read.flow[0, 1, 2] == flow[0, 1, 2]


def test_kitti_png_round_trip_and_range(tmp_path):
    flow = (_flow() * 64).round() / 64
    flow[:, 0, 0], flow[:, 0, 1] = -512, 511.984375
    valid = torch.ones(5, 7, dtype=torch.bool)
    valid[2, 3] = False
    flow[:, 2, 3] = float("nan")  # what is not valid may be anything
    files.write_kitti_png(tmp_path / "a.png", flow, valid)
    read = files.read_flow(tmp_path / "a.png")
    assert torch.equal(read.valid, valid) and torch.equal(read.flow[:, valid], flow[:, valid])
    with pytest.raises(ValueError, match="b.png: a KITTI flow png holds -512 to 511.984 px, got up to 600.0"):
        files.write_kitti_png(tmp_path / "b.png", torch.full((2, 3, 3), 600.0))
    with pytest.raises(ValueError, match=r"valid is \(3, 4\) but the flow is \(5, 7\)"):
        files.write_kitti_png(tmp_path / "b.png", flow, torch.ones(3, 4))


def test_broken_flow_names_the_file(tmp_path):
    files.write_flo(tmp_path / "a.flo", _flow())
    content = (tmp_path / "a.flo").read_bytes()
    broken = {"magic.flo": (b"XXXX" + content[4:], r"begins with b'PIEH' \(202021.25\), got b'XXXX'"),
              "short.flo": (content[:-8], "a .flo file of 7x5 pixels has 292 bytes, got 284"),
              "long.flo": (content + b"more", "has 292 bytes, got 296"),
              "head.flo": (content[:7], "header has 12 bytes, the file has 7"),
              "empty.flo": (b"", "got b''"),
              "a.pfm": (b"P6\n1 1\n255\n", "begins with PF or Pf"),
              "short.pfm": (b"Pf\n4 4\n-1.0\n1234", "are 64 bytes, got 4"),
              "grey.pfm": (b"Pf\n1 1\n-1.0\n1234", "three channels"),
              "a.npy": (b"\x93NUMPY", "not a whole .npy array"),
              "a.mat": (b"x", "not from '.mat'")}
    for name, (content, message) in broken.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"{name}: .*{message}"):
            files.read_flow(tmp_path / name)
    files.write_npy(tmp_path / "depth.npy", np.zeros((4, 5), np.float32))
    with pytest.raises(ValueError, match=r"depth.npy: flow in a .npy is \(H, W, 2\), got \(4, 5\)"):
        files.read_flow(tmp_path / "depth.npy")
    files.write_image(tmp_path / "photo.png", torch.rand(3, 4, 4))
    with pytest.raises(ValueError, match="photo.png: flow in a png has three channels of 16 bits"):
        files.read_flow(tmp_path / "photo.png")
    with pytest.raises(ValueError, match=r"\(2, H, W\), got \(3, 4, 4\)"):
        files.write_flo(tmp_path / "b.flo", torch.zeros(3, 4, 4))
    for name in ("none.flo", "none.npy", "none.png", "none.pfm"):
        with pytest.raises(FileNotFoundError, match=name):
            files.read_flow(tmp_path / name)


def test_arrays_with_objects_are_refused(tmp_path):
    buffer = io.BytesIO()
    np.save(buffer, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    (tmp_path / "objects.npy").write_bytes(buffer.getvalue())
    with pytest.raises(ValueError, match="objects.npy: not a whole .npy array"):
        files.read_npy(tmp_path / "objects.npy")
    np.savez(tmp_path / "two.npz", a=np.zeros(2))
    with pytest.raises(ValueError, match="two.npz: expected one .npy array"):
        files.read_npy(tmp_path / "two.npz")


def test_reference_flow_files_bit_for_bit(tmp_path, reference):
    data = np.load(reference / "reference/flow/flowio_files.npz")
    for name in ("flo", "flo_thin"):
        path = tmp_path / f"{name}.flo"
        path.write_bytes(data[f"{name}_bytes"].tobytes())
        read = files.read_flow(path)
        stored = read.flow.permute(1, 2, 0).contiguous().numpy()
        assert stored.tobytes() == data[f"{name}_flow"].tobytes()
        assert torch.equal(read.valid, torch.from_numpy((np.abs(data[f"{name}_flow"]) <= 1e9).all(-1)))
        files.write_flo(path, read.flow)
        assert path.read_bytes() == data[f"{name}_bytes"].tobytes()


def test_reference_kitti_files(tmp_path, reference):
    data = np.load(reference / "reference/flow/flowio_files.npz")
    path, valid = tmp_path / "a.png", data["kitti_valid"].astype(bool)
    for name in ("kitti_png_bytes", "kitti_png_allfilters_bytes"):
        path.write_bytes(data[name].tobytes())
        assert np.array_equal(files.read_levels(path), data["kitti_raw"])
        read = files.read_flow(path)
        assert np.array_equal(read.valid.numpy(), valid)
        assert np.array_equal(read.flow.permute(1, 2, 0).numpy()[valid], data["kitti_flow"][valid])
    files.write_kitti_png(path, torch.from_numpy(data["kitti_flow"]).permute(2, 0, 1), torch.from_numpy(valid))
    assert np.array_equal(files.read_levels(path), data["kitti_raw"])
    offgrid = torch.from_numpy(data["kitti_offgrid_flow"]).permute(2, 0, 1)
    files.write_kitti_png(path, offgrid, torch.from_numpy(data["kitti_offgrid_raw_round"][..., 2] > 0))
    assert np.array_equal(files.read_levels(path), data["kitti_offgrid_raw_round"])


def test_real_flow_and_mask_files(reference):
    path = reference / "data/flow/rubberwhale/flow10.flo"
    whale, stored = files.read_flow(path), np.fromfile(path, "<f4")[3:].reshape(388, 584, 2)
    assert np.array_equal(whale.flow.numpy(), stored.transpose(2, 0, 1))
    assert np.array_equal(whale.valid.numpy(), (stored < 1e9).all(-1)) and not whale.valid.all()
    assert whale.flow[:, whale.valid].abs().max() < 10
    weights = files.read_pfm(reference / "data/flow/tiny/0000000-occ_weights_01.pfm")
    with Image.open(reference / "data/flow/tiny/0000000-occ_weights_01.pfm") as other:
        assert np.array_equal(weights[0].numpy(), np.asarray(other))
    mask = files.read_labels(reference / "data/DAVIS2016/edge_LA_mask_bear_00077.png")
    assert mask.shape == (480, 854) and mask.unique().tolist() == [0, 255]
    wide = next((reference / "data/davis2017_format/predictions").glob("*/bike-packing/00000.png"))
    assert files.read_labels(wide).shape == (480, 910)


# ---------------------------------------------------------------- pfm and depth


@pytest.mark.parametrize("channels", [1, 3])
def test_pfm_of_both_byte_orders(tmp_path, channels):
    values = torch.randn(channels, 4, 6)
    files.write_pfm(tmp_path / "a.pfm", values)
    assert torch.equal(files.read_pfm(tmp_path / "a.pfm"), values)
    big = values.permute(1, 2, 0).numpy()[::-1].astype(">f4").tobytes()
    (tmp_path / "b.pfm").write_bytes((b"PF" if channels == 3 else b"Pf") + b"\n6 4\n1.0\n" + big)
    assert torch.equal(files.read_pfm(tmp_path / "b.pfm"), values)
    with pytest.raises(ValueError, match=r"got \(2, 4, 6\)"):
        files.write_pfm(tmp_path / "c.pfm", torch.zeros(2, 4, 6))


def test_depth_formats(tmp_path):
    depth = torch.rand(1, 4, 6) * 50
    files.write_npy(tmp_path / "a.npy", depth[0].numpy())
    files.write_pfm(tmp_path / "a.pfm", depth)
    Image.fromarray((depth[0] * 256).round().numpy().astype(np.uint16)).save(tmp_path / "a.png")
    assert torch.equal(files.read_depth(tmp_path / "a.npy"), depth)
    assert torch.equal(files.read_depth(tmp_path / "a.pfm"), depth)
    assert (files.read_depth(tmp_path / "a.png", png_unit=1 / 256) - depth).abs().max() <= 0.5 / 256 + 1e-6
    files.write_npy(tmp_path / "b.npy", np.zeros((4, 6, 2)))
    files.write_pfm(tmp_path / "b.pfm", torch.zeros(3, 4, 6))
    for name in ("b.npy", "b.pfm"):
        with pytest.raises(ValueError, match=rf"{name}: depth is \(H, W\)"):
            files.read_depth(tmp_path / name)
    with pytest.raises(ValueError, match="not from '.exr'"):
        files.read_depth(tmp_path / "a.exr")


def test_check_size_names_both(tmp_path):
    values = torch.zeros(2, 4, 6)
    assert files.check_size("a.flo", values, (4, 6), "its frame") is values
    with pytest.raises(ValueError, match=r"a.flo: expected 4x7 \(rows x columns\) as its frame has, got 4x6"):
        files.check_size("a.flo", values, (4, 7), "its frame")
