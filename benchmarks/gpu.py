"""Speed on a GPU: superpixels, flow, its polish and channels, coherence loss and scenes, beside plain forms.

Every contestant runs in turn, A B A B, between two events of the GPU's stream (on a CPU by the wall's clock); printed
are medians, throughput, how often the first contestant fits into the time, the memory that torch allocates during a
call, and the largest difference of any number from the first one's. Compilation and the capture of CUDA graphs come
before the first round and are not counted; a contestant that cannot run is named with the reason.

    superpixels  SSN with pixel features and with a network, images to labels; beside the usual formulation, which
                 gathers nine candidates of every pixel and multiplies sparse matrices
    flow         RAFT small and large over a video in float32 and with weights in bfloat16; beside torchvision's RAFT,
                 where it is installed, with the same weights and as many corrections
    polish       of a flow, beside OpenCV's on the host
    channels     what a U-Net sees of flow, and their gradient, a batch at once; beside frame by frame
    coherence    loss and gradient; beside the published formulation
    scenes       frames with all truths, one by one, eight at once, and on the CPU

float32 is what torch makes of it: its convolutions use TF32 on GPUs that have it.

    python benchmarks/gpu.py [--device cuda] [--json FILE] [--small] [--compile]
"""

import argparse
import math
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import coherence
from diffslic import hardware, report
from diffslic.datasets import scenes
from diffslic.flow import RAFT, RAFTConfig, polish
from diffslic.flow.correlation import Volume, correlation_pyramid
from diffslic.flow.released import own_keys
from diffslic.segmentation.inputs import checked_channels
from diffslic.superpixels import SSN, SSNConfig, grid_for, soft_slic
from diffslic.superpixels.slic import Cells, clustered
from diffslic.training import check_device, device_of
from measuring import device_growth, device_medians
from soft_slic import usual_soft_slic

N_SPIXELS = 400


class Sizes(NamedTuple):
    """How much is measured."""

    images: tuple[tuple[int, int], ...] = ((321, 481), (480, 854))
    frames: tuple[int, int] = (480, 856)  # torchvision's RAFT takes sides that are multiples of 8 only
    n_frames: int = 9
    n_iters: int = 12
    flow: tuple[int, int] = (128, 224)
    batch: int = 8
    scene: tuple[int, int] = (240, 428)
    rounds: int = 7


SMALL = Sizes(((64, 96),), (128, 128), 3, 2, (32, 56), 1, (48, 80), 2)


class Contest(NamedTuple):
    """What runs beside each other. The first contestant is what the others are held against."""

    what: str
    ways: dict[str, Callable[[], Any]]
    units: int  # images, pairs or frames of one call
    same: bool = True  # whether all should find the same numbers


class Bench:
    """Runs contests on one device and keeps what they found."""

    def __init__(self, device: str, sizes: Sizes) -> None:
        self.device, self.sizes = device, sizes
        self.rows: list[dict[str, Any]] = []
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)
        print(text, flush=True)

    def run(self, contest: Contest) -> None:
        """Warm up, compare, time in turn, print."""
        found, ways = {}, {}
        for name, way in contest.ways.items():
            try:
                way()
                found[name] = _clone(way())
                ways[name] = way
            except Exception as error:  # a compiler or a driver may fail in any way, and the others still count
                self.note(f"{contest.what}, {name}: did not run ({' '.join(str(error).split())[:200]})")
        seconds = device_medians(ways, self.sizes.rounds, self.device)
        first = next(iter(ways), None)
        for name, way in ways.items():
            row = {"what": contest.what, "contestant": name, "milliseconds": 1000 * seconds[name],
                   "per second": contest.units / seconds[name], "times as fast as the first": seconds[first]
                   / seconds[name], "memory, MB": device_growth(way, self.device),
                   "largest difference": _difference(found[name], found[first]) if contest.same else math.nan}
            self.rows.append(row)
            print("  ".join([f"{row['what']:28}  {name:26}",
                             *(f"{value:10.4g}" for value in row.values() if isinstance(value, float))]), flush=True)
        if len(ways) > 1:
            best = min(ways, key=seconds.__getitem__)
            self.note(f"{contest.what}: fastest is {best}, {seconds[first] / seconds[best]:.2f} times as fast as "
                      f"{first}")


