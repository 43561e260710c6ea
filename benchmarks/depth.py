"""How good depth from flow is, and what superpixels and more frames bring. Six tables:

1. Still scenes at 480x640 with a focal length of 320 px, three of each kind: exact flow, and flow with noise of 0.5 px,
   for a camera that goes sideways, forwards, and turns too; the error that sigma predicts beside the one that is. How
   large the errors are is a matter of how far away things are, which differs from scene to scene.
2. The mean of the depths of the two components, a published shortcut, beside least squares, on the same exact flow.
3. TartanAir's frames (of the folder that DIFFSLIC_REFERENCE names) with the shipped RAFT: one pair, planes per
   superpixel, pairs with four frames fused, both; all at the same coverage, the pixels that each is surest of.
4. When planes are better than pixels: on scenes, by how many pixels a superpixel has and how noisy the flow is.
5. The Motorcycle stereo pair of scikit-image, by RAFT's flow and each way to polish it.
6. The same of six static scenes, frame 0 and frame 4, and of frame 2 fused with the others.

    python benchmarks/depth.py
"""

import os
import statistics
from pathlib import Path

import torch
from skimage import data
from torch import Tensor

from diffslic import datasets, depth, geometry, metrics, pipeline
from diffslic.flow import POLISHES, RAFT, polish
from diffslic.superpixels import SSN

CAMERA = torch.tensor([[320., 0, 319.5], [0, 320, 239.5], [0, 0, 1]])
NOISE, MIN_PARALLAX = 0.5, 2.0  # pixels
COVERAGE = 0.6  # of the pixels with a true depth
SKY = 1000.0  # metres


def a_pose(turn: list[float], step: list[float]) -> Tensor:
    pose = torch.eye(4, dtype=torch.float64)
    pose[:3, :3] = geometry.axis_angle_to_matrix(torch.tensor(turn, dtype=torch.float64))
    pose[:3, 3] = torch.tensor(step)
    return pose


MOTIONS = {"sideways": a_pose([0, 0, 0], [-0.3, 0, 0]), "forwards": a_pose([0, 0, 0], [0, 0, -0.4]),
           "turning": a_pose([0.05, 0.1, -0.1], [-0.3, 0.1, -0.2])}


def scene_depth(preset: str, seed: int) -> tuple[Tensor, Tensor]:
    """Depth (1, 1, 480, 640) and image (1, 3, 480, 640) of a scene."""
    clip = datasets.open("scenes", preset=preset, n_clips=1, n_frames=2, size=(480, 640), seed=500_000 + seed)[0]
    return clip.depth(0)[None], clip.frame(0)[None]


def exact_and_noisy() -> None:
    print("three scenes of each kind: worst AbsRel of exact flow; with noise of 0.5 px AbsRel of each, their mean\n"
          "coverage, and true over predicted error")
    chance = torch.Generator().manual_seed(0)
    for preset in ("lab", "street", "crowd", "static"):
        truths = [scene_depth(preset, seed)[0] for seed in (1, 2, 3)]
        for name, pose in MOTIONS.items():
            exact, noisy, claims = [], [], []
            for z in truths:
                flow = geometry.flow_from_depth(z.double(), CAMERA.double(), pose).float()
                found = depth.from_flow(flow, CAMERA, pose, min_parallax=MIN_PARALLAX)
                exact.append(metrics.depth(found.depth, z)["abs_rel"])
                found = depth.from_flow(flow + NOISE * torch.randn(flow.shape, generator=chance), CAMERA, pose,
                                        noise=NOISE, min_parallax=MIN_PARALLAX)
                noisy.append(metrics.depth(found.depth, z))
                claims.append(float(((found.depth - z) / found.sigma)[found.valid].abs().median() / 0.6745))
            print(f"{preset:7} {name:9} {max(exact):.1e}  " + " ".join(f"{e['abs_rel']:.4f}" for e in noisy)
                  + f"  ({statistics.mean(e['coverage'] for e in noisy):.2f})  "
                  + " ".join(f"{claim:.2f}" for claim in claims))


