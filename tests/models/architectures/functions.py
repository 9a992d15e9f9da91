"""Gaussian processes, flows, operators, differential equations and losses that differentiate."""

import math
from unittest import mock

import torch
import torch.nn.functional as F
from models.architectures.built import Built, normal
from torch import Tensor, nn


def _line(n: int = 12) -> tuple[Tensor, Tensor]:
    x = torch.linspace(0, 1, n)[:, None]
    return x, (6 * x[:, 0]).sin() + 0.1 * torch.randn(n)


# -- Gaussian processes ------------------------------------------------------------------------------------------


def exact_process_rbf_kernel() -> Built:
    import gpytorch

    x, y = _line()

    class Model(gpytorch.models.ExactGP):
        def __init__(self) -> None:
            super().__init__(x, y, gpytorch.likelihoods.GaussianLikelihood())
            self.mean, self.kernel = (
                gpytorch.means.ConstantMean(),
                gpytorch.kernels.ScaleKernel(gpytorch.kernels.RBFKernel()),
            )

        def forward(self, x: Tensor) -> gpytorch.distributions.MultivariateNormal:
            return gpytorch.distributions.MultivariateNormal(self.mean(x), self.kernel(x))

    model = Model()
    likelihood = gpytorch.mlls.ExactMarginalLogLikelihood(model.likelihood, model)
    return Built(model, lambda: -likelihood(model(x), y), train=True)


def exact_process_rbf_kernel_in_trace_mode() -> Built:
    import gpytorch

    built = exact_process_rbf_kernel()

    def loss() -> Tensor:
        # Then gpytorch writes the kernel in operations of torch.
        with gpytorch.settings.trace_mode():
            return built.loss()

    return Built(built.model, loss, train=True)


def deep_kernel_matern() -> Built:
    import gpytorch

    x, y = _line()

    class Model(gpytorch.models.ExactGP):
        def __init__(self) -> None:
            super().__init__(x, y, gpytorch.likelihoods.GaussianLikelihood())
            self.features = nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 2))
            self.mean, self.kernel = gpytorch.means.ConstantMean(), gpytorch.kernels.MaternKernel(nu=2.5)

        def forward(self, x: Tensor) -> gpytorch.distributions.MultivariateNormal:
            return gpytorch.distributions.MultivariateNormal(self.mean(x), self.kernel(self.features(x)))

    model = Model()
    likelihood = gpytorch.mlls.ExactMarginalLogLikelihood(model.likelihood, model)
    return Built(model, lambda: -likelihood(model(x), y), train=True)


def variational_process() -> Built:
    import gpytorch

    x, y = _line()
    inducing = x[::3].clone()

    class Model(gpytorch.models.ApproximateGP):
        def __init__(self) -> None:
            distribution = gpytorch.variational.CholeskyVariationalDistribution(len(inducing))
            super().__init__(gpytorch.variational.VariationalStrategy(self, inducing, distribution))
            self.mean, self.kernel = (
                gpytorch.means.ConstantMean(),
                gpytorch.kernels.ScaleKernel(gpytorch.kernels.RBFKernel()),
            )

        def forward(self, x: Tensor) -> gpytorch.distributions.MultivariateNormal:
            return gpytorch.distributions.MultivariateNormal(self.mean(x), self.kernel(x))

    model = nn.ModuleDict({"process": Model(), "likelihood": gpytorch.likelihoods.GaussianLikelihood()})
    bound = gpytorch.mlls.VariationalELBO(model["likelihood"], model["process"], len(x))
    model.train()
    model["process"](x)  # the first call sets the variational distribution to the prior
    return Built(model, lambda: -bound(model["process"](x), y), train=True)


def single_task_process() -> Built:
    from botorch.models import SingleTaskGP
    from gpytorch.mlls import ExactMarginalLogLikelihood

    x, y = _line()
    model = SingleTaskGP(x, (y[:, None] - y.mean()) / y.std())
    likelihood = ExactMarginalLogLikelihood(model.likelihood, model)
    return Built(model, lambda: -likelihood(model(*model.train_inputs), model.train_targets), train=True)


