"""Deterministic weights / inputs for the golden tests (numpy RandomState, seeded by crc32 of the canonical name)."""

import re
import zlib
import numpy as np

CLS_BIAS = r"cls_layers\.\d+\.(norm1|cls_norm_|v_proj|cross_attn\.out_proj|self_attn\.out_proj|cls_linear2_)\.bias$"


def canonical(name):
    name = re.sub(r"^module\.", "", name)
    name = re.sub(r"^transformer\.decoder\.bbox_embed\.", "bbox_embed.", name)
    return re.sub(r"\.conv_blocks\.\d+\.", ".conv_blocks.0.", name)


def fill(name, shape):
    """float32 array for the parameter/buffer called `name` in the reference state dict."""
    name, shape = canonical(name), tuple(int(s) for s in shape)
    if name.endswith("num_batches_tracked"):
        return np.zeros(shape, np.float32)
    rng = np.random.RandomState(zlib.crc32(name.encode()) & 0xFFFFFFFF)
    n = rng.standard_normal(shape)
    leaf = name.rsplit(".", 1)[-1]
    if leaf == "running_var":
        x = 0.6 + 0.8 * rng.uniform(size=shape)
    elif leaf == "running_mean":
        x = 0.1 * n
    elif name.endswith("sampling_offsets.bias"):
        x = 6.0 * rng.uniform(size=shape) - 3.0  # cells, before the (swapped) normaliser
    elif name.endswith("sampling_offsets.weight"):
        x = 0.5 * n / np.sqrt(shape[1])
    elif leaf == "level_embed" or name.endswith(("class_queries.weight", "refpoint_embed.weight")):
        x = n
    elif name.endswith("cls_norm2.weight"):
        x = 16.0 * n  # the class logit is a mean over 256 channels: keep it O(1)
    elif name.endswith("bn4.weight"):
        x = 0.3 + 0.03 * n  # residual branch of 50 CSN blocks: no blow-up
    elif leaf == "weight" and len(shape) == 1:
        x = 1.0 + 0.1 * n  # any other norm
    elif leaf in ("bias", "q_bias", "v_bias"):
        x = (0.02 if re.search(CLS_BIAS, name) else 0.1) * n
    elif re.search(r"lateral_convs\.(0\.0|0\.3|1\.0)\.weight$", name):
        x = n / np.sqrt(shape[0])  # ConvTranspose3d, stride == kernel
    elif len(shape) >= 2:
        x = n / np.sqrt(np.prod(shape[1:]))
        if re.search(r"cls_layers\.\d+\.k_proj\.weight$", name):
            x = 12.0 * x  # sharp class attention, so that classes differ
        if re.search(r"cls_layers\.\d+\.cross_attn\.out_proj\.weight$", name):
            x[:, shape[1] // 2 :] *= 0.3  # the position-only heads are the same for all classes
        if name.endswith("bbox_embed.layers.2.weight"):
            x = 0.3 * x  # boxes stay away from 0 and 1 after 6 refinements
    return np.ascontiguousarray(x, dtype=np.float32)


def make_input(seed, shape, valid_hw=None):
    """pixel_values [B,3,T,H,W] float32; with valid_hw=[(h,w),...] the padded area (bottom/right) is zero."""
    x = np.random.RandomState(seed).standard_normal(shape).astype(np.float32)
    for b, (h, w) in enumerate(valid_hw or []):
        x[b, :, :, h:, :] = 0
        x[b, :, :, :, w:] = 0
    return x
