"""Encodes frames as bytes and decodes them. `raw` and `png` are lossless; FVD notices the errors of JPEG."""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

ENCODINGS = ("raw", "png", "jpeg")


def encode(frame: np.ndarray, encoding: str, quality: int) -> bytes:
    """A frame u8 [h w 3] as bytes: `raw` (h * w * 3 bytes), `png` or `jpeg` (`quality` 1..100, 4:4:4)."""
    if encoding == "raw":
        return frame.tobytes()
    file = io.BytesIO()
    options: dict[str, Any] = {"jpeg": {"quality": quality, "subsampling": 0}, "png": {"compress_level": 1}}[encoding]
    Image.fromarray(frame).save(file, encoding, **options)
    return file.getvalue()


def decode(frames: Sequence[bytes | memoryview], encoding: str, size: int) -> np.ndarray:
    """The frames of these bytes, u8 [n size size 3]. Raises ValueError or OSError where the bytes are damaged."""
    if encoding == "raw":
        return np.frombuffer(b"".join(frames), np.uint8).reshape(len(frames), size, size, 3)
    return np.stack([np.asarray(Image.open(io.BytesIO(frame))) for frame in frames])