def multi_task_process() -> Built:
    from botorch.models import MultiTaskGP
    from gpytorch.mlls import ExactMarginalLogLikelihood

    x, y = _line()
    inputs = torch.cat([torch.cat([x, torch.full_like(x, task)], dim=1) for task in (0.0, 1.0)])
    model = MultiTaskGP(inputs, torch.cat([y, y.cos()])[:, None], task_feature=1)
    likelihood = ExactMarginalLogLikelihood(model.likelihood, model)
    inputs = model.train_inputs
    return Built(model, lambda: -likelihood(model(*inputs), model.train_targets, inputs), train=True)


# -- differential equations --------------------------------------------------------------------------------------


class Field(nn.Module):
    """dx/dt = W2 tanh(W1 x)."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 2))

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        return self.net(x)


def _solved(method: str, adjoint: bool = False) -> Built:
    import torchdiffeq

    field, x, y, times = Field(), normal(4, 2), normal(4, 2), torch.linspace(0, 1, 4)
    solve = torchdiffeq.odeint_adjoint if adjoint else torchdiffeq.odeint
    return Built(field, lambda: F.mse_loss(solve(field, x, times, method=method)[-1], y))


def neural_ode_rk4() -> Built:
    return _solved("rk4")


def neural_ode_dopri5() -> Built:
    from torchdiffeq._impl import rk_common

    built, choose = _solved("dopri5"), rk_common._optimal_step_size

    def loss() -> Tensor:
        # Its step lengths are stopped by no_grad: by detach, they can be held.
        with mock.patch.object(rk_common, "_optimal_step_size", lambda *args: choose(*args).detach()):
            return built.loss()

    return Built(built.model, loss, stops=True)


def neural_ode_adjoint() -> Built:
    return _solved("rk4", adjoint=True)


def neural_sde() -> Built:
    import torchsde

    class Noisy(nn.Module):
        noise_type, sde_type = "diagonal", "ito"

        def __init__(self) -> None:
            super().__init__()
            self.drift, self.diffusion = nn.Linear(2, 2), nn.Linear(2, 2)

        def f(self, t: Tensor, x: Tensor) -> Tensor:
            return self.drift(x).tanh()

        def g(self, t: Tensor, x: Tensor) -> Tensor:
            return self.diffusion(x).sigmoid()

    model, x, times = Noisy(), normal(4, 2), torch.linspace(0, 1, 3)

    def loss() -> Tensor:
        path = torchsde.BrownianInterval(0.0, 1.0, size=(4, 2), entropy=0, dtype=x.dtype)
        return torchsde.sdeint(model, x, times, bm=path, method="euler", dt=0.25)[-1].square().mean()

    return Built(model, loss)


# -- operators ---------------------------------------------------------------------------------------------------


def _to_complex128(model: nn.Module) -> None:
    # Their library makes them complex64, whatever the default is.
    for p in model.parameters():
        if p.is_complex():
            p.data = p.data.to(torch.complex128)


def fourier_neural_operator() -> Built:
    from neuralop.models import FNO

    model = FNO(n_modes=(3, 3), in_channels=1, out_channels=1, hidden_channels=4, n_layers=2)
    _to_complex128(model)
    x, y = normal(2, 1, 8, 8), normal(2, 1, 8, 8)
    return Built(model, lambda: F.mse_loss(model(x), y))


def tensorized_fourier_operator() -> Built:
    from neuralop.models import TFNO

    model = TFNO(n_modes=(3, 3), in_channels=1, out_channels=1, hidden_channels=4, n_layers=1, rank=0.5)
    _to_complex128(model)
    x, y = normal(2, 1, 8, 8), normal(2, 1, 8, 8)
    return Built(model, lambda: F.mse_loss(model(x), y))


def u_shaped_neural_operator() -> Built:
    from neuralop.models import UNO

    model = UNO(
        in_channels=1, out_channels=1, hidden_channels=4, n_layers=2, uno_out_channels=[4, 4], uno_n_modes=[[3, 3], [3, 3]],
        uno_scalings=[[1.0, 1.0], [1.0, 1.0]], channel_mlp_skip="linear",
    )  # fmt: skip
    _to_complex128(model)
    x, y = normal(2, 1, 8, 8), normal(2, 1, 8, 8)
    return Built(model, lambda: F.mse_loss(model(x), y))


# -- flows -------------------------------------------------------------------------------------------------------


def neural_spline_flow() -> Built:
    from zuko.flows import NSF

    model, x = NSF(3, transforms=2, bins=4, hidden_features=(8,)), normal(6, 3)
    return Built(model, lambda: -model().log_prob(x).mean())


def masked_autoregressive_flow() -> Built:
    from zuko.flows import MAF

    model, x, context = MAF(3, 2, transforms=2, hidden_features=(8,)), normal(6, 3), normal(6, 2)
    return Built(model, lambda: -model(context).log_prob(x).mean())


def realnvp() -> Built:
    import normflows as nf

    halves = [nf.flows.AffineCouplingBlock(nf.nets.MLP([1, 8, 2], init_zeros=False)) for _ in range(2)]
    layers = [layer for half in halves for layer in (half, nf.flows.Permute(2, mode="swap"))]
    model, x = nf.NormalizingFlow(nf.distributions.DiagGaussian(2), layers), normal(6, 2)
    return Built(model, lambda: model.forward_kld(x))


# -- losses that differentiate -----------------------------------------------------------------------------------


def pinn_autograd_grad() -> Built:
    model = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1))

    def loss() -> Tensor:
        x = torch.linspace(0, 1, 9)[:, None].requires_grad_()
        u = model(x)
        (first,) = torch.autograd.grad(u.sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(first.sum(), x, create_graph=True)
        return (second + math.pi**2 * (math.pi * x).sin()).square().mean() + u[0].square().sum() + u[-1].square().sum()

    return Built(model, loss)


def pinn_torch_func() -> Built:
    model = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1))
    points = torch.linspace(0, 1, 7)[:, None]

    def loss() -> Tensor:
        bent = torch.func.vmap(torch.func.hessian(lambda x: model(x)[0]))(points)
        return (bent[:, 0, 0] + (math.pi * points[:, 0]).sin()).square().mean()

    return Built(model, loss)


def maml() -> Built:
    model = nn.Sequential(nn.Linear(1, 6), nn.Tanh(), nn.Linear(6, 1))
    x, y = normal(5, 1), normal(5, 1)

    def loss() -> Tensor:
        weights = dict(model.named_parameters())
        inner = F.mse_loss(torch.func.functional_call(model, weights, (x,)), y)
        steps = torch.autograd.grad(inner, list(weights.values()), create_graph=True)
        adapted = {n: w - 0.1 * g for (n, w), g in zip(weights.items(), steps, strict=True)}
        return F.mse_loss(torch.func.functional_call(model, adapted, (x + 0.1,)), y.sin())

    return Built(model, loss)


def ensemble_vmap() -> Built:
    members = [nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 1)) for _ in range(3)]
    stacked, _ = torch.func.stack_module_state(members)
    model = nn.ParameterDict({name.replace(".", "_"): nn.Parameter(p.detach().clone()) for name, p in stacked.items()})
    x, y = normal(6, 2), normal(6, 1)

    def one(weights: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(members[0], weights, (x,))

    def loss() -> Tensor:
        out = torch.func.vmap(one)({name: model[name.replace(".", "_")] for name in stacked})
        return F.mse_loss(out, y.expand_as(out))

    return Built(model, loss)