def graphed(function: Callable[..., Any], *examples: Tensor) -> Callable[..., Any]:
    """The function as one CUDA graph, replayed on inputs of the examples' sizes; its outputs are written over."""
    inputs = [example.clone() for example in examples]
    side = torch.cuda.Stream(device=inputs[0].device)
    side.wait_stream(torch.cuda.current_stream(inputs[0].device))
    with torch.cuda.stream(side):
        for _ in range(3):
            function(*inputs)
    torch.cuda.current_stream(inputs[0].device).wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = function(*inputs)

    def replay(*given: Tensor) -> Any:
        for own, new in zip(inputs, given):
            own.copy_(new)
        graph.replay()
        return outputs

    return replay


def lazily(make: Callable[[], Callable[..., Any]]) -> Callable[..., Any]:
    """What ``make`` makes at the first call, so that a capture that fails is that contestant's failure alone."""
    made: list[Callable[..., Any]] = []

    def call(*arguments: Any) -> Any:
        if not made:
            made.append(make())
        return made[0](*arguments)

    return call


# ---------------------------------------------------------------- the contests


def superpixels(bench: Bench, compiled: bool) -> None:
    for name, config in (("SSN-pix", SSNConfig(features="pix", n_iters=10)), ("SSN-deep", SSNConfig(n_iters=10))):
        torch.manual_seed(0)
        net = SSN(config).eval().to(bench.device)
        for size in bench.sizes.images:
            image = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0)).to(bench.device)
            grid = grid_for(min(N_SPIXELS, size[0] * size[1] // 100), *size)
            count = grid[0] * grid[1]
            candidates = soft_slic(net.features(image, count), grid, 1).candidates

            def ours(image: Tensor, net: SSN = net, count: int = count) -> Tensor:
                return net(image, count).labels

            def usual(image: Tensor, net: SSN = net, count: int = count, grid: tuple[int, int] = grid,
                      candidates: Tensor = candidates) -> Tensor:
                affinity, _ = usual_soft_slic(net.features(image, count), candidates, grid, 10,
                                               net.config.distance)
                return candidates.gather(0, affinity.argmax(0).view(1, *candidates.shape[1:]))

            ways = {"usual formulation": partial(usual, image), "ours": partial(ours, image)}
            if bench.device.startswith("cuda"):
                cluster = lazily(partial(graphed, partial(clustering, grid, net.config.distance),
                                         net.features(image, count)))
                ways["ours, clustering as a graph"] = lambda image=image, net=net, count=count, cluster=cluster: (
                    cluster(net.features(image, count)))
            if compiled and net.net is not None:
                ways["ours, network compiled"] = partial(ours, image, _with_compiled_net(net))
            # Labels of pixels between two superpixels may differ by rounding: no difference is printed.
            bench.run(Contest(f"{name} {size[0]}x{size[1]}", ways, 1, same=False))
            share = (ways["ours"]() == ways["usual formulation"]()).float().mean()
            bench.note(f"{name} {size[0]}x{size[1]}: {share:.2%} of the labels are those of the usual formulation")


def clustering(grid: tuple[int, int], distance: str, features: Tensor) -> Tensor:
    """Labels of checked features, without waiting for the GPU."""
    cells = Cells(grid, *features.shape[-2:], features.device)
    centroids = F.adaptive_avg_pool2d(features, grid).flatten(2).transpose(1, 2)
    return clustered(features, centroids, cells, grid, 10, distance).labels


def _with_compiled_net(net: SSN) -> SSN:
    twin = SSN(net.config).eval().to(device_of(net))
    twin.load_state_dict(net.state_dict())
    twin.net = torch.compile(twin.net)
    return twin


def pair_step(net: RAFT, n_iters: int, features1: Tensor, image1: Tensor, image2: Tensor) -> tuple[Tensor, Tensor]:
    """What ``RAFT.video`` does for a pair of checked frames: flow (1, 2, H, W), and the second frame's features."""
    features2 = net.features(image2)
    volume = Volume(correlation_pyramid(features1, features2, net.config.levels), net.config.radius)
    cells, state = net.refined(volume, net.context(image1), n_iters)
    return net.upsample(cells, state, image1.shape[-2:]), features2


def through(step: Callable[..., tuple[Tensor, Tensor]], net: RAFT, frames: list[Tensor]) -> list[Tensor]:
    """Flow of a video by :func:`pair_step` or a faster form of it."""
    features, flows = net.features(frames[0]), []
    for first, second in zip(frames, frames[1:]):
        flow, features = step(features, first, second)
        flows.append(flow.clone())
        features = features.clone()
    return flows


def flow(bench: Bench, compiled: bool) -> None:
    sizes, device = bench.sizes, bench.device
    clip = scenes.clips("street", n_clips=1, n_frames=sizes.n_frames, size=sizes.frames, seed=500_000)[0]
    frames = [clip.frame(t)[None].to(device) for t in range(sizes.n_frames)]
    if find_spec("torchvision") is None:
        bench.note("torchvision is not installed: RAFT has no peer in this run")
    for variant in ("small", "large"):
        net, peer = _raft(variant, device)
        ways: dict[str, Callable[[], Any]] = {}
        if peer is not None:
            ways["torchvision"] = lambda peer=peer: [
                peer(2 * a - 1, 2 * b - 1, num_flow_updates=sizes.n_iters)[-1] for a, b in zip(frames, frames[1:])]
        half = RAFT(net.config).eval().to(device)
        half.load_state_dict(net.state_dict())
        for kind, of_kind in (("float32", net), ("bfloat16", half.bfloat16())):
            step = partial(pair_step, of_kind, sizes.n_iters)
            ways[kind] = lambda of_kind=of_kind: [found[None] for found in of_kind.video(
                (frame[0] for frame in frames), sizes.n_iters)]
            faster: dict[str, Callable[..., Any]] = {}
            if compiled:
                faster["compiled"] = torch.compile(step)
            if device.startswith("cuda"):
                features = of_kind.features(frames[0])
                faster["CUDA graph"] = lazily(partial(graphed, step, features, *frames[:2]))
                if compiled:
                    faster["compiled, CUDA graph"] = lazily(partial(graphed, faster["compiled"], features, *frames[:2]))
            ways |= {f"{kind}, {name}": partial(through, way, of_kind, frames) for name, way in faster.items()}
        bench.run(Contest(f"RAFT {variant} {sizes.frames[0]}x{sizes.frames[1]}", ways, sizes.n_frames - 1))


def _raft(variant: str, device: str) -> tuple[RAFT, Any]:
    """A RAFT, with the shipped weights where there are some, and torchvision's with the same, where it is installed."""
    torch.manual_seed(0)
    if find_spec("torchvision") is None:
        net = RAFT.from_pretrained("small") if variant == "small" else RAFT(RAFTConfig("large"))
        return net.eval().to(device), None
    from torchvision.models import optical_flow

    peer = (optical_flow.raft_small if variant == "small" else optical_flow.raft_large)(weights=None).eval()
    net = RAFT(RAFTConfig(variant)).eval()
    net.load_state_dict(own_keys(peer.state_dict()))
    return net.to(device), peer.to(device)


def polishing(bench: Bench) -> None:
    clip = scenes.clips("street", n_clips=1, n_frames=2, size=bench.sizes.frames, seed=500_000)[0]
    given = [part[None].to(bench.device) for part in (clip.frame(0), clip.frame(1), clip.flow(0) + 0.7)]
    ways: dict[str, Callable[[], Any]] = {"OpenCV, on the host": partial(polish, *given, "search"),
                                          "ours": partial(polish, *given, "variational")}
    if bench.device.startswith("cuda"):
        ways["ours, CUDA graph"] = partial(lazily(partial(graphed, partial(polish, way="variational"), *given)), *given)
    bench.run(Contest(f"polish {bench.sizes.frames[0]}x{bench.sizes.frames[1]}", ways, 1, same=False))


def channels(bench: Bench) -> None:
    """As a step of training end to end needs them."""
    torch.manual_seed(0)
    for size in (bench.sizes.flow, bench.sizes.scene):
        flow = torch.randn(bench.sizes.batch, 2, *size).cumsum(-1).to(bench.device).requires_grad_()

        def gradient(way: Callable[[Tensor], Tensor], flow: Tensor = flow) -> Tensor:
            return torch.autograd.grad(way(flow).square().sum(), flow)[0]

        ways = {"frame by frame": partial(gradient, lambda x: torch.cat([checked_channels(one[None]) for one in x])),
                "a batch at once": partial(gradient, checked_channels)}
        bench.run(Contest(f"channels of flow {size[0]}x{size[1]}", ways, bench.sizes.batch))


def losses(bench: Bench) -> None:
    sizes = bench.sizes
    masks, fields = (x.detach().to(bench.device) for x in coherence.sample(sizes.batch, 4, *sizes.flow))
    masks.requires_grad_()
    for kind, pair in (("least squares", ("published, least squares", "ours, least squares")),
                       ("robust", ("published, robust", "ours, robust"))):
        # The robust fits end at different places, one by L-BFGS and one by reweighting.
        bench.run(Contest(f"coherence loss, {kind}", {name: partial(coherence.WAYS[name], masks, fields)
                                                      for name in pair}, sizes.batch, kind == "least squares"))


def drawing(bench: Bench) -> None:
    """Frames with flow and occlusion both ways. The same scene on both devices; bodies' outlines differ by rounding."""
    times = list(range(1, 9))

    def draw(scene: scenes.Scene, parts: list[list[int]]) -> None:
        for part in parts:
            view = scene.view(part)
            scene.motion(part, view, 1)
            scene.motion(part, view, -1)

    for preset in ("lab", "crowd"):
        here, there = (scenes.Scene(preset, n_frames=10, size=bench.sizes.scene, seed=1, device=device)
                       for device in ("cpu", bench.device))
        ways = {"one by one": partial(draw, there, [[t] for t in times]),
                "eight at once": partial(draw, there, [times])}
        if bench.device != "cpu":
            ways["on the CPU"] = partial(draw, here, [[t] for t in times])
        bench.run(Contest(f"scenes, {preset}", ways, len(times), same=False))


# ---------------------------------------------------------------- parts


def _clone(found: Any) -> Any:
    return [each.detach().clone() for each in found] if isinstance(found, list) else (
        found.detach().clone() if isinstance(found, Tensor) else found)


def _difference(found: Any, first: Any) -> float:
    if isinstance(found, list):
        return max(_difference(a, b) for a, b in zip(found, first))
    return float((found.float() - first.float()).abs().max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, or cpu to try the benchmark itself")
    parser.add_argument("--json", type=Path, help="also write rows and notes here")
    parser.add_argument("--small", action="store_true", help="tiny sizes, to try the benchmark itself")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=None,
                        help="contestants of torch.compile too; by default on a GPU only")
    options = parser.parse_args()
    try:
        device = check_device(options.device)
    except ValueError as error:
        if options.device != "cuda":
            parser.error(str(error))
        print("gpu: left out, since there is no GPU here (--device cpu --small tries the benchmark itself)")
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)  # graphs and events belong to the current one
    compiled = device.type == "cuda" if options.compile is None else options.compile
    bench = Bench(str(device), SMALL if options.small else Sizes())
    bench.note(", ".join(f"{name}: {value}" for name, value in hardware.describe(str(device)).items()))
    if options.small or device.type != "cuda":
        bench.note("These times say nothing of a GPU: small sizes, or a CPU.")
    torch.set_grad_enabled(False)
    superpixels(bench, compiled)
    flow(bench, compiled)
    polishing(bench)
    with torch.enable_grad():
        channels(bench)
        losses(bench)
    drawing(bench)
    if options.json is not None:
        report.write_text(options.json, report.to_json({"hardware": hardware.describe(str(device)),
                                                        "notes": bench.notes, "rows": bench.rows}))


if __name__ == "__main__":
    main()
