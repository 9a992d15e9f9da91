"""The zoo: one small model for every way in which a loss can be written, on which the tape engine meets the oracle.

A case is a Problem (random parameters, float64 under a float32 default, a few dozen scalars) with what is expected of
the tape engine: "tape" (a complete record), "oracle" (the fallback, with its warning) or "either" (right numbers in any
case, no opinion on the way). Most cases put one operation after a first layer h = tanh(x W + b) with 4 x 6 values, so
that what reaches the operation depends on two groups and is curved, and its parameter w is a third group. The loss ends
in a weighted sum of sines: nothing is symmetric under a permutation, and no derivative vanishes.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from support.problems import DTYPE, Problem
from torch import Tensor, nn
from torch.nn.utils.parametrizations import orthogonal, spectral_norm, weight_norm
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils.checkpoint import checkpoint

import gnewton as gn


@dataclass
class Case:
    make: Callable[[], Problem]
    expected: Literal["tape", "oracle", "either"] = "tape"
    operation: str | None = None  # what the warning names, where the oracle is expected
    random: bool = False
    phi: bool = True  # whether torch.func differentiates phi, and rightly
    tolerance: float = 1e-10
    partition: Callable[[nn.Module], gn.Partition] | None = None  # in the place of the usual ones

    def build(self, seed: int = 0) -> Problem:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return self.make()


def readout(out: Tensor, y: Any) -> Tensor:
    weights = torch.linspace(0.5, 1.5, out.numel(), dtype=out.dtype, device=out.device).reshape(out.shape)
    return (weights * out.sin()).sum() / out.shape.numel() ** 0.5


def first(out: Tensor, y: Any) -> Tensor:
    return out


class Formula(nn.Module):
    """function(module, x) with parameters of the given shapes."""

    def __init__(self, function: Callable[["Formula", Tensor], Tensor], **shapes: tuple[int, ...]) -> None:
        super().__init__()
        self.function = function
        for name, shape in shapes.items():
            fan_in = max(1, shape[0] if len(shape) > 1 else 1)
            self.register_parameter(name, nn.Parameter(torch.randn(shape, dtype=DTYPE) / fan_in**0.5))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def formula(function: Any, x: tuple[int, ...] = (4, 3), criterion: Any = readout, **shapes: tuple[int, ...]) -> Problem:
    return Problem(Formula(function, **shapes), torch.randn(x, dtype=DTYPE), torch.zeros(()), criterion)


def operation(function: Callable[[Tensor, Tensor], Tensor], w: tuple[int, ...] = (6,)) -> Problem:
    def forward(m: Any, x: Tensor) -> Tensor:
        return function((x @ m.weight + m.bias).tanh(), m.w)

    return formula(forward, weight=(3, 6), bias=(6,), w=w)


def layers(*modules: nn.Module, x: tuple[int, ...], criterion: Any = readout, train: bool = True) -> Problem:
    model = (modules[0] if len(modules) == 1 else nn.Sequential(*modules)).to(DTYPE).train(train)
    perturb(model)
    return Problem(model, torch.randn(x, dtype=DTYPE), torch.zeros(()), criterion)


def perturb(model: nn.Module) -> None:
    # Biases and scales that begin at 0 and 1 would hide wrong terms.
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn_like(p))


def classifier(criterion: Any, y: Tensor, out: tuple[int, ...] = (6, 4)) -> Problem:
    classes = out[1] if len(out) > 1 else 1
    body = nn.Sequential(
        nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, out[0] * classes * out[2] // 6 if out[2:] else classes)
    )
    if len(out) != 2:
        body.append(nn.Unflatten(1, (classes, out[2])) if out[2:] else nn.Flatten(0))
    problem = layers(body, x=(6, 3), criterion=criterion)
    problem.y = y
    return problem


def closure(body: Callable[[nn.Module, Tensor, Tensor], Tensor]) -> Problem:
    """body(model, x, out) -> loss, for losses that need the model or the input again."""

    class Closure(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))

        def forward(self, x: Tensor) -> Tensor:
            return body(self.body, x, self.body(x))

    return layers(Closure(), x=(5, 3), criterion=first)


def wrapped(inner: Callable[[nn.Module], Callable[..., Tensor]]) -> Problem:
    """A linear layer, a part that is called in some unusual way, a linear layer."""

    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.middle, self.last = (nn.Linear(3, 3) for _ in range(3))
            self.to(DTYPE)
            self.call = inner(self.middle)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.call(self.first(x).tanh()).tanh())

    return layers(Wrapped(), x=(4, 3))


ZOO: dict[str, Case] = {}


def add(name: str, make: Callable[[], Problem], *expected: Any, **options: Any) -> None:
    assert name not in ZOO, name
    ZOO[name] = Case(make, *expected, **options)


# -- one operation on h (4, 6) and a parameter w (6,) --------------------------------------------------------------

SQUARE = 3 * torch.eye(4, dtype=DTYPE)
MASK = torch.arange(24).reshape(4, 6) % 3 == 0
INDEX = torch.tensor([[0, 3, 1, 2, 0, 1], [2, 2, 0, 3, 1, 0]])
OFFSETS = torch.tensor([0, 3, 3, 8])
RAMP = torch.linspace(-1, 1, 24, dtype=DTYPE).reshape(4, 6)


def square(h: Tensor) -> Tensor:
    return h[:, :4] + SQUARE


def spd(h: Tensor) -> Tensor:
    return h @ h.mT + SQUARE


def complex_assignment(h: Tensor, w: Tensor) -> Tensor:
    out = torch.zeros(4, 6, dtype=torch.complex128)
    out[:2, :3] = torch.fft.fft(h)[:2, :3] * torch.complex(w[:3], w[3:])
    out[2] = w
    return torch.fft.ifft2(out).real


def complex_in_place(h: Tensor, w: Tensor) -> Tensor:
    z = torch.fft.fft(h)
    z *= torch.complex(w, w.cos())
    z += h
    return z.mul_(2j).abs()


def real_part_in_place(h: Tensor, w: Tensor) -> Tensor:
    z = torch.fft.fft(h) * w
    z.real.mul_(2)
    return z.imag * z.real


OPERATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    # activations and element-wise functions
    **{
        name: partial(lambda f, h, w: f(h * w), getattr(F, name))
        for name in ["relu", "relu6", "elu", "selu", "celu", "gelu", "silu", "mish", "softplus", "sigmoid", "tanh", "hardtanh", "hardswish", "leaky_relu", "logsigmoid", "softsign", "tanhshrink", "softshrink", "hardshrink"]
    },
    **{
        name: partial(lambda f, h, w: f(h * w), getattr(torch, name))
        for name in ["exp", "expm1", "sin", "cos", "tan", "asinh", "atan", "square", "abs", "erf", "sign", "round", "neg", "sigmoid", "sinh", "sinc", "i0"]
    },
    **{
        name + " of positive": partial(lambda f, h, w: f(h * w.sin() + 1.5), getattr(torch, name))
        for name in ["log", "log1p", "sqrt", "rsqrt", "reciprocal", "lgamma", "digamma"]
    },
    "elu with alpha": lambda h, w: F.elu(h * w, alpha=0.7),
    "gelu tanh": lambda h, w: F.gelu(h * w, approximate="tanh"),
    "softplus with beta": lambda h, w: F.softplus(h * w, beta=2.0),
    "prelu": lambda h, w: F.prelu(h, w),
    "glu": lambda h, w: F.glu(h * w, dim=1),
    "threshold": lambda h, w: F.threshold(h * w, 0.1, -0.3),
    "pow number": lambda h, w: (h * w) ** 3,
    "pow tensor": lambda h, w: (h + 1.5) ** w,
    "number pow": lambda h, w: 2 ** (h * w),
    "divide broadcast": lambda h, w: (h[:, None] * w) / (h.view(4, 6, 1) + 2)[:, :2] - torch.div(h[:1], h + 3)[:, None],
    "divide by a constant": lambda h, w: (h * w) / (RAMP + 2) + torch.divide(RAMP, w.exp()),
    "divide by itself": lambda h, w: (lambda a: a / a.square())(h * w + 3),
    "divide rounded": lambda h, w: torch.div(h * w, w.exp(), rounding_mode="floor") + h,
    "divide": lambda h, w: h / (w.square() + 1) + 1 / (h + 2),
    "subtract": lambda h, w: 1 - h - w * 2 - torch.sub(h * w, h, alpha=3),
    "add keywords": lambda h, w: torch.add(input=h * w, other=w, alpha=2),
    "mul of itself": lambda h, w: h * h * w * w,
    "addcmul": lambda h, w: torch.addcmul(h, h.cos(), w, value=0.5),
    "addcdiv": lambda h, w: torch.addcdiv(w, h, h.square() + w.square() + 1),
    "lerp": lambda h, w: torch.lerp(h, w.expand(4, 6), h.sigmoid()),
    "atan2": lambda h, w: torch.atan2(h + 2, w),
    "hypot": lambda h, w: torch.hypot(h + 1.5, w),
    "maximum": lambda h, w: torch.maximum(h, w) * torch.minimum(h, 2 * w),
    "fmod": lambda h, w: torch.fmod(h * w, 0.3),
    "clamp": lambda h, w: (h * w).clamp(-0.3, 0.4),
    "clamp tensors": lambda h, w: torch.clamp(h * w, min=-w.square(), max=w.exp()),
    "where": lambda h, w: torch.where(h > 0, h * w, w.exp()),
    "masked_fill": lambda h, w: (h * w).masked_fill(MASK, 0.5),
    "xlogy": lambda h, w: torch.xlogy(w, h + 1.5),
    "float and back": lambda h, w: (h * w).to(torch.float64).contiguous().clone(),
    "nan_to_num": lambda h, w: torch.nan_to_num(h * w),
    "rounded index": lambda h, w: h[(h * w).argmax(0)],
    # reductions
    "sum": lambda h, w: (h * w).sum(0) * h.sum((0, 1)),
    "mean": lambda h, w: (h * w).mean(1, keepdim=True) * h,
    "var": lambda h, w: (h * w).var(0) + h.std(0, correction=0),
    "var_mean": lambda h, w: torch.var_mean(h * w, 0)[0] * torch.var_mean(h, 0)[1],
    "prod": lambda h, w: (h + w).prod(0),
    "logsumexp": lambda h, w: (h * w).logsumexp(1),
    "softmax": lambda h, w: (3 * h * w).softmax(1),
    "log_softmax": lambda h, w: (3 * h * w).log_softmax(0),
    "softmin": lambda h, w: F.softmin(h * w, dim=1),
    "norm": lambda h, w: (h * w).norm() + (h * w).norm(p=3, dim=0),
    "vector_norm": lambda h, w: torch.linalg.vector_norm(h * w, dim=1),
    "vector_norm of order 3": lambda h, w: torch.linalg.vector_norm(h * w, 3, (0,), keepdim=True) * h,
    "vector_norm of order 4.5": lambda h, w: torch.linalg.vector_norm((h * w).view(2, 2, 6), 4.5, (0, 2)),
    "vector_norm of order 1.5": lambda h, w: torch.linalg.vector_norm(h * w + 2, 1.5, 0),
    "vector_norm of order 1": lambda h, w: torch.linalg.vector_norm(h * w, 1, 1) * torch.linalg.vector_norm(h, ord=1),
    "vector_norm of order inf": lambda h, w: torch.linalg.vector_norm(h * w, float("inf"), 1) * h[:, 0],
    "norm of a dead row": lambda h, w: torch.cat([h * w, (h[:2] - 5).relu()]).norm(dim=1),
    "linalg.norm": lambda h, w: torch.linalg.norm(h * w) + torch.linalg.norm(h[0] * w, 3) + torch.linalg.norm(h, "fro"),
    "linalg.norm of axes": lambda h, w: torch.linalg.norm(h * w, dim=(0, 1)) * torch.linalg.norm(h, 4, dim=0, keepdim=True),
    "normalize": lambda h, w: F.normalize(h * w, dim=1),
    "amax": lambda h, w: (h * w).amax(0) * (h * w).amin(0),
    "max with indices": lambda h, w: (h * w).max(1).values,
    "min and gather": lambda h, w: h.gather(0, (h * w).min(0, keepdim=True).indices) * w,
    "max of all": lambda h, w: (h * w).max() * h,
    "aminmax": lambda h, w: torch.aminmax(h * w, dim=0)[0] * w,
    "median": lambda h, w: (h * w).median(0).values,
    "cumsum": lambda h, w: (h * w).cumsum(1),
    "cumprod": lambda h, w: (h + w).cumprod(1),
    "cummax": lambda h, w: torch.cummax(h * w, 1).values,
    "diff": lambda h, w: torch.diff(h * w, dim=1),
    "trace": lambda h, w: square(h * w).trace(),
    "quantile": lambda h, w: torch.quantile(h * w, 0.3, dim=0),
    # several outputs, also with some of them unused or used twice
    "chunk": lambda h, w: (lambda a, b: a.sigmoid() * b)(*(h * w).chunk(2, 1)),
    "split": lambda h, w: (lambda a, b, c: a * b + a.exp())(*(h * w).split((2, 2, 2), 1)),
    "tensor_split": lambda h, w: torch.tensor_split(h * w, 3, 1)[1],
    "unbind": lambda h, w: sum(i * row for i, row in enumerate((h * w).unbind(0))),
    "iterate": lambda h, w: sum(i * row.sin() for i, row in enumerate(h * w)),
    "sort": lambda h, w: (h * w).sort(1).values.cumsum(1),
    "topk": lambda h, w: (lambda values, indices: values * h.gather(1, indices))(*(h * w).topk(3, 1)),
    "kthvalue": lambda h, w: (h * w).kthvalue(2, 1)[0],
    "unused outputs": lambda h, w: (h * w) * ((h.exp() @ w).sort().values.sum() * 0 + 1),
    "meshgrid": lambda h, w: (lambda a, b: a * b)(*torch.meshgrid(h[0], w, indexing="ij")),
    "broadcast_tensors": lambda h, w: (lambda a, b: a * b)(*torch.broadcast_tensors(h, w)),
    "float branch": lambda h, w: h * w if float((h * w).detach().sum()) > 1e9 else h.exp() * w,
    # shapes and indices
    "transposes": lambda h, w: (h * w).T @ h.mT.t().transpose(0, 0).swapaxes(0, 1).mT,
    "permute": lambda h, w: (h * w).reshape(2, 2, 6).permute(2, 0, 1).movedim(0, 1),
    "einops-like": lambda h, w: (h * w).view(2, 2, 3, 2).transpose(1, 2).flatten(2).unflatten(-1, (2, 2)).mean(1),
    "expand": lambda h, w: (h * w)[:, None].expand(4, 3, 6) * torch.linspace(0, 1, 3, dtype=DTYPE)[:, None],
    "repeat": lambda h, w: (h * w).repeat(2, 1) * torch.tile(h, (2, 1)),
    "repeat_interleave": lambda h, w: (h * w).repeat_interleave(torch.tensor([1, 2, 0, 1]), dim=0),
    "squeeze": lambda h, w: (h * w).unsqueeze(1).squeeze()[..., None, :],
    "cat": lambda h, w: torch.cat([h, RAMP, w[None], h * w, h]),
    "hardsigmoid": lambda h, w: F.hardsigmoid(4 * h * w) * h,
    "hardsigmoid in place": lambda h, w: F.hardsigmoid(4 * h * w, inplace=True) * h,
    "cdist": lambda h, w: torch.cdist(h * w, h.flip(0) + 1),
    "cdist of order 3": lambda h, w: torch.cdist((h * w).view(2, 2, 6), h + 1, p=3.0),
    "embedding_bag": lambda h, w: F.embedding_bag(INDEX, h * w) + F.embedding_bag(INDEX, h, mode="max"),
    "embedding_bag weighted": lambda h, w: F.embedding_bag(
        INDEX, h, mode="sum", per_sample_weights=torch.stack([w, w.sin()])
    ),
    "embedding_bag with offsets": lambda h, w: F.embedding_bag(INDEX.flatten(), h * w, OFFSETS)
    + F.embedding_bag(INDEX.flatten(), h, OFFSETS, mode="max", padding_idx=1),
    "embedding_bag weighted, with offsets": lambda h, w: F.embedding_bag(
        INDEX.flatten(), h, torch.cat([OFFSETS, torch.tensor([12])]), mode="sum", per_sample_weights=torch.cat([w, w.sin()]),
        include_last_offset=True,
    ),
    "class token": lambda h, w: torch.cat([w.expand(2, 2, 6), h.view(2, 2, 6) * w], 1),
    "stack of expanded": lambda h, w: torch.stack([w[:1].expand(4), h[:, :1].expand(4, 4)[0], h[:, 2]]),
    "out of nothing": lambda h, w: torch.linalg.cholesky_ex(spd(h * w), out=None)[0],
    "cat keywords": lambda h, w: torch.cat(tensors=[h, h * w], dim=1),
    "stack": lambda h, w: torch.stack([h[0], w, w, h[1] * w], 1),
    "hstack": lambda h, w: torch.hstack([h, h * w]) + torch.vstack([w, h]).sum(),
    "roll": lambda h, w: (h * w).roll((1, 2), (0, 1)),
    "flip": lambda h, w: (h * w).flip(0) + h.rot90(2),
    "slices": lambda h, w: (h * w)[1:, ::2] * h[-1, 0] * h[:3, 3:],
    "advanced indexing": lambda h, w: (h * w)[[0, 2, 2], [1, 5, 1]] * w[INDEX[0, :3]],
    "boolean indexing": lambda h, w: (h * w)[MASK] * torch.masked_select(h, MASK),
    "gather": lambda h, w: (h * w).gather(0, INDEX),
    "take_along_dim": lambda h, w: torch.take_along_dim(h * w, INDEX, 0),
    "index_select": lambda h, w: (h * w).index_select(0, INDEX[0]),
    "index_add": lambda h, w: torch.zeros(4, 6, dtype=DTYPE).index_add(0, INDEX[0, :4], h * w) * h,
    "scatter_add": lambda h, w: h.scatter_add(0, INDEX, (h * w)[:2]),
    "scatter": lambda h, w: (h * w).scatter(0, INDEX[:1], w[None]),
    "index_put": lambda h, w: h.index_put((INDEX[0, :2],), w.expand(2, 6)),
    "index_add scaled": lambda h, w: torch.index_add(h, 1, INDEX[0], h * w, alpha=-0.5),
    "index_copy": lambda h, w: (h * w).index_copy(0, INDEX[0, 1:3], h[:2]) + (h * w).index_fill(1, INDEX[0, :2], 0.5),
    "index_put accumulated": lambda h, w: h.index_put((INDEX[0, :2],), w.expand(2, 6), accumulate=True),
    "masked_scatter": lambda h, w: (h * w).masked_scatter(MASK, h.flatten()),
    "as_strided of a view": lambda h, w: (h * w)[1:].as_strided((3, 2), (1, 6)) * w[:2],
    "scatter of a number": lambda h, w: h.scatter(1, INDEX, 0.7) * h.scatter_add(0, INDEX, (h * w)[:2]),
    "scattered slices": lambda h, w: h.slice_scatter((h * w)[:2], 0, 1, 3) * h.select_scatter(w, 0, 2),
    "diagonal_scatter": lambda h, w: h.diagonal_scatter(w[:4]) + (h * w).diagonal_scatter(h[0, :4], 1)[:, :1],
    "diagonal": lambda h, w: square(h * w).diagonal() + torch.diag(w)[:4, :4],
    "tril": lambda h, w: square(h * w).tril() @ square(h).triu(),
    "tensor unfold": lambda h, w: (h * w).unfold(1, 3, 1),
    "scatter_reduce": lambda h, w: h.scatter_reduce(0, INDEX, (h * w)[:2], "mean"),
    "restacked": lambda h, w: torch.stack([torch.stack(list(row)) for row in h * w]),
    "as_strided": lambda h, w: (h * w).as_strided((3, 4), (1, 6)),
    "pad constant 0": lambda h, w: F.pad(h * w, (1, 2)),
    "pad constant 1": lambda h, w: F.pad(h * w, (1, 2, 0, 1), value=1.0),
    "pad by less": lambda h, w: F.pad(h * w, (-1, 2, 1, -1), value=-2.0),
    "pad images": lambda h, w: F.pad((h * w).view(1, 2, 3, 4), (1, 2, 2, 0), mode="reflect") * F.pad(
        h.view(1, 2, 3, 4), (0, 3, 1, 1), mode="circular"
    ),
    "pad unbatched images": lambda h, w: F.pad((h * w).view(2, 3, 4), (1, 2, 2, 0), mode="replicate"),
    "pad reflect": lambda h, w: F.pad((h * w)[None], (2, 1), mode="reflect"),
    "pad replicate": lambda h, w: F.pad((h * w)[None], (2, 1), mode="replicate"),
    "pad circular": lambda h, w: F.pad((h * w)[None], (2, 1), mode="circular"),
    "unfold": lambda h, w: F.unfold((h * w).view(1, 2, 3, 4), 2),
    "fold": lambda h, w: F.fold((h * w).reshape(1, 4, 6), (3, 4), 2),
    "pixel_shuffle": lambda h, w: F.pixel_shuffle((h * w).view(1, 4, 2, 3), 2),
    "pixel_unshuffle": lambda h, w: F.pixel_unshuffle((h * w).view(1, 1, 4, 6), 2),
    "interpolate nearest": lambda h, w: F.interpolate((h * w).view(1, 1, 4, 6), scale_factor=2),
    "interpolate bilinear": lambda h, w: F.interpolate((h * w).view(1, 1, 4, 6), size=(5, 7), mode="bilinear"),
    "block_diag": lambda h, w: torch.block_diag(h[:2, :2], w[:2, None]),
    "combinations": lambda h, w: torch.combinations(w, 2) * h[0, 0],
    # constants in the middle
    "detach": lambda h, w: h.detach() * w * h + w.detach() * h,
    "no_grad": lambda h, w: h * w / _without_gradient(h).norm(),
    "number": lambda h, w: h * w * float((h * w).abs().max().detach()) + h.detach().sum().item() * w,
    "numpy": lambda h, w: h * w * torch.from_numpy(h.detach().numpy().copy()),
    "new tensors": lambda h, w: h * w + torch.ones_like(h) + h.new_full((6,), 2.0) * torch.zeros_like(w),
    # matrix products
    "matmul 2-d": lambda h, w: h @ (h.mT * w[:4]),
    "matmul 1-d": lambda h, w: (h @ w) * (w @ h.mT) + (w @ w + torch.dot(h[0], w) + h.mv(w) + (h.mm(h.mT)).sum()) / 10,
    "matmul of a vector keywords": lambda h, w: torch.matmul(input=h.view(2, 2, 6), other=w) + torch.mv(input=h, vec=w)[:2],
    "matmul of shared vectors": lambda h, w: w @ (h * w).view(2, 6, 2) + h.view(1, 4, 6) @ h[0] @ h[:, :2],
    "matmul batched": lambda h, w: (h * w).view(2, 2, 6) @ h.mT,
    "matmul broadcast": lambda h, w: torch.matmul(h.view(2, 1, 2, 6), (h * w).view(2, 6, 2)),
    "matmul batch 1-d": lambda h, w: h.view(2, 2, 6) @ w + (w @ (h * w).view(1, 4, 6).mT).view(2, 2),
    "bmm": lambda h, w: torch.bmm(h.view(2, 2, 6), (h * w).view(2, 6, 2)),
    "baddbmm": lambda h, w: torch.baddbmm(w[:2], h.view(2, 2, 6), (h * w).view(2, 6, 2), beta=0.5, alpha=2.0),
    "addmm": lambda h, w: torch.addmm(w[:4], h, (h * w).mT, beta=0.5, alpha=2.0),
    "addmv": lambda h, w: torch.addmv(h[:, 0], h, w),
    "addbmm": lambda h, w: torch.addbmm(w[:2], h.view(2, 2, 6), (h * w).view(2, 6, 2)),
    "outer": lambda h, w: torch.outer(h[0], w) + torch.addr(h[0, 0], w, h[1]),
    "kron": lambda h, w: torch.kron(h[:2, :2], w.view(2, 3)),
    "tensordot": lambda h, w: torch.tensordot(h.view(2, 2, 6), (h * w).view(4, 6), dims=([2], [1])),
    "einsum": lambda h, w: torch.einsum("ij,kj,j->ik", h, h.exp(), w),
    "einsum of ellipses": lambda h, w: torch.einsum("...i,...ij->...j", h.view(2, 2, 6), (h * w).view(1, 2, 2, 6)[..., :1, :].expand(1, 2, 6, 6)),
    "einsum of one": lambda h, w: torch.einsum("ij->j", h * w) * torch.einsum("ii", square(h)),
    "einsum of numbers": lambda h, w: torch.einsum(h, [0, 1], h * w, [2, 1], [2, 0]) + torch.einsum("i,j", h[0, :2], w[:2]).sum(),
    "einsum broadcast": lambda h, w: torch.einsum("ij,kj->ik", h[:, :1], h * w),
    "einsum summed alone": lambda h, w: torch.einsum("ij,kl->k", h, h * w) + torch.einsum("ij,jk,kl,l->i", h, h.mT, h * w, w),
    "einsum of a list": lambda h, w: torch.einsum("bij,bjk->bik", [h.view(2, 2, 6), (h * w).view(2, 6, 2)]),
    "einsum diagonal": lambda h, w: torch.einsum("ii,ij->ji", square(h), h * w),
    "multi_dot": lambda h, w: torch.linalg.multi_dot([h, (h * w).mT, h]),
    "linear of activations": lambda h, w: F.linear(h, h * w, h[:, 0]),
    "linear keywords": lambda h, w: F.linear(input=h, weight=w.view(1, 6), bias=w[:1]),
    "bilinear": lambda h, w: F.bilinear(h, h * w, h.view(2, 2, 6)[:, :, None, :].expand(2, 2, 6, 6).reshape(4, 6, 6)[:2]),
    "cosine_similarity": lambda h, w: F.cosine_similarity(h, w, dim=1) + F.cosine_similarity(h * w, h, dim=1),
    "pairwise_distance": lambda h, w: F.pairwise_distance(h, h * w + 1),
    "cross": lambda h, w: torch.linalg.cross(h.view(4, 2, 3), w.view(2, 3).expand(4, 2, 3)),
    "normal density": lambda h, w: torch.distributions.Normal(h, w.exp()).log_prob(RAMP),
    "categorical": lambda h, w: torch.distributions.Categorical(logits=h * w).log_prob(INDEX[0, :4]),
    "multivariate normal": lambda h, w: torch.distributions.MultivariateNormal(h[0, :4], spd(h * w)).log_prob(RAMP[:, :4]),
    "covariance": lambda h, w: torch.cov(h * w) + torch.corrcoef(h),
    # linear algebra
    "inv": lambda h, w: square(h * w).inverse() @ torch.linalg.inv(square(h)),
    "solve": lambda h, w: torch.linalg.solve(square(h), h * w),
    "det": lambda h, w: square(h * w).det() + square(h).logdet() + torch.linalg.slogdet(square(h * w))[1],
    "cholesky": lambda h, w: torch.linalg.cholesky(spd(h * w)),
    "triangular solve": lambda h, w: torch.linalg.solve_triangular(square(h).tril(), h * w, upper=False),
    "eigh values": lambda h, w: torch.linalg.eigvalsh(spd(h * w)),
    "eigh": lambda h, w: torch.linalg.eigh(spd(h * w))[1].square(),
    "svd values": lambda h, w: torch.linalg.svdvals(h * w),
    "svd": lambda h, w: (lambda u, s, v: (u * s.log()) @ v)(*torch.linalg.svd(h * w, full_matrices=False)),
    "qr": lambda h, w: torch.linalg.qr((h * w).mT)[1].square(),
    "matrix_exp": lambda h, w: torch.matrix_exp(square(h * w) / 3),
    "matrix_power": lambda h, w: torch.linalg.matrix_power(square(h * w), 3),
    "matrix norm": lambda h, w: torch.linalg.matrix_norm(h * w, "nuc") + torch.linalg.norm(h * w),
    # the same scalars in the same order
    "reshape_as": lambda h, w: (h * w).exp().reshape_as((h * w).reshape(2, 2, 6)).sin(),
    "shapes": lambda h, w: (h * w).mT.ravel().unflatten(0, (6, 1, 4)).squeeze(1).contiguous().view_as(h).clone().exp(),
    # complex numbers
    "fft": lambda h, w: torch.fft.rfft(h * w).abs(),
    "fft of images": lambda h, w: torch.fft.irfftn(torch.fft.rfftn(h * w, norm="ortho") * torch.fft.rfftn(h), s=(4, 6)),
    "fft and conjugates": lambda h, w: (lambda z: z.real * z.imag + z.conj().imag)(torch.fft.fft2(h * w) * torch.fft.ifft2(h)),
    "stft": lambda h, w: torch.stft(
        (h * w).flatten(), 8, window=torch.hann_window(8, dtype=DTYPE), return_complex=True
    ).abs().square(),
    "complex filter": lambda h, w: torch.fft.irfft(torch.fft.rfft(h) * torch.view_as_complex(w[:4].view(2, 2)).sum(), n=6),
    "view_as_real": lambda h, w: torch.view_as_real(torch.complex(h, h * w).exp()),
    "complex matmul": lambda h, w: (torch.complex(h, h * w) @ torch.complex(w, h[0]).exp().conj()).abs(),
    "complex matrices": lambda h, w: (torch.complex(h, h * w).mH @ torch.complex(h, w.expand(4, 6))).imag,
    "complex einsum": lambda h, w: torch.einsum("ij,kj,j->ik", torch.complex(h, h * w), torch.fft.fft(h), w.to(torch.complex128)).real,
    "complex einsum of conjugates": lambda h, w: torch.view_as_real(
        torch.einsum("ij,kj->ik", torch.complex(h, h * w), torch.fft.fft(h * w).mH.mT)
    ),
    "complex numbers": lambda h, w: ((h * w) * 1j + 2).angle() + (h * 1j * (h + 1j)).real,
    "complex quotients": lambda h, w: (torch.complex(h, w.expand(4, 6)) / torch.complex(h + 2, w * h)).real
    + (torch.fft.fft(h) / (2 + 1j)).imag,
    "complex product of a real": lambda h, w: (torch.fft.fft(h)[:, None] * torch.complex(w, w.sin()) * h).imag,
    "complex dot": lambda h, w: torch.vdot(torch.fft.fft(h[0]), torch.fft.fft(h[1] * w)).real * h,
    "complex norms": lambda h, w: torch.complex(h, h * w).norm(dim=1) + torch.linalg.vector_norm(torch.fft.rfft(h)),
    "complex powers": lambda h, w: (torch.complex(h + 2, h * w) ** 2).real + torch.complex(h, h * w).square().imag,
    "complex slices": lambda h, w: torch.view_as_real(torch.cat([torch.fft.fft(h), torch.fft.fft(h * w)], 1).mT[1:, ::2].sum(0)),
    "complex assignment": lambda h, w: complex_assignment(h, w),
    "complex in place": lambda h, w: complex_in_place(h, w),
    "complex solve": lambda h, w: torch.linalg.solve(
        torch.complex(square(h), square(h * w)), torch.complex(h, w.expand(4, 6))
    ).real,
    "polar": lambda h, w: torch.polar(h + 2, w.expand(4, 6)).real.cumsum(0) * torch.polar(h + 2, h * w).imag,
    # attention
    "attention": lambda h, w: F.scaled_dot_product_attention(h.view(1, 2, 2, 6), (h * w).view(1, 2, 2, 6), h.view(1, 2, 2, 6)),
    "attention with a mask": lambda h, w: F.scaled_dot_product_attention(h, h * w, h.exp(), attn_mask=RAMP[:, :4]),
    "attention with a boolean mask": lambda h, w: F.scaled_dot_product_attention(
        h[None], (h * w)[None], h[None], attn_mask=torch.ones(4, 4, dtype=torch.bool).tril()
    ),
    "causal attention": lambda h, w: F.scaled_dot_product_attention(h[None], (h * w)[None], h.exp()[None], is_causal=True),
    "attention of grouped queries": lambda h, w: F.scaled_dot_product_attention(
        h.view(1, 4, 2, 3), (h * w)[:2].view(1, 2, 2, 3), h.exp()[1:3].view(1, 2, 2, 3), enable_gqa=True
    ),
    "causal attention of grouped queries": lambda h, w: F.scaled_dot_product_attention(
        h.view(4, 2, 3), (h * w)[:2].view(2, 2, 3), h.exp()[1:3].view(2, 2, 3), is_causal=True, enable_gqa=True
    ),
    "attention with a learned mask": lambda h, w: F.scaled_dot_product_attention(h, h.sin(), h.exp(), attn_mask=h @ (h * w).mT),
    "attention to nothing": lambda h, w: F.scaled_dot_product_attention(
        h, h * w, h.exp(), attn_mask=torch.tensor([[True, False, True, True], [False] * 4, [True] * 4, [False] * 4])
    ),
    "attention with a scale": lambda h, w: F.scaled_dot_product_attention(h, h * w, h.exp(), scale=0.7),
}  # fmt: skip

if torch.aminmax(torch.ones(2, requires_grad=True)).min.grad_fn.name().endswith("NotImplemented"):
    del OPERATIONS["aminmax"]  # torch 2.6 has no derivative of it

for _name, _function in OPERATIONS.items():
    add(_name, partial(operation, _function), "either" if _name == "as_strided of a view" else "tape")


@torch.no_grad()
def _without_gradient(h: Tensor) -> Tensor:
    return h.exp() * 2


# -- in-place calls ------------------------------------------------------------------------------------------------


def tanh_and_its_input(h: Tensor, w: Tensor) -> Tensor:
    before = h * w
    return before.tanh_() + before  # two names for one tensor, both overwritten


def view_overwritten(h: Tensor, w: Tensor) -> Tensor:
    base = h * w
    base[0].mul_(w)
    return base.sin()


def base_overwritten(h: Tensor, w: Tensor) -> Tensor:
    base = h * w
    row = base[0]
    base.exp_()
    return base + row


def slice_of_view_read(h: Tensor, w: Tensor) -> Tensor:
    base = h * w
    column = base.view(24)[::6]
    column += 1.0
    return base * base.sum()


def item_assignment(h: Tensor, w: Tensor) -> Tensor:
    out = h.clone()
    out[:, 0] = w[:4] * h[:, 1]
    return out * w


def rows_collected(h: Tensor, w: Tensor) -> Tensor:
    out = torch.zeros(4, 6, dtype=DTYPE)
    for i in range(4):
        out[i] = h[i] * w
    return out


def accumulated(h: Tensor, w: Tensor) -> Tensor:
    total = torch.zeros(6, dtype=DTYPE)
    for row in h:
        total += row * w
    return total


def accumulated_by_method(h: Tensor, w: Tensor) -> Tensor:
    total = torch.zeros(6, dtype=DTYPE)
    for row in h:
        total.add_(row * w)
    return total


def copied_into(h: Tensor, w: Tensor) -> Tensor:
    out = torch.empty(4, 6, dtype=DTYPE)
    out.copy_(h * w)
    return out.sin()


def residual(h: Tensor, w: Tensor) -> Tensor:
    identity = h
    out = h * w
    out += identity
    return out.relu_() + identity


def chain_of_updates(h: Tensor, w: Tensor) -> Tensor:
    out = h * w
    out *= 2
    out -= h
    out /= w.square() + 1
    return out.sigmoid_()


def detached_alias(h: Tensor, w: Tensor) -> Tensor:
    out = h * w
    constant = out.detach()  # shares the storage that exp_ overwrites
    out = out.exp_()
    return out * constant


def constant_updated_later(h: Tensor, w: Tensor) -> Tensor:
    factor = RAMP.clone()
    out = h + factor  # an addition saves nothing, so that autograd does not object to what follows
    factor.mul_(3.0)
    return out * w


def results_not_used(h: Tensor, w: Tensor) -> Tensor:
    out = h * w
    out.clamp_(min=-0.1).add_(h, alpha=2.0)
    F.silu(out, inplace=True)
    return out * w


def read_between(h: Tensor, w: Tensor) -> Tensor:
    out = h * w
    later = out + 1  # saves nothing for the backward pass, so that autograd allows what follows
    out.mul_(2)
    return out * later


def overwritten_without_gradient(h: Tensor, w: Tensor) -> Tensor:
    out = h * w
    with torch.no_grad():
        out.mul_(2)
    return out.sin() + h


def zeroed_behind_autograd(h: Tensor, w: Tensor) -> Tensor:
    out = h + w
    later = out + 1
    out.detach().zero_()
    return later * w + out


def view_of_what_is_filled(h: Tensor, w: Tensor) -> Tensor:
    out = torch.zeros(4, 6, dtype=DTYPE)
    row = out[1]
    out.add_(h * w)
    return row * w


def masked_assignment(h: Tensor, w: Tensor) -> Tensor:
    out = h * w
    out[out < 0] = 0.0
    return out.sin()


def parameter_filled(h: Tensor, w: Tensor) -> Tensor:
    out = torch.zeros(4, 6, dtype=DTYPE)
    out[0], out[1:] = w, h[1:]
    return out.sin()


for _function in (view_overwritten, base_overwritten, slice_of_view_read):
    add(_function.__name__, partial(operation, _function))
for _function in (item_assignment, masked_assignment, rows_collected, parameter_filled):
    add(_function.__name__, partial(operation, _function))
for _function in (
    view_of_what_is_filled,
    zeroed_behind_autograd,
    tanh_and_its_input,
    accumulated_by_method,
    copied_into,
    detached_alias,
    constant_updated_later,
):
    add(_function.__name__, partial(operation, _function), "either")
for _function in (
    accumulated,
    residual,
    chain_of_updates,
    results_not_used,
    read_between,
    overwritten_without_gradient,
):
    add(_function.__name__, partial(operation, _function))
for _name in ["relu_", "tanh_", "sigmoid_", "exp_", "sin_"]:
    add(_name, partial(operation, lambda h, w, n=_name: getattr(h * w, n)()))
add("real_part_in_place", partial(operation, real_part_in_place), "oracle", "mul_ writes into a tensor")
add("transpose_", partial(operation, lambda h, w: (h * w).transpose_(0, 1) * h.mT))
add("zero_", partial(operation, lambda h, w: (h * w).zero_() + h * w), "either")
add("index_add_", partial(operation, lambda h, w: (h * w).index_add_(0, INDEX[0, :4], h)))
add("masked_fill_", partial(operation, lambda h, w: (h * w).masked_fill_(MASK, -1.0).softmax(1)))
for _name, _module in {"ReLU": nn.ReLU, "ELU": nn.ELU, "SiLU": nn.SiLU, "LeakyReLU": nn.LeakyReLU}.items():
    add(
        f"{_name}(inplace=True)",
        lambda m=_module: layers(nn.Linear(3, 4), m(inplace=True), nn.Linear(4, 4), m(inplace=True), x=(5, 3)),
    )

# -- parameters ----------------------------------------------------------------------------------------------------


def tied() -> Problem:
    first, last = nn.Linear(3, 4), nn.Linear(4, 3)
    middle = nn.Linear(3, 4)
    middle.weight = first.weight
    return layers(first, nn.Tanh(), last, nn.Tanh(), middle, x=(4, 3))


def frozen() -> Problem:
    problem = layers(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2), x=(4, 3))
    problem.model[2].weight.requires_grad_(False)
    return problem


def unused() -> Problem:
    return formula(lambda m, x: (x @ m.weight).tanh() @ m.w, weight=(3, 4), unused=(2, 2), w=(4, 2))


def perceptron(train: bool = True) -> Problem:
    return layers(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3), nn.Softplus(), nn.Linear(3, 2), x=(4, 3), train=train)


def half_of(model: nn.Module) -> gn.Partition:
    weight = model[0].weight
    mask = torch.rand(weight.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    groups = {"part": {"0.weight": (weight, mask)}, "rest": {"0.weight": (weight, ~mask), "2.bias": model[2].bias}}
    return gn.Partition.from_groups(groups)


def first_rows(model: nn.Module) -> gn.Partition:
    mask = torch.arange(4)[:, None].expand(4, 3) < 1
    return gn.Partition.from_groups([{"0.weight": (model[0].weight, mask)}, {"0.bias": model[0].bias}], rest="ignore")


add("tied", tied)
add("tied in one product", lambda: formula(lambda m, x: (x @ m.w).tanh() @ m.w.T @ m.w, w=(3, 4)))
add("frozen", frozen)
add("unused", unused)
add("two groups of six", perceptron, partition=lambda m: gn.Partition.by_name(m, {"a": "0.*", "b": "4.bias"}, "ignore"))
add("masked groups", perceptron, partition=half_of)
add("rows in no group", perceptron, partition=first_rows)
add("by scalar", lambda: formula(lambda m, x: (x @ m.w + m.b).tanh() ** 2, w=(3, 2), b=(2,)))
add("square of a matrix", lambda: formula(lambda m, x: F.linear(m.w, m.w, m.b) @ x, x=(3, 2), w=(3, 3), b=(3,)))
add("product of parameters", lambda: formula(lambda m, x: m.a * m.b * m.a + m.a @ m.b, a=(3,), b=(3,)))
add("the loss is a parameter", lambda: formula(lambda m, x: m.w, criterion=first, w=()), "either")
add("the loss views a parameter", lambda: formula(lambda m, x: m.w[1], criterion=first, w=(2,)), "either")
add("linear in the parameters", lambda: formula(lambda m, x: (x @ m.w).sum(), criterion=first, w=(3, 2)))
add("loss of shape (1,)", lambda: formula(lambda m, x: (x @ m.w).exp().mean(0), criterion=first, w=(3, 1)))
add("weight_norm", lambda: layers(weight_norm(nn.Linear(3, 4)), nn.Tanh(), weight_norm(nn.Linear(4, 2)), x=(4, 3)))
add(
    "vector of parameters",
    lambda: closure(lambda m, x, out: out.sin().mean() + nn.utils.parameters_to_vector(m.parameters()).norm(p=3)),
)
add(
    "weight decay",
    lambda: closure(lambda m, x, out: out.sin().mean() + 0.1 * sum(p.square().sum() for p in m.parameters())),
)
add("norm penalty", lambda: closure(lambda m, x, out: out.sin().mean() + sum(p.norm() for p in m.parameters())))
add(
    "norm of a list",
    lambda: closure(lambda m, x, out: out.sin().mean() + nn.utils.get_total_norm(list(m.parameters()))),
    "either",
)

add("spectral_norm", lambda: layers(spectral_norm(nn.Linear(3, 4)), nn.Tanh(), nn.Linear(4, 2), x=(4, 3)))
add("orthogonal", lambda: layers(orthogonal(nn.Linear(3, 3)), nn.Tanh(), nn.Linear(3, 2), x=(4, 3)))

# -- structure -----------------------------------------------------------------------------------------------------


def skip(m: Any, x: Tensor) -> Tensor:
    h = (x @ m.a).tanh()
    h = h + (h @ m.b).tanh() * x
    return h + F.silu(torch.cat([h, x], 1) @ m.c)


def recurrent_cell(m: Any, x: Tensor) -> Tensor:
    h = x.new_zeros(x.shape[0], 3)
    for t in range(x.shape[1]):
        h = torch.tanh(x[:, t] @ m.a + h @ m.b + m.c)
    return h


def siamese(m: nn.Module, x: Tensor, out: Tensor) -> Tensor:
    return F.cosine_similarity(out, m(x.flip(0))).exp().sum()


def gradient_penalty(m: nn.Module, x: Tensor, out: Tensor) -> Tensor:
    x = x.detach().requires_grad_()
    (slope,) = torch.autograd.grad(m(x).sin().sum(), x, create_graph=True)
    return out.sin().mean() + slope.square().sum()


def slope_by_torch_func(m: nn.Module, x: Tensor, out: Tensor) -> Tensor:
    return out.sin().mean() + torch.func.grad(lambda z: m(z).sin().sum())(x).square().sum()


class Cells(nn.Module):
    def __init__(self, cell: nn.Module) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, x: Tensor) -> Tensor:
        state = None
        for t in range(x.shape[1]):
            state = self.cell(x[:, t], state)
        return state[0] * state[1] if isinstance(state, tuple) else state


class First(nn.Module):
    """The first output of a module that returns several, called on the input as often as it has arguments for."""

    def __init__(self, inner: nn.Module, arguments: int = 1, **options: Any) -> None:
        super().__init__()
        self.inner, self.arguments, self.options = inner, arguments, options

    def forward(self, x: Tensor) -> Tensor:
        out = self.inner(*[x] * self.arguments, **self.options)
        return out[0] if isinstance(out, tuple) else out


class States(First):
    """The final states of a recurrent module beside its outputs."""

    def forward(self, x: Tensor) -> Tensor:
        out, state = self.inner(x)
        return out.sum() + torch.cat([s.sin() for s in (state if isinstance(state, tuple) else (state,))]).sum()


class Packed(First):
    def forward(self, x: Tensor) -> Tensor:
        packed = pack_padded_sequence(x, torch.tensor([2, 3, 1]), batch_first=True, enforce_sorted=False)
        return pad_packed_sequence(self.inner(packed)[0])[0]


add("skip", lambda: formula(skip, a=(3, 3), b=(3, 3), c=(6, 3)))
add("recurrent cell", lambda: formula(recurrent_cell, x=(2, 4, 3), a=(3, 3), b=(3, 3), c=(3,)))
add("siamese", lambda: closure(siamese))
add("gradient penalty", lambda: closure(gradient_penalty))
add("torch.func.grad in the loss", lambda: closure(slope_by_torch_func))
for _name, _cell in {"RNNCell": nn.RNNCell, "LSTMCell": nn.LSTMCell, "GRUCell": nn.GRUCell}.items():
    add(_name, lambda cell=_cell: layers(Cells(cell(2, 2)), x=(2, 3, 2)))
for _name, _net in {"RNN": nn.RNN, "LSTM": nn.LSTM, "GRU": nn.GRU}.items():
    add(_name, lambda net=_net: layers(nn.Linear(2, 2), First(net(2, 2, batch_first=True)), x=(2, 3, 2)))
    add(f"{_name} states", lambda net=_net: layers(nn.Linear(2, 2), States(net(2, 2)), x=(2, 3, 2)))
add(
    "LSTM of two layers",
    lambda: layers(First(nn.LSTM(2, 2, num_layers=2, bidirectional=True)), x=(2, 3, 2)),
    partition=gn.Partition.by_kind,
)
add("RNN relu", lambda: layers(First(nn.RNN(2, 2, nonlinearity="relu")), x=(2, 3, 2)))
add("GRU with dropout", lambda: layers(First(nn.GRU(2, 2, 2, dropout=0.5)), x=(2, 3, 2)), "either", random=True)
add("GRU packed", lambda: layers(nn.Linear(2, 2), Packed(nn.GRU(2, 2, batch_first=True)), x=(3, 3, 2)), "either")

# -- attention, norms, dropout, embeddings -------------------------------------------------------------------------

CAUSAL = nn.Transformer.generate_square_subsequent_mask(3, dtype=DTYPE)


def encoder(dropout: float, train: bool, **options: Any) -> Problem:
    return layers(nn.TransformerEncoderLayer(4, 2, 4, dropout, batch_first=True, **options), x=(2, 3, 4), train=train)


def attention(**options: Any) -> Problem:
    return layers(nn.Linear(4, 4), First(nn.MultiheadAttention(4, 2, batch_first=True), 3, **options), x=(2, 3, 4))


class Attended(First):
    def forward(self, x: Tensor) -> Tensor:
        out, weights = self.inner(x, x, x, need_weights=True)
        return out.sum() + weights.sin().sum()


add("MultiheadAttention", attention)
add("MultiheadAttention without weights", lambda: attention(need_weights=False))
add("MultiheadAttention with a mask", lambda: attention(attn_mask=CAUSAL, need_weights=False))
add(
    "MultiheadAttention with padding",
    lambda: attention(key_padding_mask=torch.tensor([[False, False, True], [False] * 3])),
)
add("attention weights", lambda: layers(nn.Linear(4, 4), Attended(nn.MultiheadAttention(4, 2)), x=(3, 2, 4)))
add("encoder", lambda: encoder(0.0, True))
add("encoder in eval", lambda: encoder(0.5, False), partition=gn.Partition.by_layer)
add("encoder with dropout", lambda: encoder(0.3, True), random=True)
add(
    "encoder, norm first, gelu",
    lambda: encoder(0.0, True, norm_first=True, activation="gelu"),
    partition=gn.Partition.by_kind,
)
add(
    "decoder",
    lambda: layers(First(nn.TransformerDecoderLayer(4, 2, 4, 0.0), 2), x=(2, 3, 4)),
    partition=gn.Partition.by_layer,
)
add(
    "attention with dropout",
    partial(operation, lambda h, w: F.scaled_dot_product_attention(h, h * w, h, dropout_p=0.5)),
    random=True,
)

NORMS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "BatchNorm1d": (lambda: nn.BatchNorm1d(3), (5, 3)),
    "BatchNorm1d of sequences": (lambda: nn.BatchNorm1d(3), (3, 3, 4)),
    "BatchNorm2d": (lambda: nn.BatchNorm2d(2), (3, 2, 3, 3)),
    "BatchNorm1d without statistics": (lambda: nn.BatchNorm1d(3, affine=False, track_running_stats=False), (5, 3)),
    "LayerNorm": (lambda: nn.LayerNorm(3), (5, 3)),
    "LayerNorm of two axes": (lambda: nn.LayerNorm((2, 3), bias=False), (4, 2, 3)),
    "GroupNorm": (lambda: nn.GroupNorm(2, 4), (2, 4, 3)),
    "InstanceNorm": (lambda: nn.InstanceNorm1d(2, affine=True), (3, 2, 4)),
    "InstanceNorm with statistics": (lambda: nn.InstanceNorm1d(2, track_running_stats=True), (3, 2, 4)),
    "RMSNorm": (lambda: nn.RMSNorm(3, eps=1e-5), (5, 3)),
    "LocalResponseNorm": (lambda: nn.LocalResponseNorm(2, alpha=0.5), (2, 3, 4)),
}


def normed(norm: nn.Module, x: tuple[int, ...], train: bool) -> Problem:
    problem = layers(nn.Linear(x[-1], x[-1]), nn.Tanh(), norm, nn.Softplus(), nn.Linear(x[-1], 1), x=x, train=train)
    for name, buffer in norm.named_buffers():
        if buffer.is_floating_point():
            buffer.copy_(torch.rand_like(buffer) + ("var" in name))
    return problem


for _name, (_norm, _x) in NORMS.items():
    for _train in (True, False):
        add(
            _name + ("" if _train else " in eval"),
            lambda norm=_norm, x=_x, train=_train: normed(norm(), x, train),
            # torch 2.6 counts the statistics as overwritten in eval, too.
            "either" if _name == "InstanceNorm with statistics" else "tape",
        )


def dropped(*drops: nn.Module, x: tuple[int, ...] = (4, 3), train: bool = True) -> Problem:
    return layers(nn.Linear(x[-1], 4), nn.Tanh(), *drops, nn.Linear(4, 2), x=x, train=train)


add("Dropout", lambda: dropped(nn.Dropout(0.4)), random=True)
add(
    "Dropout of several kinds", lambda: dropped(nn.Dropout(0.2), nn.Tanh(), nn.AlphaDropout(0.2)), "either", random=True
)
add("Dropout1d", lambda: dropped(nn.Dropout1d(0.4), x=(3, 2, 3)), random=True)
add("Dropout2d", lambda: dropped(nn.Dropout2d(0.4), x=(2, 2, 2, 3)), random=True)
add("Dropout in place", lambda: dropped(nn.Linear(4, 4), nn.Dropout(0.4, inplace=True)), "either", random=True)
add("AlphaDropout", lambda: dropped(nn.AlphaDropout(0.4)), "either", random=True)
add("FeatureAlphaDropout", lambda: dropped(nn.FeatureAlphaDropout(0.4), x=(3, 2, 3)), "either", random=True)
add("Dropout of nothing", lambda: dropped(nn.Dropout(0.0)), random=True)
add("Dropout in eval", lambda: dropped(nn.Dropout(0.4), nn.AlphaDropout(0.3), train=False))
add("dropout functional", partial(operation, lambda h, w: F.dropout(h * w, 0.4)), random=True)
add("dropout functional p=0", partial(operation, lambda h, w: F.dropout(h, 0.0) * w), random=True)
add("dropout of all", partial(operation, lambda h, w: F.dropout(h, 1.0) * w + w), random=True)
add("noise", partial(operation, lambda h, w: h + w * torch.randn_like(h)), random=True)
add(
    "stochastic depth",
    partial(operation, lambda h, w: h + h * w if torch.rand(()) < 0.9 else h * w),
    random=True,
)
add("sampled rows", partial(operation, lambda h, w: (h * w)[torch.multinomial(h.exp().sum(1), 2)]), random=True)
add("Bernoulli mask", partial(operation, lambda h, w: h * w * torch.bernoulli(h.sigmoid())), "either", random=True)
add("rrelu", partial(operation, lambda h, w: F.rrelu(h * w, training=True)), "either", random=True)
add("Gumbel softmax", partial(operation, lambda h, w: F.gumbel_softmax(h * w, hard=True) * h), "either", random=True)
add(
    "reparametrized normal",
    partial(operation, lambda h, w: torch.distributions.Normal(h, w.exp()).rsample()),
    "either",
    random=True,
)

WORDS = torch.tensor([[0, 2, 1], [3, 3, 4]])


def embedded(embedding: nn.Module, *more: nn.Module) -> Problem:
    problem = layers(embedding, nn.Tanh(), nn.Linear(3, 2), *more, x=(1,))
    problem.x = WORDS
    return problem


add("Embedding", lambda: embedded(nn.Embedding(5, 3, padding_idx=0)))
add("embedding functional", partial(operation, lambda h, w: F.embedding(WORDS % 4, h * w).sin()))
add("one_hot", partial(operation, lambda h, w: F.one_hot(WORDS % 4, 4).to(DTYPE) @ (h * w)))

# -- convolution and pooling ---------------------------------------------------------------------------------------

CONVOLUTIONS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "Conv1d": (lambda: nn.Conv1d(2, 2, 3), (2, 2, 6)),
    "Conv1d strided": (lambda: nn.Conv1d(2, 2, 3, stride=2, padding=1), (2, 2, 6)),
    "Conv1d unbatched": (lambda: nn.Conv1d(2, 2, 3), (2, 6)),
    "Conv2d": (lambda: nn.Conv2d(2, 3, 3), (2, 2, 4, 4)),
    "Conv2d padded": (lambda: nn.Conv2d(2, 2, 3, padding=1, bias=False), (2, 2, 3, 3)),
    "Conv2d same": (lambda: nn.Conv2d(2, 2, 3, padding="same"), (2, 2, 3, 3)),
    "Conv2d reflect": (lambda: nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect"), (1, 2, 3, 3)),
    "Conv2d strided": (lambda: nn.Conv2d(2, 2, 2, stride=(2, 1)), (2, 2, 4, 3)),
    "Conv2d dilated": (lambda: nn.Conv2d(2, 2, 2, dilation=2), (2, 2, 4, 4)),
    "Conv2d grouped": (lambda: nn.Conv2d(2, 4, 2, groups=2), (2, 2, 3, 3)),
    "Conv3d": (lambda: nn.Conv3d(1, 2, 2), (1, 1, 3, 3, 3)),
    "ConvTranspose1d": (lambda: nn.ConvTranspose1d(2, 2, 3, stride=2), (2, 2, 3)),
    "ConvTranspose2d": (lambda: nn.ConvTranspose2d(2, 2, 2, stride=2, padding=1, groups=2), (1, 2, 3, 3)),
    "MaxPool1d": (lambda: nn.MaxPool1d(2), (2, 2, 6)),
    "MaxPool2d": (lambda: nn.MaxPool2d(2, stride=1, padding=1), (1, 2, 4, 4)),
    "AvgPool2d": (lambda: nn.AvgPool2d(2), (1, 2, 4, 4)),
    "AdaptiveAvgPool2d": (lambda: nn.AdaptiveAvgPool2d((2, 1)), (1, 2, 3, 3)),
    "AdaptiveMaxPool2d": (lambda: nn.AdaptiveMaxPool2d(2), (1, 2, 3, 3)),
    "LPPool2d": (lambda: nn.Sequential(nn.Softplus(), nn.LPPool2d(2, 2)), (1, 2, 4, 4)),
    "Upsample": (lambda: nn.Upsample(scale_factor=2, mode="bicubic"), (1, 1, 3, 3)),
}


def convolved(module: nn.Module, x: tuple[int, ...]) -> Problem:
    return layers(nn.Linear(x[-1], x[-1]), nn.Tanh(), module, nn.Softplus(), x=x)


for _name, (_module, _x) in CONVOLUTIONS.items():
    add(_name, lambda module=_module, x=_x: convolved(module(), x))
add(
    "conv2d of activations",
    partial(operation, lambda h, w: F.conv2d(h.view(1, 1, 4, 6), (h * w)[:2, :2].view(1, 1, 2, 2))),
)
add("conv1d functional", partial(operation, lambda h, w: F.conv1d(h[None], w[:4].view(1, 4, 1), bias=w[:1])))

# -- losses --------------------------------------------------------------------------------------------------------

CLASSES = torch.tensor([0, 2, 1, 3, 2, 0])
LABELS = torch.tensor([[0, 2, -1, 1], [3, -1, 0, 0], [1, 1, -1, 2], [2, 3, 0, -1], [-1, 0, 1, 2], [0, 1, 2, 3]])
SIGNS = torch.tensor([1.0, -1.0, 1.0, 1.0, -1.0, 1.0], dtype=DTYPE)
TARGET = RAMP.reshape(6, 4)
PROBABILITIES = (3 * TARGET).softmax(1)
WEIGHT = torch.tensor([0.5, 1.0, 2.0, 0.3], dtype=DTYPE)

LOSSES: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], Tensor]] = {
    "cross_entropy": (F.cross_entropy, CLASSES),
    "cross_entropy of probabilities": (F.cross_entropy, PROBABILITIES),
    "cross_entropy smoothed": (partial(F.cross_entropy, label_smoothing=0.1), CLASSES),
    "cross_entropy weighted": (partial(F.cross_entropy, weight=WEIGHT), CLASSES),
    "cross_entropy weighted, smoothed": (partial(F.cross_entropy, weight=WEIGHT, label_smoothing=0.1), CLASSES),
    "cross_entropy of weighted probabilities": (partial(F.cross_entropy, weight=WEIGHT), PROBABILITIES),
    "cross_entropy with ignore_index": (partial(F.cross_entropy, ignore_index=2), CLASSES),
    "cross_entropy sum": (partial(F.cross_entropy, reduction="sum"), CLASSES),
    "cross_entropy none": (lambda out, y: F.cross_entropy(out, y, reduction="none").square().mean(), CLASSES),
    "cross_entropy of one sample": (lambda out, y: F.cross_entropy(out[0], y[0]), CLASSES),
    "cross_entropy of two axes": (lambda out, y: F.cross_entropy(out.view(3, 4, 2), y), CLASSES.view(3, 2)),
    "cross_entropy twice": (lambda out, y: F.cross_entropy(out, y) * F.cross_entropy(-out, y), CLASSES),
    "nll_loss": (lambda out, y: F.nll_loss(out.log_softmax(1), y, weight=WEIGHT), CLASSES),
    "nll_loss of two axes": (
        lambda out, y: F.nll_loss(out.view(3, 4, 1, 2).log_softmax(1), y),
        CLASSES.view(3, 1, 2),
    ),
    "mse_loss": (F.mse_loss, TARGET),
    "mse_loss sum": (partial(F.mse_loss, reduction="sum"), TARGET),
    "mse_loss both active": (lambda out, y: F.mse_loss(out, out.flip(0).tanh()), TARGET),
    "mse_loss none": (lambda out, y: F.mse_loss(out, y, reduction="none").sin().sum(), TARGET),
    "l1_loss": (lambda out, y: F.l1_loss(out.exp(), y), TARGET),
    "smooth_l1_loss": (F.smooth_l1_loss, 2 * TARGET),
    "huber_loss": (partial(F.huber_loss, delta=0.5), TARGET),
    "binary_cross_entropy": (lambda out, y: F.binary_cross_entropy(out.sigmoid(), y), TARGET.sigmoid()),
    "binary_cross_entropy_with_logits": (
        partial(F.binary_cross_entropy_with_logits, pos_weight=WEIGHT),
        TARGET.sigmoid(),
    ),
    "kl_div": (lambda out, y: F.kl_div(out.log_softmax(1), y, reduction="batchmean"), PROBABILITIES),
    "kl_div of two models": (
        lambda out, y: F.kl_div(out.log_softmax(1), out.flip(0).log_softmax(1), log_target=True, reduction="sum"),
        TARGET,
    ),
    "poisson_nll_loss": (F.poisson_nll_loss, TARGET.exp()),
    "gaussian_nll_loss": (lambda out, y: F.gaussian_nll_loss(out[:, :2], y[:, :2], out[:, 2:].exp()), TARGET),
    "cosine_embedding_loss": (lambda out, y: F.cosine_embedding_loss(out, TARGET + 0.5, y, margin=-0.5), SIGNS),
    "margin_ranking_loss": (lambda out, y: F.margin_ranking_loss(out[:, 0].exp(), out[:, 1].sin(), y, 1.0), SIGNS),
    "hinge_embedding_loss": (lambda out, y: F.hinge_embedding_loss(out[:, 0].square(), y, 2.0), SIGNS),
    "soft_margin_loss": (lambda out, y: F.soft_margin_loss(out[:, 0], y), SIGNS),
    "multilabel_soft_margin_loss": (F.multilabel_soft_margin_loss, (TARGET > 0).to(DTYPE)),
    "multi_margin_loss": (F.multi_margin_loss, CLASSES),
    "multi_margin_loss squared": (partial(F.multi_margin_loss, p=2, margin=0.7, weight=WEIGHT), CLASSES),
    "multilabel_margin_loss": (lambda out, y: F.multilabel_margin_loss(out.sin(), y), LABELS),
    "triplet_margin_loss": (lambda out, y: F.triplet_margin_loss(out, out.flip(0), y, margin=3.0), TARGET),
}
for _name, (_criterion, _y) in LOSSES.items():
    add(_name, lambda criterion=_criterion, y=_y: classifier(criterion, y))

# -- unusual calls -------------------------------------------------------------------------------------------------


class Cube(torch.autograd.Function):
    """In NumPy: no operations of torch that could be recorded in its place."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.from_numpy(x.detach().numpy() ** 3)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 3 * x.square() * g


