"""Frame k of a video is the k-th that a player shows, whatever its container says; what is lost is noted or refused."""

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.filter import Graph

from tests.data.synthetic import H264, MPEG4, colour, number, parameters, write
from vf.data import bitstream
from vf.data.clips import Windows
from vf.data.decode import Video
from vf.data.folder import VideoFolder
from vf.data.listing import Item
from vf.data.notes import is_loss
from vf.data.pixels import Pixels, deinterlaced
from vf.data.staging import read_staged, stage

VOP = b"\0\0\1\xb6"  # a picture of MPEG-4 begins; the two bits after it are its type: intra, predicted, bidirectional
KEYS = {"h264": {"x264-params": H264.format(20) + ":bframes=0"}, "mpeg4": {**MPEG4, "g": "20"}}
CODERS = {"h264": "libx264", "mpeg4": "mpeg4"}


def shown(path: Path) -> list[int]:
    """The numbers of a video's frames."""
    video = Video(path)
    return [number(picture) for picture in video.clip(np.arange(len(video)), Pixels(16))]


def staged(path: Path, **changes) -> tuple[list[str], np.ndarray]:
    """(notes, frames u8 [n size size 3]) of a prepared clip."""
    target = path.parent / "x.clip"
    facts = stage(Item(path.name, path), parameters(path.parent, **changes), target)
    assert "rejected" not in facts, facts
    size = changes.get("size", 16)
    frames = [np.frombuffer(frame, np.uint8).reshape(size, size, 3) for frame in read_staged(target)[1]]
    return facts["notes"], np.stack(frames)


def rejected(path: Path) -> str:
    return stage(Item(path.name, path), parameters(path.parent), path.parent / "x.clip")["rejected"]


def remux(whole: Path, out: Path, change: Callable[[int, av.Packet], av.Packet | bytes | None], **kwargs) -> None:
    """Copies packets; `change`(number, packet) gives the packet that takes its place, its content, or None."""
    with av.open(str(whole)) as source, av.open(str(out), "w", **kwargs) as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        packets = (packet for packet in source.demux(source.streams.video[0]) if packet.size)
        for k, packet in enumerate(packets):
            changed = change(k, packet)
            if isinstance(changed, bytes):
                content, changed = changed, av.Packet(changed)
                changed.pts, changed.dts, changed.time_base = packet.pts, packet.dts, packet.time_base
                changed.is_keyframe = packet.is_keyframe
                assert bytes(changed) == content
            if changed is not None:
                changed.stream = stream
                target.mux(changed)


@pytest.mark.parametrize(("name", "b_frames"), [("a.mp4", 0), ("a.MOV", 2), ("a.m4v", 3)])
def test_an_edit_list_hides_frames_and_none_are_cut_off(tmp_path, name, b_frames):
    """As trimming without decoding leaves it: 60 frames are coded, and the first 20 come before time 0."""
    options = {"x264-params": H264.format(60) + f":bframes={b_frames}"}
    write(tmp_path / "whole.mp4", "libx264", options, times=range(60))
    remux(tmp_path / "whole.mp4", tmp_path / name, lambda k, packet: earlier(packet, 20), format="mp4")
    assert shown(tmp_path / name) == list(range(20, 60))
    notes, _ = staged(tmp_path / name)
    assert notes == ["it shows 40 of its 60 frames, as an edit list says"]


def test_a_video_of_which_an_edit_list_shows_nothing_is_rejected(tmp_path):
    write(tmp_path / "whole.mp4", "libx264", KEYS["h264"], times=range(20))
    remux(tmp_path / "whole.mp4", tmp_path / "a.mp4", lambda k, packet: earlier(packet, 40))
    assert rejected(tmp_path / "a.mp4") == "has no picture"


def earlier(packet: av.Packet, frames: int) -> av.Packet:
    packet.pts, packet.dts = packet.pts - frames * packet.duration, packet.dts - frames * packet.duration
    return packet


