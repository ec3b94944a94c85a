"""What the numbers of a run mean: every score and every other number that the page shows, in a sentence each.

`docs/glossary.md` holds the same sentences.
"""

import re
from typing import Literal, NamedTuple

Better = Literal["lower", "higher", "near 1", "near real clips"]


class ScoreFacts(NamedTuple):
    """What a score means.

    Attributes:
        meaning: one sentence.
        better: which values are better.
        distance: whether it compares two sets, so that its reference is a distance of real clips from other real clips
            rather than the same number of the real clips.
    """

    meaning: str
    better: Better
    distance: bool = False


_NOT_FVD = "comparable with no published number"
_IS = "Inception score of C3D trained on UCF101: sure classes in each clip, many classes over all clips"
SCORES = {
    "fvd": ScoreFacts("Fréchet distance of I3D's features, the usual FVD, of one lineage of code.", "lower", True),
    "kvd": ScoreFacts("Kernel distance (MMD with a cubic kernel) of I3D's features.", "lower", True),
    "fvd_infinity": ScoreFacts("FVD extrapolated to infinitely many clips.", "lower", True),
    "fvd_segments": ScoreFacts("FVD of 16 frames of longer clips, segment by segment.", "lower", True),
    "fd_i3d": ScoreFacts(f"Not FVD: Fréchet distance with other weights of I3D, {_NOT_FVD}.", "lower", True),
    "kd_i3d": ScoreFacts(f"Not KVD: kernel distance with other weights of I3D, {_NOT_FVD}.", "lower", True),
    "fid": ScoreFacts("Fréchet distance of Inception's features of all frames (clean-fid).", "lower", True),
    "fid_legacy_tensorflow": ScoreFacts("FID as the first TensorFlow code computes it.", "lower", True),
    "fid_legacy_pytorch": ScoreFacts("FID as pytorch-fid computes it.", "lower", True),
    "fd_efficientnet": ScoreFacts(
        "Not FID and not FVD: Fréchet distance of EfficientNet-Lite0's features of all frames, blind to motion, and "
        f"{_NOT_FVD}.",
        "lower",
        True,
    ),
    "kd_efficientnet": ScoreFacts(
        "Not KID and not KVD: kernel distance (MMD with a cubic kernel) of the same features, blind to motion, and "
        f"{_NOT_FVD}.",
        "lower",
        True,
    ),
    "is_tgan": ScoreFacts(f"{_IS} (TGAN's variant).", "higher"),
    "is_tganv2": ScoreFacts(f"{_IS} (TGANv2's variant).", "higher"),
    "is_styleganv": ScoreFacts(f"{_IS} (StyleGAN-V's variant).", "higher"),
    "cd_fvd": ScoreFacts("Content-debiased FVD: Fréchet distance of VideoMAE's features.", "lower", True),
    "fd_videomae": ScoreFacts(
        f"Not CD-FVD: Fréchet distance with other weights of VideoMAE, {_NOT_FVD}.", "lower", True
    ),
    "jedi": ScoreFacts("JEDi: 100 times the MMD of V-JEPA's features.", "lower", True),
    "mmd_vjepa": ScoreFacts(f"Not JEDi: MMD with other weights of V-JEPA, {_NOT_FVD}.", "lower", True),
    "clipsim": ScoreFacts("Mean similarity of each frame to its caption, by CLIP.", "higher"),
    "frame_consistency": ScoreFacts(
        "Mean similarity of neighbouring frames, by CLIP; 1 is a still.", "near real clips"
    ),
    "flicker": ScoreFacts("1 less the mean change from frame to frame (VBench's); 1 is a still.", "near real clips"),
    "psnr": ScoreFacts(
        "Super-resolution: peak signal-to-noise ratio to the very clips that were reduced, in dB, mean over frames; "
        "sharp samples that guess detail lose to blurred ones.",
        "higher",
    ),
    "psnr_bilinear": ScoreFacts("The same of the reduced clips, enlarged bilinearly.", "higher"),
    "psnr_bicubic": ScoreFacts("The same of the reduced clips, enlarged bicubically.", "higher"),
    "fd_random_conv3d": ScoreFacts(
        "Not FVD: Fréchet distance of the features of a small random network, which needs no weights; it compares "
        f"checkpoints of one run, and is {_NOT_FVD}.",
        "lower",
        True,
    ),
    "base_frame_gap": ScoreFacts(
        "Centre gap: how much the base frame differs from its neighbours, over how much other neighbours differ; above "
        "1 the base frame does not fit its clip.",
        "near 1",
    ),
    "embedding_fd": ScoreFacts(
        "Fréchet distance of the embeddings that a prior samples from those of real clips.", "lower", True
    ),
    "embedding_precision": ScoreFacts(
        "Mean cosine of a sampled embedding with the nearest real one, both less the mean of the real ones.",
        "near real clips",
    ),
    "embedding_recall": ScoreFacts(
        "Mean cosine of a real embedding with the nearest sampled one, both less the mean of the real ones.",
        "near real clips",
    ),
    "embedding_class": ScoreFacts(
        "Share of sampled embeddings whose nearest real one is of the class that was asked for.", "near real clips"
    ),
    "sprites/valid": ScoreFacts(
        "Share of clips in which all is right: one sprite, constant content, a path and a speed of the data.", "higher"
    ),
    "sprites/found": ScoreFacts("Share of frames that show a sprite.", "higher"),
    "sprites/colour_constant": ScoreFacts("Share of clips whose sprite keeps its colour.", "higher"),
    "sprites/background_constant": ScoreFacts("Share of clips that keep their background.", "higher"),
    "sprites/shape_constant": ScoreFacts("Share of clips whose sprite keeps its shape.", "higher"),
    "sprites/content_constant": ScoreFacts("Share of clips that keep colour, background and shape.", "higher"),
    "sprites/smooth": ScoreFacts("Share of clips whose sprite moves on a straight, bouncing path.", "higher"),
    "sprites/moving": ScoreFacts("Share of clips whose sprite moves at a speed of the data.", "higher"),
    "sprites/base_frame_colour": ScoreFacts("Difference of the sprite's colour at the base frame, of 255.", "lower"),
    "sprites/base_frame_background": ScoreFacts("Difference of the background at the base frame, of 255.", "lower"),
    "sprites/shapes_seen": ScoreFacts("Number of different shapes among the clips.", "higher"),
    "sprites/colours_seen": ScoreFacts("Number of different colours among the clips.", "higher"),
    "sprites/backgrounds_seen": ScoreFacts("Number of different backgrounds among the clips.", "higher"),
    "sprites/path_error": ScoreFacts("Median distance from the nearest path of the data, in pixels.", "lower"),
    "sprites/unexplained": ScoreFacts("Median share of a sprite that the nearest ideal one leaves over.", "lower"),
}
"""By name; `fvd_segments` stands for `fvd_segments_00` and so on, and `sprites/base_frame_gap` is `base_frame_gap`."""


