"""I3D in PyTorch, independent of ours: TensorFlow's padding by F.pad, batch norms by F.batch_norm.

`names` are hassony2's or piergiaj's, so that PyTorch itself writes either file.
"""

import torch
import torch.nn.functional as F

CHANNELS = {
    "3b": (192, [64, 96, 128, 16, 32, 32]),
    "3c": (256, [128, 128, 192, 32, 96, 64]),
    "4b": (480, [192, 96, 208, 16, 48, 64]),
    "4c": (512, [160, 112, 224, 24, 64, 64]),
    "4d": (512, [128, 128, 256, 24, 64, 64]),
    "4e": (512, [112, 144, 288, 32, 64, 64]),
    "4f": (528, [256, 160, 320, 32, 128, 128]),
    "5b": (832, [256, 160, 320, 32, 128, 128]),
    "5c": (832, [384, 192, 384, 48, 128, 128]),
}


def same(x: torch.Tensor, kernel: list[int], stride: list[int]) -> torch.Tensor:
    """Zeros around, as TensorFlow's SAME puts them: the odd one behind."""
    pads: list[int] = []
    for k in (2, 1, 0):
        size = int(x.shape[2 + k])
        total = max((-(-size // stride[k]) - 1) * stride[k] + kernel[k] - size, 0)
        pads += [total // 2, total - total // 2]
    return F.pad(x, pads)


class Unit(torch.nn.Module):
    def __init__(self, c_in, c_out, kernel=1, stride=1, eps=1e-3, norm="batch3d"):
        super().__init__()
        self.kernel, self.stride = [kernel] * 3, [stride] * 3
        self.conv3d = torch.nn.Conv3d(c_in, c_out, kernel, stride, bias=norm == "")
        if norm:
            setattr(self, norm, torch.nn.BatchNorm3d(c_out, eps=eps))
        self.norm = norm

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv3d(same(x, self.kernel, self.stride))
        return F.relu(getattr(self, self.norm)(x)) if self.norm else x


def pool(x, kernel, stride):
    return F.max_pool3d(same(x, kernel, stride), kernel, stride)


class I3D(torch.nn.Module):
    """Clips [b 3 t h w] in [-1, 1] -> (logits [b 400])."""

    def __init__(self, names="hassony2", eps=1e-3, classes=400):
        super().__init__()
        ours = names == "hassony2"
        norm = "batch3d" if ours else "bn"

        def unit(*args):
            return Unit(*args, eps=eps, norm=norm)

        stem = {"Conv3d_1a_7x7": (3, 64, 7, 2), "Conv3d_2b_1x1": (64, 64), "Conv3d_2c_3x3": (64, 192, 3)}
        self.stem = [name.lower() if ours else name for name in stem]
        for name, shape in zip(self.stem, stem.values(), strict=True):
            self.add_module(name, unit(*shape))
        for block, (c, (b0, b1a, b1b, b2a, b2b, b3b)) in CHANNELS.items():
            parts = {"b0": unit(c, b0), "b1a": unit(c, b1a), "b1b": unit(b1a, b1b, 3), "b2a": unit(c, b2a),
                     "b2b": unit(b2a, b2b, 3), "b3b": unit(c, b3b)}  # fmt: skip
            if ours:
                sequence = torch.nn.Sequential
                parts = {"branch_0": parts["b0"], "branch_1": sequence(parts["b1a"], parts["b1b"]),
                         "branch_2": sequence(parts["b2a"], parts["b2b"]),
                         "branch_3": sequence(torch.nn.Identity(), parts["b3b"])}  # fmt: skip
            self.add_module(f"{'mixed' if ours else 'Mixed'}_{block}", torch.nn.ModuleDict(parts))
        self.last = "conv3d_0c_1x1" if ours else "logits"
        self.add_module(self.last, Unit(1024, classes, norm=""))
        self.ours = ours

    def mixed(self, block, x):
        parts = getattr(self, f"{'mixed' if self.ours else 'Mixed'}_{block}")
        pooled = pool(x, [3] * 3, [1] * 3)
        if self.ours:
            return torch.cat([parts[f"branch_{k}"](y) for k, y in enumerate((x, x, x, pooled))], 1)
        branches = parts["b0"](x), parts["b1b"](parts["b1a"](x)), parts["b2b"](parts["b2a"](x)), parts["b3b"](pooled)
        return torch.cat(branches, 1)

    def forward(self, x):
        x = getattr(self, self.stem[0])(x)
        x = pool(x, [1, 3, 3], [1, 2, 2])
        x = getattr(self, self.stem[2])(getattr(self, self.stem[1])(x))
        x = pool(x, [1, 3, 3], [1, 2, 2])
        for block in CHANNELS:
            if block == "4b":
                x = pool(x, [3] * 3, [2] * 3)
            if block == "5b":
                x = pool(x, [2] * 3, [2] * 3)
            x = self.mixed(block, x)
        x = getattr(self, self.last)(F.avg_pool3d(x, [2, 7, 7], 1))
        return x.squeeze(4).squeeze(3).mean(2)


def made(names="hassony2", eps=1e-3, seed=0, classes=400) -> I3D:
    """With random weights of which none is a neutral element, and variances small enough that eps shows."""
    torch.manual_seed(seed)
    net = I3D(names, eps, classes).eval()
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, torch.nn.Conv3d):
                torch.nn.init.normal_(module.weight, 0, 0.05 * (2 / module.weight[0].numel()) ** 0.5)
            if isinstance(module, torch.nn.BatchNorm3d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(1e-4, 5e-3)
                module.bias.normal_(0, 0.1)
    return net


def logits(net: I3D, clips) -> torch.Tensor:
    """Of clips f32 [b t h w 3]."""
    with torch.no_grad():
        return net(torch.as_tensor(clips).permute(0, 4, 1, 2, 3)).numpy()