def test_a_file_that_ends_early_is_cut_off(tmp_path):
    write(tmp_path / "whole.mp4", "libx264", KEYS["h264"], times=range(60))
    with (
        av.open(str(tmp_path / "whole.mp4")) as source,
        av.open(str(tmp_path / "a.mp4"), "w", options={"movflags": "faststart"}) as target,
    ):  # its table of contents comes first
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            if packet.size:
                packet.stream = stream
                target.mux(packet)
    content = (tmp_path / "a.mp4").read_bytes()
    (tmp_path / "a.mp4").write_bytes(content[: len(content) * 3 // 4])
    assert "is cut off: its header promises 60 frames" in rejected(tmp_path / "a.mp4")
    write(tmp_path / "sound.avi", times=range(20))
    (tmp_path / "whole.mp4").unlink()
    source = VideoFolder(tmp_path, windows=Windows(4), size=16)
    with pytest.raises(Exception, match="is cut off"):
        source.clip(0, np.random.default_rng(0))


@pytest.mark.parametrize("name", ["a.mkv", "a.webm"])
def test_a_container_that_says_its_length_and_is_shorter_is_cut_off(tmp_path, name):
    """Its header does not say how many frames there should be."""
    coder = ("libx264", KEYS["h264"]) if name == "a.mkv" else ("libvpx", {"g": "20", "auto-alt-ref": "0"})
    write(tmp_path / name, *coder, times=range(60))
    assert len(shown(tmp_path / name)) == 60
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: len(content) * 3 // 4])
    assert rejected(tmp_path / name) == "is cut off: it is shorter than its header says"


def test_pictures_keep_their_size_where_it_changes_while_fields_are_separated():
    pictures = [
        av.VideoFrame.from_ndarray(np.full((16 * size, 16 * size, 3), 40 * k, np.uint8), format="rgb24").reformat(
            format="yuv420p"
        )
        for k, size in enumerate((2, 2, 4, 4, 4, 2), 1)
    ]
    for k, picture in enumerate(pictures):
        picture.pts, picture.time_base = k, Fraction(1, 25)
    separated = list(deinterlaced(iter(pictures)))
    assert [picture.width for picture in separated] == [picture.width for picture in pictures]
    for one, other in zip(separated, pictures, strict=True):
        np.testing.assert_array_equal(one.to_ndarray(), other.to_ndarray())


def test_pictures_that_only_serve_others_are_no_frames(tmp_path):
    """VP8 says in its first byte whether a picture is shown."""
    write(tmp_path / "whole.webm", "libvpx", {"g": "100", "auto-alt-ref": "0", "b": "1000000"}, times=range(30))
    hidden = (7, 8, 20)

    def hide(k: int, packet: av.Packet) -> bytes | av.Packet:
        content = bytes(packet)
        return bytes([content[0] & ~0x10]) + content[1:] if k in hidden else packet

    remux(tmp_path / "whole.webm", tmp_path / "a.webm", hide)
    assert shown(tmp_path / "a.webm") == [k for k in range(30) if k not in hidden]


@pytest.mark.parametrize(
    ("bits", "is_shown"),
    [
        ("10 0 0 0 0 1 0", True),  # marker, profile (low, high), shown again, type, shown (VP9, 6.2)
        ("10 0 0 0 1 0 0", False),
        ("10 0 0 1 0 0 0", True),  # a picture from before is shown again
        ("10 1 1 0 0 1 0", False),  # profile 3 has a further bit
        ("10 1 1 0 0 0 1", True),
        ("10 1 1 0 1 0 0", True),
    ],
)
def test_vp9_says_in_its_first_byte_whether_a_picture_is_shown(bits, is_shown):
    packet = bytes([int(bits.replace(" ", ""), 2), 0, 0])
    assert bitstream.is_shown("vp9", packet) == is_shown
    assert bitstream.is_shown("vp9", packet + bytes([0b11000001]))  # the last of several pictures is shown


@pytest.mark.parametrize("b_frames", ["1", "2"])
def test_packed_pictures_are_counted_in_the_order_of_the_decoder(tmp_path, b_frames):
    """DivX packs a picture and the one that is shown before it into one packet, and an empty picture follows."""
    write(tmp_path / "whole.avi", "mpeg4", {**MPEG4, "g": "12", "bf": b_frames}, times=range(24))
    with av.open(str(tmp_path / "whole.avi")) as source:
        coded = [(bytes(packet), packet.is_keyframe) for packet in source.demux(video=0) if packet.size]
    types = [content[content.rindex(VOP) + 4] >> 6 for content, _ in coded]
    assert types.count(2) > 9
    first = coded[0][0].index(VOP)  # FFmpeg unpacks what says that DivX has made it
    coded[0] = (coded[0][0][:first] + b"\0\0\1\xb2DivX503b1393p" + coded[0][0][first:], True)
    empty = VOP + int("0101000011001111", 2).to_bytes(2)  # predicted, time, not coded, stuffing
    packed, k = list[tuple[bytes, bool]](), 0
    while k < len(coded):
        content, is_key = coded[k]
        last = next((j for j in range(k + 1, len(types)) if types[j] != 2), len(types)) - 1  # B-frames follow up to it
        pair = content + coded[k + 1][0] if last > k else content
        packed += [(pair, is_key), *coded[k + 2 : last + 1], *[(empty, False)] * (last > k)]
        k = last + 1
    with av.open(str(tmp_path / "a.avi"), "w") as target:
        stream = target.add_stream("mpeg4", rate=25)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        for k, (content, is_key) in enumerate(packed):
            packet = av.Packet(content)
            packet.pts, packet.dts, packet.time_base = k, k, Fraction(1, 25)
            packet.stream, packet.is_keyframe = stream, is_key
            target.mux(packet)
    assert shown(tmp_path / "a.avi") == list(range(24))
    assert any("counted as they are decoded" in note for note in staged(tmp_path / "a.avi")[0])
    (tmp_path / "whole.avi").unlink()
    window = VideoFolder(tmp_path, windows=Windows(4, start="all"), size=16).clip(9, None)["video"]
    assert [number(picture) for picture in window] == [9, 10, 11, 12]


@pytest.mark.parametrize("time", [0, 30])
def test_recordings_that_are_joined_follow_each_other(tmp_path, time):
    """The times of the second begin anew, where those of the first began or before."""
    for name, first, begin in (("1.ts", 0, time), ("2.ts", 20, 0)):
        write(
            tmp_path / name,
            "mpeg2video",
            {**MPEG4, "g": "10"},
            times=range(begin, begin + 20),
            paint=lambda k, shift=first - begin: painted(max(0, k + shift)),
        )
    (tmp_path / "a.ts").write_bytes((tmp_path / "1.ts").read_bytes() + (tmp_path / "2.ts").read_bytes())
    assert shown(tmp_path / "a.ts") == list(range(40))
    assert any("counted as they are decoded" in note for note in staged(tmp_path / "a.ts")[0])


def painted(k: int) -> np.ndarray:
    return np.full((48, 64, 3), colour(k))


@pytest.mark.parametrize(
    ("name", "codec"), [("a.mp4", "h264"), ("a.avi", "mpeg4"), ("a.mkv", "h264"), ("a.ts", "h264"), ("a.mp4", "mpeg4")]
)
def test_a_video_without_its_first_key_frame_begins_at_the_next(tmp_path, name, codec):
    write(tmp_path / f"whole{Path(name).suffix}", CODERS[codec], KEYS[codec], times=range(60))
    whole = tmp_path / f"whole{Path(name).suffix}"
    remux(whole, tmp_path / name, lambda k, packet: packet if k else None)
    whole.unlink()
    assert shown(tmp_path / name) == list(range(20, 60))
    notes, frames = staged(tmp_path / name)
    assert "lost: its first 19 frames, before the first whole picture" in notes
    assert [number(frame) for frame in frames] == list(range(20, 60))
    source = VideoFolder(tmp_path, windows=Windows(4, start="all"), size=16)
    assert len(source) == 37
    assert [number(frame) for frame in source.clip(0, None)["video"]] == [20, 21, 22, 23]


GROUPS = {
    "libx264": {"x264-params": H264.format(12) + ":bframes=3:open-gop=1"},
    "mpeg2video": {**MPEG4, "g": "12", "bf": "2"},
    "mpeg4": {**MPEG4, "g": "12", "bf": "2"},
}


@pytest.mark.parametrize(
    ("codec", "suffix"),
    [("libx264", ".mkv"), ("libx264", ".ts"), ("libx264", ".avi"), ("mpeg2video", ".ts"), ("mpeg4", ".avi")],
)
@pytest.mark.parametrize("more", [0, 1])
def test_open_groups_that_are_cut_begin_at_their_first_whole_picture(tmp_path, codec, suffix, more):
    """The second group begins with pictures that are shown before its key frame, and need the first.

    The file begins with that key frame, or with a picture before it.
    """
    write(tmp_path / "whole.mkv", codec, GROUPS[codec], times=range(60))
    with av.open(str(tmp_path / "whole.mkv")) as source:
        packets = [packet for packet in source.demux(video=0) if packet.size]
    second = [k for k, packet in enumerate(packets) if packet.is_keyframe][1]
    start = round(packets[second].pts * packets[second].time_base * 25)
    assert min(packet.pts for packet in packets[second:]) < packets[second].pts
    whole, path = tmp_path / f"whole{suffix}", tmp_path / f"a{suffix}"
    write(whole, codec, GROUPS[codec], times=range(60))
    remux(whole, path, lambda k, packet: packet if k >= second - more else None)
    assert shown(path) == list(range(start, 60))
    notes, _ = staged(path)
    assert [note for note in notes if is_loss(note)] == [
        f"lost: its first {start - second + more} frames, before the first whole picture"
    ]


STREAMS = {
    "h264": ("libx264", {"x264-params": H264.format(20) + ":bframes=0"}),
    "h264 with B-frames": ("libx264", {"x264-params": H264.format(20) + ":bframes=2"}),
    "h264 in open groups": ("libx264", {"x264-params": H264.format(20) + ":bframes=3:b-pyramid=normal:open-gop=1"}),
    "h264 interlaced": ("libx264", {"x264-params": H264.format(20) + ":bframes=2:tff=1"}),
    "h264 of 4:4:4": ("libx264", {"x264-params": H264.format(20) + ":bframes=0:cqm=jvt", "profile": "high444"}),
    "mpeg4": ("mpeg4", {**MPEG4, "g": "20"}),
    "mpeg4 with B-frames": ("mpeg4", {**MPEG4, "g": "20", "bf": "2"}),
    "mpeg2": ("mpeg2video", {**MPEG4, "g": "20", "bf": "2"}),
    "vp9": ("libvpx-vp9", {"g": "20", "cpu-used": "8"}),
}


@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts", ".avi"])
def test_a_key_frame_that_is_lost_in_the_middle_rejects_the_video(tmp_path, stream, suffix):
    """Decoders go on from the picture before it, and say nothing; the same video is whole with it."""
    if (stream, suffix) in [("vp9", ".ts"), ("vp9", ".avi"), ("mpeg2", ".mp4")]:
        pytest.skip("not what this container holds")
    codec, options = STREAMS[stream]
    whole = tmp_path / f"whole{suffix}"
    write(whole, codec, options, times=range(60))
    assert shown(whole) == list(range(60))
    with av.open(str(whole)) as source:
        keys = [k for k, packet in enumerate(p for p in source.demux(video=0) if p.size) if packet.is_keyframe]
    remux(whole, tmp_path / f"a{suffix}", lambda k, packet: None if k == keys[1] else packet)
    assert "has lost a picture that others need, after" in rejected(tmp_path / f"a{suffix}")


def test_a_picture_that_no_other_needs_may_be_missing(tmp_path):
    """And of H.264, one that others need may not, though it is no key frame."""
    write(tmp_path / "whole.mp4", "libx264", STREAMS["h264 with B-frames"][1] | {"refs": "1"}, times=range(60))
    with av.open(str(tmp_path / "whole.mp4")) as source:
        needed = [bytes(packet)[4] >> 5 & 3 for packet in source.demux(video=0) if packet.size]
    for k in (needed.index(0, 10), next(k for k in range(30, 40) if needed[k])):
        remux(tmp_path / "whole.mp4", tmp_path / f"{k}.mp4", lambda j, packet, k=k: None if j == k else packet)
        if needed[k]:
            assert "has lost a picture" in rejected(tmp_path / f"{k}.mp4")
        else:
            assert len(shown(tmp_path / f"{k}.mp4")) == 59


@pytest.mark.parametrize("missing", [1, 2, 3, 11, 18, 19, 22, 29, 39, 58])
def test_a_frame_that_an_encoder_leaves_out_rejects_nothing(tmp_path, missing):
    times = [k for k in range(60) if k != missing]
    for k, (codec, options) in enumerate(
        [("libx264", {"x264-params": "keyint=20:bframes=2:b-adapt=0:scenecut=0"}), ("libx264", {}),
         ("mpeg4", {**MPEG4, "g": "20"}), ("mpeg4", {**MPEG4, "g": "20", "bf": "2"}),
         ("libvpx-vp9", {"g": "20", "cpu-used": "8"})]
    ):  # fmt: skip
        write(tmp_path / f"{k}.mp4", codec, options, times=times)
        assert shown(tmp_path / f"{k}.mp4") == times, (codec, options)


def test_damage_that_a_decoder_would_conceal_is_refused(tmp_path):
    """A packet in the middle is overwritten: without being told to, decoders make up the picture in silence."""
    write(tmp_path / "whole.avi", "mpeg4", KEYS["mpeg4"], times=range(40))

    def spoil(k: int, packet: av.Packet) -> bytes | av.Packet:
        content = bytes(packet)
        return content[:12] + bytes(b ^ 0x5A for b in content[12:]) if k == 25 else packet

    remux(tmp_path / "whole.avi", tmp_path / "a.avi", spoil)
    assert rejected(tmp_path / "a.avi")


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.avi"])
@pytest.mark.parametrize("aspect", [Fraction(2), Fraction(1, 2)])
def test_pixels_that_are_not_square_are_made_so(tmp_path, name, aspect):
    """A disc that is stored squeezed is a disc again, wherever the file says how it is squeezed."""
    height, width = (64, 48) if aspect > 1 else (48, 96)
    rows, columns = np.indices((height, width))
    wide = float(aspect) * (columns - width / 2 + 0.5)
    disc = np.repeat(((wide**2 + (rows - height / 2 + 0.5) ** 2) < 18**2)[..., None] * 255, 3, -1).astype(np.uint8)
    with av.open(str(tmp_path / name), "w") as container:
        codec = "mpeg4" if name == "a.avi" else "libx264"
        stream = container.add_stream(codec, rate=25, options={"qp": "0"} if codec == "libx264" else dict(MPEG4))
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        stream.codec_context.sample_aspect_ratio = aspect
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(disc, format="rgb24")))
        container.mux(stream.encode(None))
    notes, frames = staged(tmp_path / name)
    assert f"its pixels of {aspect.numerator}:{aspect.denominator} are made square" in notes
    assert not any(map(is_loss, notes))
    lit = frames[0, :, :, 0] > 127
    assert abs(int(lit.any(0).sum()) - int(lit.any(1).sum())) <= 2, lit
    whole = Video(tmp_path / name).clip(np.arange(1), Pixels(0))
    assert whole.shape[1:3] == ((64, 96) if aspect > 1 else (96, 96))


