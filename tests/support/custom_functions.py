"""Custom functions: right backward passes, and wrong ones of every kind that is met in the wild."""

import numpy as np
import torch
from torch.autograd.function import once_differentiable


class OfSine(torch.autograd.Function):
    """The sine, which keeps what it was given; each backward below is another."""

    @staticmethod
    def forward(ctx, a):
        ctx.save_for_backward(a)
        return a.sin()


class Sine(OfSine):
    """Right to every order: the backward is made of torch's operations on what ctx saved."""

    @staticmethod
    def backward(ctx, g):
        return g * ctx.saved_tensors[0].cos()


class SineByAnother(OfSine):
    """Right as well: the backward calls another custom function."""

    @staticmethod
    def backward(ctx, g):
        return g * Sine.apply(ctx.saved_tensors[0] + torch.pi / 2)


class SineInNumpy(Sine):
    """Right, and its forward pass is none of torch's operations."""

    @staticmethod
    def forward(ctx, a):
        ctx.save_for_backward(a)
        return torch.from_numpy(np.sin(a.detach().numpy()))


class Once(OfSine):
    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        return g * ctx.saved_tensors[0].cos()


class InNumpy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, a):
        ctx.kept = a.detach().numpy()
        return torch.from_numpy(np.sin(ctx.kept))

    @staticmethod
    def backward(ctx, g):
        return torch.from_numpy(g.detach().numpy() * np.cos(ctx.kept))


class OnCtx(torch.autograd.Function):
    """As gpytorch's variational functions: an intermediate on ctx, outside of the graph."""

    @staticmethod
    def forward(ctx, a):
        ctx.slope = a.detach().cos()
        return a.sin()

    @staticmethod
    def backward(ctx, g):
        return g * ctx.slope


class NoGrad(OfSine):
    @staticmethod
    def backward(ctx, g):
        with torch.no_grad():
            return g * ctx.saved_tensors[0].cos()


class OneInAHundred(OfSine):
    """A share of one part in a hundred is lost."""

    @staticmethod
    def backward(ctx, g):
        (a,) = ctx.saved_tensors
        return g * (0.99 * a.cos() + 0.01 * a.detach().cos())


class OnceInTheSecond(OfSine):
    """The second derivative is right, the third is lost."""

    @staticmethod
    def backward(ctx, g):
        return g * OnCtxCosine.apply(ctx.saved_tensors[0])


class OnCtxCosine(torch.autograd.Function):
    @staticmethod
    def forward(ctx, a):
        ctx.slope = -a.detach().sin()
        return a.cos()

    @staticmethod
    def backward(ctx, g):
        return g * ctx.slope


class StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx, a):
        return a.sign()

    @staticmethod
    def backward(ctx, g):
        return g


class Reversal(torch.autograd.Function):
    """Gradient reversal of domain adaptation: the backward is the derivative of nothing."""

    @staticmethod
    def forward(ctx, a):
        return a.view_as(a)

    @staticmethod
    def backward(ctx, g):
        return -g


class Ascent(torch.autograd.Function):
    """As torchdiffeq's adjoint method: the backward solves again, detached from the forward pass."""

    @staticmethod
    def forward(ctx, a):
        ctx.save_for_backward(a.detach().clone())
        return a.sin()

    @staticmethod
    def backward(ctx, g):
        (a,) = ctx.saved_tensors
        with torch.enable_grad():
            a = a.detach().requires_grad_()
            (slope,) = torch.autograd.grad(a.sin(), a, g.detach())
        return slope
