"""Converts decoded pictures to pixels: crops the largest centred square and resizes it by FFmpeg's scaler.

Pixels that are not square (a sample aspect ratio other than 1) are made so. What is transparent is laid on black, since
video players show it so and the colours under it were never meant to be seen.
"""

import itertools
from collections.abc import Iterator
from fractions import Fraction

import av
import numpy as np
from av.filter import Graph

from vf.data.clips import centre_crop_box

RESAMPLER = "FFmpeg swscale bicubic, antialiased, full chroma"
# Without full_chroma_int the scaler interpolates colour at half resolution and is 1 to 2 of 255 too dark; accurate_rnd
# and bitexact make every processor round alike. Output in planes (gbrp) costs half as much as packed rgb24.
_FLAGS = "bicubic+full_chroma_int+accurate_rnd+bitexact"


class Pixels:
    """Converts pictures to u8 [size size 3], the resized centre square; with size 0 to [h w 3], the whole picture.

    It caches the scaler for the last geometry, so that every thread needs one of its own.

    Attributes:
        transparent: whether any picture so far was transparent anywhere, and was laid on black.
    """

    def __init__(self, size: int) -> None:
        self.size, self.transparent = size, False
        self._key: tuple = ()
        self._graphs: dict[str, Graph] = {}  # of pictures of this key

    def __call__(self, picture: av.VideoFrame, aspect: Fraction = Fraction(1)) -> np.ndarray:
        """The picture's pixels, upright. `aspect` is width by height of one of its pixels.

        Raises one of `vf.data.decode.DAMAGE` where it cannot be converted.
        """
        key = (picture.width, picture.height, picture.format.name, picture.colorspace, picture.color_range, aspect)
        if key != self._key:
            self._key, self._graphs = key, {}
        rotation = picture.rotation
        if any(part.is_alpha for part in picture.format.components):
            planes = self._through("alpha", picture, "gbrap", ("scale", f"flags={_FLAGS}"))
            if int(_plane(planes.planes[3], planes).min()) < 255:
                self.transparent = True
                black = ("premultiply", "inplace=1")
                picture = self._through("on black", planes, "gbrp", black, *self._scaled(picture, aspect))
                return _upright(self._pixels(picture), rotation)
        picture = self._through("opaque", picture, "gbrp", *self._scaled(picture, aspect))
        return _upright(self._pixels(picture), rotation)

    def _through(self, name: str, picture: av.VideoFrame, output: str, *filters: tuple[str, str]) -> av.VideoFrame:
        if name not in self._graphs:
            self._graphs[name] = _graph(picture, output, *filters)
        self._graphs[name].vpush(picture)
        return self._graphs[name].vpull()

    def _pixels(self, picture: av.VideoFrame) -> np.ndarray:
        pixels = np.empty((picture.height, picture.width, 3), np.uint8)
        for channel, plane in zip((1, 2, 0), picture.planes[:3], strict=True):  # four times as fast as to_ndarray
            pixels[..., channel] = _plane(plane, picture)
        return pixels

    def _scaled(self, picture: av.VideoFrame, aspect: Fraction) -> list[tuple[str, str]]:
        height, width = picture.height, picture.width
        if self.size:
            left, top, right, bottom = centre_crop_box(height, width, aspect)
            size = (self.size, self.size)
        else:
            left, top, right, bottom = (0, 0, width, height)
            size = (round(width * max(aspect, Fraction(1))), round(height / min(aspect, Fraction(1))))
        crop = ("crop", f"{right - left}:{bottom - top}:{left}:{top}:exact=1")
        return [crop, ("scale", f"{size[0]}:{size[1]}:flags={_FLAGS}")]


def deinterlaced(pictures: Iterator[av.VideoFrame]) -> Iterator[av.VideoFrame]:
    """The same number of pictures, where each that is interlaced shows the time of its first field alone (bwdif).

    The missing lines are estimated from that picture's neighbours, so that `pictures` must be consecutive.
    """
    graph: Graph | None = None
    key: tuple = ()
    for picture in pictures:
        if (now := (picture.width, picture.height, picture.format.name)) != key:
            if graph is not None:
                graph.vpush(None)
                yield from _pulled(graph)
            filters = ("bwdif", "mode=send_frame:parity=auto:deint=interlaced")
            graph, key = _graph(picture, picture.format.name, filters), now
        assert graph is not None
        graph.vpush(picture)
        yield from _pulled(graph)
    if graph is not None:
        graph.vpush(None)
        yield from _pulled(graph)


def _pulled(graph: Graph) -> Iterator[av.VideoFrame]:
    while True:
        try:
            yield graph.vpull()
        except (av.BlockingIOError, av.EOFError):
            return


def _graph(picture: av.VideoFrame, output: str, *filters: tuple[str, str]) -> Graph:
    graph = Graph()
    graph.threads = 1  # many threads call this, and starting a scaler's threads costs more than one picture
    base = picture.time_base or Fraction(1, 25)
    stages = [graph.add_buffer(width=picture.width, height=picture.height, format=picture.format, time_base=base)]
    stages += [graph.add(name, arguments) for name, arguments in filters]
    stages += [graph.add("format", output), graph.add("buffersink")]
    for one, other in itertools.pairwise(stages):
        one.link_to(other)
    graph.configure()
    return graph


def _plane(plane: av.video.plane.VideoPlane, picture: av.VideoFrame) -> np.ndarray:
    rows = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)  # type: ignore[call-overload]
    return rows[: picture.height, : picture.width]


def _upright(pixels: np.ndarray, rotation: int) -> np.ndarray:
    # The display matrix gives the rotation for display, counter-clockwise; multiples of 90 degrees lose nothing.
    return np.rot90(pixels, round(rotation / 90)) if rotation else pixels