@pytest.mark.parametrize("first", ["tff", "bff"])
def test_interlaced_pictures_are_noted_or_become_their_first_field(tmp_path, first):
    """A bar moves by 6 pixels from each field to the next: its edges are combs, or it stands where the first has it."""
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"qp": "0", "x264-params": f"{first}=1"})
        stream.height, stream.width, stream.pix_fmt = 64, 64, "yuv420p"
        graph = Graph()  # the encoder takes the order of fields from its pictures
        source = graph.add_buffer(width=64, height=64, format="rgb24", time_base=Fraction(1, 25))
        ordered, sink = graph.add("setfield", first), graph.add("buffersink")
        source.link_to(ordered)
        ordered.link_to(sink)
        graph.configure()
        for k in range(4):
            fields = np.zeros((64, 64, 3), np.uint8)
            for instant, line in ((2 * k, first == "bff"), (2 * k + 1, first == "tff")):
                fields[int(line) :: 2, 4 + 6 * instant : 12 + 6 * instant] = 255
            graph.vpush(av.VideoFrame.from_ndarray(fields, format="rgb24"))
            container.mux(stream.encode(graph.vpull()))
        container.mux(stream.encode(None))
    notes, mixed = staged(tmp_path / "a.mp4", size=64)
    assert notes == ["lost: the times of the fields of 4 interlaced frames: --deinterlace"]
    notes, single = staged(tmp_path / "a.mp4", size=64, deinterlace=True)
    assert notes == ["4 interlaced frames, of which the first field is kept"]
    assert len(single) == len(mixed) == 4

    def combs(frames: np.ndarray) -> float:
        return np.abs(np.diff(frames[:, 4:-4, :, 0].astype(float), axis=1)).mean()

    assert combs(single) < 0.3 * combs(mixed)
    columns = single[..., 0].astype(float).mean(1)  # [t w]
    np.testing.assert_allclose(columns @ np.arange(64) / columns.sum(1), 7.5 + 12 * np.arange(4), atol=1.0)
    write(tmp_path / "plain.mp4", "libx264", {}, times=range(6))
    notes, plain = staged(tmp_path / "plain.mp4", deinterlace=True)
    assert notes == []
    np.testing.assert_array_equal(plain, staged(tmp_path / "plain.mp4")[1])


