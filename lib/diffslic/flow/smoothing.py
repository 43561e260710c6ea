"""Flow smoothed by superpixels: inside each, the motion is taken to be simple."""

from torch import Tensor

from diffslic import piecewise


def smooth_by_superpixels(flow: Tensor, superpixels: piecewise.Superpixels, model: str = "affine",
                          n_iters: int = 3) -> Tensor:
    """Replace the flow inside each superpixel by the motion that fits it best, as :func:`diffslic.piecewise.fit` does.

    A pixel whose flow lies r pixels from its superpixel's motion has the weight 1 / sqrt(1 + r^2).

    Args:
        flow: (B, 2, H, W) in pixels, finite.
        superpixels: of the frame that the flow leaves; hard or soft.
        model: "constant" (a mean) or "affine" (a mean and a slope along x and y).
        n_iters: fits, the first one with equal weights; 1 is plain least squares.

    Returns:
        (B, 2, H, W) in pixels.

    Raises:
        ValueError: not a flow, another model, no fit.
    """
    if flow.ndim != 4 or flow.shape[1] != 2:
        raise ValueError(f"flow must be (B, 2, H, W), got {tuple(flow.shape)}")
    return piecewise.fit(flow, superpixels, model, n_iters)