_LEVELS = "on clips that no step sees, at step t of the noise (t50: hardly noisy, t950: nearly noise alone)"
_SHARE = "0 is perfect, 1 is no better than a guess of 0"
NUMBERS = {
    "train/loss": "Training loss: the base generator's and the residual generator's, or a prior's.",
    "train/loss_base": "The base generator's part of the training loss.",
    "train/loss_residual": "The residual generator's part of the training loss, which a base that is off raises too.",
    "train/grad_norm": "Norm of each network's gradient before it is clipped.",
    "train/lr": "Learning rate of each network.",
    "train/data_wait": "Share of the time that training waited for data; above 0.1 reading is the bottleneck.",
    "train/steps_per_s": "Training steps per second.",
    "train/clips_per_s_per_device": "Clips per second and device.",
    "train/tflops_per_device": "Useful TFLOP per second and device.",
    "train/mfu": "Model FLOP utilisation: those as a share of the chip's peak.",
    "train/memory_gib": "Device memory in use, in GiB.",
    "train/memory_peak_gib": "The most device memory that was in use, in GiB.",
    "validation/base": f"The base generator's part of the loss {_LEVELS}.",
    "validation/residual": f"The residual generator's part of the loss {_LEVELS}.",
    "validation/base_eps": f"Share of the base frame's noise eps that is not found, {_LEVELS}; {_SHARE}.",
    "validation/prior": f"The loss of a prior {_LEVELS}.",
    "validation/prior_eps": f"Share of the noise eps of an embedding that is not found, {_LEVELS}; {_SHARE}.",
    "validation/residual_eps": f"Share of the other frames' noise eps that is not found, {_LEVELS}; {_SHARE}.",
}
"""By name, without the network's name or the step of the noise at the end."""
NUMBERS |= {
    name.replace("validation", "seen"): text.replace("that no step sees", "that training sees too")
    for name, text in NUMBERS.items()
    if name.startswith("validation/")
}


def score_facts(name: str) -> ScoreFacts | None:
    """The facts of a score by its name in `metrics.jsonl`; None for a name that is unknown here."""
    short = re.sub(r"_\d+$", "", name)
    return SCORES.get(short) or SCORES.get(short.removeprefix("sprites/"))


def group(name: str) -> str:
    """The name under which a number shares a chart: without the step of the noise, or the name of the network."""
    return re.sub(r"/t\d+$|(?<=^train/lr)_\w+$|(?<=^train/grad_norm)_\w+$", "", name)