def in_a_thread(module: nn.Module) -> Callable[[Tensor], Tensor]:
    def call(x: Tensor) -> Tensor:
        out: list[Tensor] = []
        thread = threading.Thread(target=lambda: out.append(module(x)))
        thread.start()
        thread.join()
        return out[0]

    return call


def hooked(module: nn.Module) -> nn.Module:
    module.register_forward_hook(lambda m, inputs, out: out * 2)
    module.register_forward_pre_hook(lambda m, inputs: (inputs[0].sin(),))
    return module


def watched(module: nn.Module) -> Callable[[Tensor], Tensor]:
    def call(x: Tensor) -> Tensor:
        out = module(x)
        out.register_hook(lambda g: None)
        return out

    return call


def backward_hooked(module: nn.Module) -> nn.Module:
    module.register_full_backward_hook(lambda m, given, out: None)
    return module


def saved_on_the_cpu(module: nn.Module) -> Callable[[Tensor], Tensor]:
    def call(x: Tensor) -> Tensor:
        with torch.autograd.graph.save_on_cpu():
            return module(x).sin()

    return call


def slope_of(module: nn.Module) -> Callable[[Tensor], Tensor]:
    return lambda x: torch.autograd.functional.vjp(module, x, x.cos(), create_graph=True)[1]