def by_components() -> None:
    z, _ = scene_depth("lab", 1)
    print("\nAbsRel of exact flow: mean of the depths of both components, least squares")
    for name, pose in MOTIONS.items():
        flow = geometry.flow_from_depth(z.double(), CAMERA.double(), pose)
        grid = geometry.pixel_grid(480, 640, dtype=torch.float64)
        rays = torch.linalg.solve(CAMERA.double(), torch.cat([grid, torch.ones_like(grid[:1])]).flatten(1))
        ends = torch.cat([grid + flow[0], torch.ones_like(grid[:1])]).flatten(1)
        seen = torch.linalg.solve(CAMERA.double(), ends)[:2]
        turned = pose[:3, :3] @ rays
        a, b = turned[:2] - seen * turned[2], pose[:2, 3:] - seen * pose[2, 3]
        # What two components at float32 give: a component without parallax divides noise by noise.
        mean = (-b.float() / a.float()).mean(0).reshape(z.shape)
        both = depth.linear_depth(flow, CAMERA, pose)
        sure = depth.from_flow(flow, CAMERA, pose, min_parallax=MIN_PARALLAX).valid
        print(f"{name:9} {metrics.depth(mean.clamp(-1e4, 1e4), z, sure)['abs_rel']:.2f} on "
              f"{metrics.depth(mean.clamp(-1e4, 1e4), z, sure)['coverage']:.2f}, "
              f"{metrics.depth(both, z, sure)['abs_rel']:.1e} on {metrics.depth(both, z, sure)['coverage']:.2f}")


def surest(estimate: depth.DepthEstimate, z: Tensor) -> tuple[float, float]:
    """AbsRel on the share COVERAGE of the pixels that the estimate is surest of, and the share that it has there."""
    known = z < SKY
    relative = (estimate.sigma / estimate.depth).where(estimate.valid & known, torch.inf).flatten()
    chosen = relative.topk(int(COVERAGE * known.sum()), largest=False).indices
    mask = torch.zeros_like(relative, dtype=torch.bool)
    mask[chosen] = True
    figures = metrics.depth(estimate.depth, z.where(known, 0), mask.view_as(known))
    return figures["abs_rel"], figures["coverage"]


