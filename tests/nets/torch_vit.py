"""VideoMAE-v2, V-JEPA and its probe in PyTorch, independent of ours, under the names of their public files."""

import torch
import torch.nn.functional as F


class Mlp(torch.nn.Module):
    def __init__(self, width, hidden):
        super().__init__()
        self.fc1, self.fc2 = torch.nn.Linear(width, hidden), torch.nn.Linear(hidden, width)

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x)))


def attend(q, k, v, heads):
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


class Attention(torch.nn.Module):
    """VideoMAE has no bias for keys, and stores the others beside the layer."""

    def __init__(self, width, heads, split):
        super().__init__()
        self.heads, self.split = heads, split
        self.qkv = torch.nn.Linear(width, 3 * width, bias=not split)
        if split:
            self.q_bias, self.v_bias = (torch.nn.Parameter(torch.zeros(width)) for _ in range(2))
        self.proj = torch.nn.Linear(width, width)

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, -1)
        if self.split:
            q, v = q + self.q_bias, v + self.v_bias
        return self.proj(attend(q, k, v, self.heads))


class Block(torch.nn.Module):
    def __init__(self, width, heads, hidden, split):
        super().__init__()
        self.norm1, self.norm2 = (torch.nn.LayerNorm(width, eps=1e-6) for _ in range(2))
        self.attn, self.mlp = Attention(width, heads, split), Mlp(width, hidden)

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Trunk(torch.nn.Module):
    def __init__(self, width, depth, heads, hidden, patch, split):
        super().__init__()
        kernel = (2, patch, patch)
        self.patch_embed = torch.nn.ModuleDict({"proj": torch.nn.Conv3d(3, width, kernel, kernel)})
        self.blocks = torch.nn.ModuleList(Block(width, heads, hidden, split) for _ in range(depth))

    def through(self, x, positions):
        x = self.patch_embed["proj"](x).flatten(2).transpose(1, 2) + positions
        for block in self.blocks:
            x = block(x)
        return x


class VideoMAE(Trunk):
    """Clips [b 3 t s s] -> features; positions are for 16 x 16 patches and 16 frames."""

    def __init__(self, width=1408, depth=40, heads=16, hidden=6144, patch=14, classes=174):
        super().__init__(width, depth, heads, hidden, patch, split=True)
        self.fc_norm = torch.nn.LayerNorm(width, eps=1e-6)
        self.head = torch.nn.Linear(width, classes)

    def forward(self, x):
        width, times = self.fc_norm.weight.numel(), x.shape[2] // 2
        angle = torch.arange(2048, dtype=torch.float64)[:, None] / 10000 ** (
            2 * (torch.arange(width, dtype=torch.float64) // 2) / width
        )
        table = torch.where(torch.arange(width) % 2 == 0, angle.sin(), angle.cos()).float()
        if times != 8:
            table = table.T.reshape(1, width, 8, 16, 16)
            table = F.interpolate(table, scale_factor=((times + 0.1) / 8, 1, 1), mode="trilinear")
            assert table.shape[2] == times
            table = table.flatten(2)[0].T
        return self.fc_norm(self.through(x, table).mean(1))


class VJEPA(Trunk):
    """Clips [b 3 t h w] -> tokens; positions are for 16 frames of `size`."""

    def __init__(self, width=1280, depth=32, heads=16, hidden=5120, patch=16, size=224):
        super().__init__(width, depth, heads, hidden, patch, split=False)
        self.patch, self.side = patch, size // patch
        self.pos_embed = torch.nn.Parameter(torch.zeros(1, 8 * self.side**2, width))
        self.norm = torch.nn.LayerNorm(width, eps=1e-6)

    def forward(self, x):
        known = (8, self.side, self.side)
        wanted = (x.shape[2] // 2, x.shape[3] // self.patch, x.shape[4] // self.patch)
        positions = self.pos_embed
        if wanted != known:
            scale = tuple(a / b for a, b in zip(wanted, known, strict=True))
            positions = positions.transpose(1, 2).unflatten(2, known)
            positions = F.interpolate(positions, scale_factor=scale, mode="trilinear").flatten(2).transpose(1, 2)
        return self.norm(self.through(x, positions))


class Cross(torch.nn.Module):
    def __init__(self, width, heads, projection):
        super().__init__()
        self.heads, self.projection = heads, projection
        self.q, self.kv = torch.nn.Linear(width, width), torch.nn.Linear(width, 2 * width)
        self.proj = torch.nn.Linear(width, width)

    def forward(self, query, x):
        seen = attend(self.q(query), *self.kv(x).chunk(2, -1), self.heads)
        return self.proj(seen) if self.projection else seen


class CrossBlock(torch.nn.Module):
    def __init__(self, width, heads, projection):
        super().__init__()
        self.norm1, self.norm2 = (torch.nn.LayerNorm(width) for _ in range(2))
        self.xattn, self.mlp = Cross(width, heads, projection), Mlp(width, 4 * width)

    def forward(self, query, x):
        query = query + self.xattn(query, self.norm1(x))
        return query + self.mlp(self.norm2(query))


class Pooler(torch.nn.Module):
    def __init__(self, width, heads, projection):
        super().__init__()
        self.query_tokens = torch.nn.Parameter(torch.zeros(1, 1, width))
        self.cross_attention_block = CrossBlock(width, heads, projection)

    def forward(self, x):
        return self.cross_attention_block(self.query_tokens.expand(len(x), -1, -1), x)[:, 0]


class Probe(torch.nn.Module):
    def __init__(self, width=1280, heads=16, classes=174, projection=True):
        super().__init__()
        self.pooler, self.linear = Pooler(width, heads, projection), torch.nn.Linear(width, classes)


def made(net, seed=0):
    """Random weights of which none is neutral; norms see small tokens and give small ones, so that eps shows."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if "norm" in name and name.endswith("weight"):
                parameter.uniform_(0.01, 0.03)
            elif parameter.ndim == 1:
                parameter.normal_(0, 0.02)
            elif name in ("pos_embed", "pooler.query_tokens"):
                parameter.normal_(0, 0.003)
            else:
                parameter.normal_(0, (2 / parameter[0].numel()) ** 0.5 * (0.02 if "patch_embed" in name else 1))
    return net.eval()


def state(net):
    return {name: tensor.detach().numpy() for name, tensor in net.state_dict().items()}


def sizes(net):
    return {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}