def input_with_gradient() -> Problem:
    problem = perceptron()
    problem.x.requires_grad_()
    return problem


def autocast() -> Problem:
    class Autocast(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = perceptron().model.float()

        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                out = self.body(x)
            return out.float()

    return Problem(Autocast(), torch.randn(4, 3), torch.zeros(()), readout)


def mixed_dtypes() -> Problem:
    problem = layers(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3), x=(5, 3))
    problem.model.float()
    head = nn.Linear(3, 2, dtype=DTYPE)
    perturb(head)

    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = problem.model, head

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.body(x.float()).double().sin())

    return Problem(Mixed(), problem.x, problem.y, readout)


add("custom function", lambda: wrapped(lambda m: lambda x: Cube.apply(m(x))), "oracle", "Cube")
add("thread", lambda: wrapped(in_a_thread), "oracle", "linear|Add|vmap")
add("vmap", lambda: wrapped(lambda m: torch.func.vmap(m)))
add("scripted", lambda: wrapped(lambda m: torch.jit.script(m)), "either")
add("traced", lambda: wrapped(lambda m: torch.jit.trace(m, torch.ones(4, 3, dtype=DTYPE))), "either")
add("compiled, eager", lambda: wrapped(lambda m: torch.compile(m, backend="eager")), "either")
add("DataParallel", lambda: wrapped(nn.DataParallel), "either")
add("checkpoint", lambda: wrapped(lambda m: lambda x: checkpoint(m, x, use_reentrant=False)), "either")
add("module hooks", lambda: wrapped(hooked))
add("gradient watched", lambda: wrapped(watched), "either")
add("module backward hook", lambda: wrapped(backward_hooked), "either")
add("saved on the CPU", lambda: wrapped(saved_on_the_cpu))
add("autograd.functional", lambda: wrapped(slope_of))
add("sparse", partial(operation, lambda h, w: torch.sparse.mm(RAMP.to_sparse(), (h * w).mT)), "either")
add("input with gradient", input_with_gradient)
# Roundings of bfloat16, 4e-3 each, in the first derivatives already.
add("autocast inside", autocast, tolerance=5e-2)
# A few hundred roundings in float32, 6e-8 each.
add("mixed dtypes", mixed_dtypes, tolerance=1e-5)