def on_tartanair(raft: RAFT, ssn: SSN) -> None:
    root = os.environ.get("DIFFSLIC_REFERENCE")
    if not root:
        print("\nTartanAir: left out, since DIFFSLIC_REFERENCE names no folder")
        return
    clip = datasets.open("tartanair", root=Path(root) / "data/tartanair/trajectory")[0]
    print(f"\nTartanAir, AbsRel at {COVERAGE:.0%} coverage (less in brackets); parallax from 1 px")
    names = ("one pair", "planes", "fused", "fused planes")
    print(f"{'frame':>8}" + "".join(f"{name:>16}" for name in names))
    table: list[tuple[int, list[float]]] = []
    for t in range(len(clip)):
        z = clip.depth(t)[None]
        pair = pipeline.pair_depth(clip, t, t + 1 if t + 1 < len(clip) else t - 1, raft, min_parallax=1.0)
        fused = pipeline.frame_depth(clip, t, raft, (-2, -1, 1, 2), min_parallax=1.0)
        planes = ssn(clip.frame(t)[None], 400)
        found = (pair, depth.by_superpixels(pair, planes), fused, depth.by_superpixels(fused, planes))
        row = [surest(estimate, z) for estimate in found]
        if all(c >= COVERAGE - 0.01 for _, c in row):
            table.append((t, [error for error, _ in row]))
        cells = [f"{e:.3f}" + (f" ({c:.2f})" if c < COVERAGE - 0.01 else "") for e, c in row]
        print(f"{clip.frame_name(t):>8}" + "".join(f"{cell:>16}" for cell in cells))
    for name, of_half in (("1st half", lambda t: t < len(clip) // 2), ("2nd half", lambda t: t >= len(clip) // 2)):
        rows = [row for t, row in table if of_half(t)]
        print(f"{name:>8}" + "".join(f"{statistics.mean(column):16.3f}" for column in zip(*rows))
              + f"   ({len(rows)} frames where all have that coverage)")


def planes_or_pixels(ssn: SSN) -> None:
    print("\nAbsRel of planes over AbsRel of pixels, by the noise of the flow (px) and the superpixels of 480x640")
    chance = torch.Generator().manual_seed(0)
    counts = (100, 400, 1600)
    print(f"{'noise':>6}" + "".join(f"{count:>8}" for count in counts) + "   pixels alone")
    pose = MOTIONS["turning"]
    for noise in (0.02, 0.1, 0.5, 2.0):
        ratios: dict[int, list[float]] = {count: [] for count in counts}
        alone = []
        for preset in ("lab", "street"):
            z, image = scene_depth(preset, 2)
            flow = geometry.flow_from_depth(z, CAMERA, pose.float())
            # Errors of a flow are alike among neighbours: the noise is smooth over four pixels.
            error = torch.nn.functional.interpolate(torch.randn(1, 2, 120, 160, generator=chance), scale_factor=4,
                                                    mode="bilinear")
            pixels = depth.from_flow(flow + noise / error.std() * error, CAMERA, pose, noise=noise)
            alone.append(metrics.depth(pixels.depth, z)["abs_rel"])
            for count in counts:
                planes = depth.by_superpixels(pixels, ssn(image, count))
                both = pixels.valid & planes.valid
                ratios[count].append(metrics.depth(planes.depth, z, both)["abs_rel"]
                                     / metrics.depth(pixels.depth, z, both)["abs_rel"])
        print(f"{noise:6.2f}" + "".join(f"{statistics.mean(values):8.2f}" for values in ratios.values())
              + f"   {statistics.mean(alone):.4f}")


def motorcycle(raft: RAFT) -> None:
    left, right, disparity = data.stereo_motorcycle()
    views = [torch.from_numpy(x).permute(2, 0, 1)[None].float() / 255 for x in (left, right)]
    truth = torch.from_numpy(disparity)
    plain = raft(*views)
    print("\nMotorcycle: relative error of the disparity by polish, median and mean")
    for way in POLISHES:
        miss = ((polish(*views, plain, way)[0, 0] + truth) / truth).abs()[truth.isfinite()]
        print(f"{way:12} {miss.median():.4f} {miss.mean():.4f}")


def by_polish(raft: RAFT) -> None:
    print("\nsix static scenes: AbsRel by polish, coverage, and median end-point error in px; AbsRel of frame 2,\n"
          "fused with the four others, where all have it")
    clips = datasets.open("scenes", preset="static", n_clips=6, n_frames=5, size=(240, 428), seed=670_000, lighting=0.1,
                          noise=0.01)
    rows: dict[str, list[tuple[float, float, float, float]]] = {way: [] for way in POLISHES}
    for clip in clips:
        images, z = [clip.frame(t)[None] for t in (0, 4)], clip.depth(0)[None]
        motion = geometry.second_from_first(*(clip.camera_to_world(t).double() for t in (0, 4)))
        truth, plain = geometry.flow_from_depth(z, clip.intrinsics, motion.float()), raft(*images)
        fused = {way: pipeline.frame_depth(clip, 2, raft, polished=way, min_parallax=1.0) for way in POLISHES}
        common = torch.stack([found.valid for found in fused.values()]).all(0)
        for way, figures in rows.items():
            flow = polish(*images, plain, way)
            score = metrics.depth(depth.from_flow(flow, clip.intrinsics, motion, min_parallax=1.0).depth, z)
            of_five = metrics.depth(fused[way].depth, clip.depth(2)[None], common)["abs_rel"]
            error = float((flow - truth).norm(dim=1).nanmedian())
            figures.append((score["abs_rel"], score["coverage"], error, of_five))
    for way, figures in rows.items():
        print(f"{way:12}" + "".join(f"{statistics.mean(column):8.3f}" for column in zip(*figures)))


def main() -> None:
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    raft, ssn = RAFT.from_pretrained("small"), SSN.from_pretrained("bsds500")
    exact_and_noisy()
    by_components()
    planes_or_pixels(ssn)
    motorcycle(raft)
    by_polish(raft)
    on_tartanair(raft, ssn)


if __name__ == "__main__":
    main()