@pytest.mark.parametrize(("number", "name"), [(16, "PQ"), (18, "HLG")])
def test_high_dynamic_range_is_noted(tmp_path, number, name):
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        stream.codec_context.color_trc = number
        for k in range(3):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), colour(k), np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    notes, _ = staged(tmp_path / "a.mp4")
    assert notes == [f"lost: its high dynamic range ({name}), which is not tone-mapped"]


@pytest.mark.parametrize(
    ("name", "codec", "form"),
    [
        ("a.webm", "libvpx-vp9", "yuva420p"), ("a.webm", "libvpx", "yuva420p"), ("a.mov", "qtrle", "argb"),
        ("a.mov", "prores_ks", "yuva444p10le"), ("a.mkv", "ffv1", "bgra"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("is_opaque", [False, True])
def test_what_is_transparent_is_laid_on_black(tmp_path, name, codec, form, is_opaque):
    """Nobody sees the red below; and what is opaque has lost nothing."""
    picture = np.zeros((64, 64, 4), np.uint8)
    picture[..., 0], picture[..., 3] = 255, 255 * is_opaque
    picture[16:48, 16:48] = (10, 200, 10, 255)
    with av.open(str(tmp_path / name), "w") as container:
        options = {"profile": "4444"} if codec == "prores_ks" else {"auto-alt-ref": "0", "b": "2000000"}
        stream = container.add_stream(codec, rate=25, options=options if codec[:6] in ("libvpx", "prores") else {})
        stream.height, stream.width, stream.pix_fmt = 64, 64, form
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgba").reformat(format=form)))
        container.mux(stream.encode(None))
    notes, frames = staged(tmp_path / name)
    deep = ["lost: its 12 bits, scaled to 8"] * (codec == "prores_ks")  # as its decoder gives them
    assert notes == deep + ([] if is_opaque else ["lost: its transparency, laid on black"])
    assert np.abs(frames[:, 0, 0].astype(int) - ((255, 0, 0) if is_opaque else 0)).max() < 8
    assert np.abs(frames[:, 8, 8].astype(int) - (10, 200, 10)).max() < 8