# A matrix of constant rank: pinv has no derivative in the directions that the parameters never move it in.
add(
    "pinv of low rank",
    lambda: operation(lambda h, w: torch.linalg.pinv(torch.outer(h.sum(0), w), rcond=1e-8)),
    "oracle",
    "linalg_pinv",
    tolerance=1e-9,
)

# What torch.func cannot do: see random numbers, numpy, other threads, graphs within graphs and changing buffers; leave
# frozen parameters where they are; stop at no_grad. In forward mode solve, det and instance norm with statistics have
# wrong third derivatives, and glu, huber_loss, soft_margin_loss, lists of norms and losses of margins have none.
WITHOUT_PHI = {
    *(
        "overwritten_without_gradient",
        "saved on the CPU",
        "no_grad",
        "numpy",
        "frozen",
        "thread",
        "gradient penalty",
        "custom function",
    ),
    *("scripted", "traced", "compiled, eager", "checkpoint", "GRU packed", "module backward hook"),
    *("BatchNorm1d", "BatchNorm1d of sequences", "BatchNorm2d", "InstanceNorm with statistics"),
    *("spectral_norm", "sparse", "autocast inside", "autograd.functional"),
    *("fft and conjugates", "complex matrices", "complex solve", "real_part_in_place"),
    *("masked_scatter", "solve", "det", "glu", "huber_loss", "soft_margin_loss", "norm of a list"),
    *("multi_margin_loss", "multi_margin_loss squared", "multilabel_margin_loss"),
}
for _name, _case in ZOO.items():
    _case.phi = _name not in WITHOUT_PHI and not _case.random

# What differences of torch's gradients cannot show: what the loss stops or torch leaves out of its gradient, roundings of
# other types than float64, and hardsigmoid, of which torch's slope is a float32 number.
WITHOUT_DIFFERENCES = {
    *(
        "detach",
        "no_grad",
        "number",
        "numpy",
        "zeroed_behind_autograd",
        "detached_alias",
        "overwritten_without_gradient",
    ),
    *("spectral_norm", "Embedding", "autocast inside", "mixed dtypes"),
    *("hardsigmoid", "hardsigmoid in place"),
}

# A few for laws that every model meets: parameters that serve twice, steps in time, statistics, groups, a loss of them alone.
SHAPES = ["tied", "recurrent cell", "GRU", "MultiheadAttention", "BatchNorm2d", "Conv2d grouped", "bmm", "weight decay"]
