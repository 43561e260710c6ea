"""Differentiable SLIC, optical flow, depth and motion segmentation in one small library.

Conventions, the same in every module (``geometry`` holds the code that depends on them):

- Letters: ``B`` batch, ``T`` time, ``C`` channels, ``H`` rows, ``W`` columns; ``N = H * W`` pixels;
  ``S`` superpixels; ``L`` mask layers; ``P`` motion parameters; ``K`` is for camera intrinsics only.
- Images: (B, 3, H, W) float32 RGB in [0, 1]. Labels: (B, H, W) int64.
  Soft masks: (B, L, H, W), the sum over L is 1.
- Flow: (B, 2, H, W) in pixels, channel 0 = u to the right, channel 1 = v down, from frame t to frame t + 1.
  Pixel centres are integers: (0, 0) is the centre of the top-left pixel.
- Depth: (B, 1, H, W) in metres along z. Camera axes: x right, y down, z forward.
  A pose is named by its direction: ``camera_to_world``, ``second_from_first``; it is a (4, 4) matrix
  that multiplies column vectors.
- Resizing an image resizes what belongs to it: intrinsics, flow magnitudes, labels by nearest.
  Flipping negates the flow component.
- A function has one return type; from three values up that is a NamedTuple.
- What a dataset gives for one frame has no batch axis: an image is (3, H, W), labels (H, W), flow (2, H, W).
"""

__version__ = "0.1.0"
