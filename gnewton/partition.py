"""Which scalar of the model belongs to which group.

A partition splits the P scalars of a model's parameters into S groups T_1 .. T_S. It is held as labels: for every
parameter tensor either one group index for the whole tensor or one index per scalar. Labels make overlap impossible
and turn "sum over p in T_s" into one pass over the parameters, whatever S is.
"""

import copy
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from functools import cached_property
from itertools import product
from numbers import Integral
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from gnewton.ranks import Ranks, ranks_of, ranks_over, unwrap
from gnewton.sharded import Shards, Weights, WholeDirection, local_part, reshard, shards_of
from gnewton.storage import check_apart, check_whole

Rest = Literal["error", "ignore"]
Label = int | Tensor
Groups = Sequence[Sequence[int | str]] | Mapping[str, Sequence[int | str]]


def stack_numbers(numbers: Sequence[Tensor]) -> Tensor:
    """Numbers () in one tensor, on the device of the first.

    >>> stack_numbers([torch.tensor(1.0), torch.tensor(2.0)])
    tensor([1., 2.])
    """
    try:
        return torch.stack(list(numbers))
    except RuntimeError:  # on several devices
        return torch.stack([one.to(numbers[0].device) for one in numbers])


def accumulator_dtype(device: torch.device) -> torch.dtype:
    """The dtype in which sums over many scalars are kept: float64, or float32 where the device (MPS) has no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


class Partition:
    """The partition of a model's P scalars into S groups T_1 .. T_S; made by one of the factories below.

    Args:
        names: the S group names.
        parameters: the tensors by name; a tied parameter goes by its first name.
        labels: by parameter name, the group's index or an int64 tensor of the parameter's shape; S means "in no group".
        module: the module whose buffers (batch norm) are restored after its loss was differentiated. A
            DistributedDataParallel, or a model in ``fully_shard``, also says which processes share the loss; see ``over``.

    ``len(partition)`` is S, ``sizes`` the number of scalars in each group. Directions are dictionaries with the keys of
    ``parameters``. A scalar may be in no group (``rest="ignore"``): it never moves. Frozen and unused parameters may be in
    a group: their derivatives are zero.

    >>> import gnewton as gn
    >>> model = gn.models.perceptron([64, 32, 10])
    >>> gn.Partition.by_layer(model)
    Partition: 2 groups, 2,410 scalars
      group  parameters          scalars
      0      0.weight, 0.bias      2,080
      2      2.weight, 2.bias        330
    """

    def __init__(
        self,
        names: Sequence[str],
        parameters: Mapping[str, Tensor],
        labels: Mapping[str, Label],
        *,
        module: nn.Module | None = None,
    ) -> None:
        # labels: name -> group index, or an int64 tensor of the parameter's shape; S stands for "in no group".
        self.names = tuple(names)
        self.parameters = dict(parameters)
        self.module = unwrap(module)
        self.shards: Shards | None = shards_of(self.module)
        self.weights: Weights | None = None  # of a partition inside ``gathered``
        _check_parameters(self.parameters, self.shards)
        like = local_part(next(iter(self.parameters.values())))
        self.ranks = ranks_of(module, like) if self.shards is None else self.shards.ranks
        self._held = _names_held(self.module, self.parameters)
        self._here: Partition | None = None
        self._gathered: Partition | None = None
        _check_labels(self.parameters, labels, len(self.names))
        self._labels = {name: _simplify(labels[name]) for name in self.parameters}
        self._groups_in: dict[str, tuple[int, ...]] = {}
        self.sizes = self._count()
        _check_groups(self.names, self.sizes)

    # -- factories ----------------------------------------------------------------------------------------------

    @classmethod
    def by_tensor(cls, module: nn.Module) -> Self:
        """One group per parameter tensor: the paper's canonical partition.

        >>> import gnewton as gn
        >>> gn.Partition.by_tensor(gn.models.perceptron([3, 2])).names
        ('0.weight', '0.bias')
        """
        return cls._by_key(module, lambda name: name)

    @classmethod
    def single(cls, module: nn.Module) -> Self:
        """One group for everything (S = 1, the paper's trivial partition): Cauchy's steepest-descent step.

        >>> import gnewton as gn
        >>> gn.Partition.single(gn.models.perceptron([3, 2])).names
        ('all',)
        """
        return cls._by_key(module, lambda name: "all")

    @classmethod
    def by_kind(cls, module: nn.Module) -> Self:
        """Weights, biases and the rest (the paper's wb), told apart by the last part of the parameter's name.

        >>> import gnewton as gn
        >>> gn.Partition.by_kind(gn.models.perceptron([4, 3, 2])).names
        ('weights', 'biases')
        """
        return cls._by_key(module, _kind)

    @classmethod
    def by_layer(cls, module: nn.Module) -> Self:
        """One group per module that owns parameters itself.

        >>> import gnewton as gn
        >>> gn.Partition.by_layer(gn.models.perceptron([4, 3, 2])).names
        ('0', '2')
        """
        return cls._by_key(module, _layer)

    @classmethod
    def blocks(cls, module: nn.Module, n: int) -> Self:
        """n blocks of consecutive layers, weights and biases apart (the paper's blocks-n): up to 2n groups.

        >>> import gnewton as gn
        >>> gn.Partition.blocks(gn.models.perceptron([4, 3, 3, 2]), 2).names
        ('block 1 weights', 'block 1 biases', 'block 2 weights', 'block 2 biases')
        """
        layers = _layers(module, n)
        return cls._by_key(module, lambda p: f"block {layers[_layer(p)] * n // len(layers) + 1} {_kind(p)}")

    @classmethod
    def alternate(cls, module: nn.Module, n: int) -> Self:
        """Layers modulo n, weights and biases apart (the paper's alternate-n): up to 2n groups.

        >>> import gnewton as gn
        >>> gn.Partition.alternate(gn.models.perceptron([4, 3, 3, 2]), 2).sizes
        (18, 5, 9, 3)
        """
        layers = _layers(module, n)
        return cls._by_key(module, lambda p: f"every {n} from {layers[_layer(p)] % n + 1} {_kind(p)}")

    @classmethod
    def by_name(cls, module: nn.Module, patterns: Mapping[str, str | Sequence[str]], rest: Rest = "error") -> Self:
        """Groups of whole tensors chosen by name patterns (globs): ``{"head": "classifier.*", "body": ["conv?.*"]}``.

        Raises ValueError for a pattern that matches nothing, a parameter that two groups match, and, with
        ``rest="error"``, a parameter that none matches; ``rest="ignore"`` leaves those where they are.

        >>> import gnewton as gn
        >>> model = gn.models.perceptron([4, 3, 2])
        >>> gn.Partition.by_name(model, {"first": "0.*", "last": ["2.weight", "2.bias"]}).sizes
        (15, 8)
        """
        _check_rest(rest)
        parameters = _named_parameters(module)
        if not isinstance(patterns, Mapping):
            raise TypeError(
                f'expected patterns as {{group name: "glob"}}, got {type(patterns).__name__}; name each group'
            )
        groups = {
            group: {name: parameters[name] for glob in _as_list(globs) for name in _matches(glob, parameters, group)}
            for group, globs in patterns.items()
        }
        missing = [name for name in parameters if not any(name in group for group in groups.values())]
        if missing and rest == "error":
            raise ValueError(
                f"expected every parameter to match a pattern, got none for {', '.join(missing)}; "
                'add a pattern or pass rest="ignore" to leave them where they are'
            )
        return cls._from_claims(
            groups, {name: p for name, p in parameters.items() if name not in missing}, rest, module
        )

    @classmethod
    def by_row(cls, module: nn.Module) -> Self:
        """One group per row of every weight, with its bias element: one neuron, one filter, one embedding.

        Within a layer, tensors with the same first dimension share their rows.

        >>> import gnewton as gn
        >>> gn.Partition.by_row(gn.models.perceptron([3, 2])).names
        ('0[0]', '0[1]')
        """
        return cls._by_keys(module, _layer, rows=True)

    @classmethod
    def by_scalar(cls, module: nn.Module) -> Self:
        """One group per scalar (S = P): with u = 1 the step is Newton's method itself.

        >>> import gnewton as gn
        >>> gn.Partition.by_scalar(gn.models.perceptron([2, 1])).names
        ('0.weight[0,0]', '0.weight[0,1]', '0.bias[0]')
        """
        return cls._by_keys(module, lambda name: name, rows=False)

    @classmethod
    def from_groups(
        cls,
        groups: Sequence[Mapping[str, Tensor | tuple[Tensor, Tensor]]]
        | Mapping[str, Mapping[str, Tensor | tuple[Tensor, Tensor]]],
        rest: Rest = "error",
        module: nn.Module | None = None,
    ) -> Self:
        """Groups written out: a list (or a dictionary by group name) of ``{name: parameter}``.

        For a part of a tensor give ``{name: (parameter, mask)}`` with a boolean mask of the parameter's shape; scalars
        of a named parameter that no mask holds are an error, or stay where they are with ``rest="ignore"``.
        ``module`` is the model whose buffers (batch norm) are to be restored after its loss was differentiated.
        Raises ValueError for overlapping or empty groups, masks of another shape, one name for two tensors.

        >>> import torch, gnewton as gn
        >>> w = torch.zeros(2, 2, requires_grad=True)
        >>> diagonal = torch.eye(2, dtype=torch.bool)
        >>> gn.Partition.from_groups({"diagonal": {"w": (w, diagonal)}, "off": {"w": (w, ~diagonal)}}).sizes
        (2, 2)
        """
        _check_rest(rest)
        named = groups if isinstance(groups, Mapping) else {f"group {i}": group for i, group in enumerate(groups)}
        return cls._from_claims(named, _parameters_of(named), rest, module)

    # -- what the engines and the optimizer ask ------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self.names)

    @property
    def device(self) -> torch.device:
        """The device of the first parameter, where summaries live."""
        return next(iter(self.parameters.values())).device

    def label(self, name: str) -> Label:
        """The group index of parameter ``name``, or an int64 tensor of its shape; S means "in no group"."""
        label = self._labels[name]
        return label if isinstance(label, int) else label.to(self.parameters[name].device)

    @property
    def is_alone(self) -> bool:
        """Whether this process has all parameters, and all samples of every batch."""
        return self.ranks.size == 1 and self.shards is None

    @cached_property
    def is_whole(self) -> bool:
        """Whether every parameter lies in one group, and none outside."""
        return all(isinstance(label, int) and label < len(self) for label in self._labels.values())

    def _label_here(self, name: str) -> Label:
        """The label of this rank's rows."""
        label = self.label(name)
        return label if self.shards is None or isinstance(label, int) else self.shards.rows(name, label)

    def _with_rows(self, name: str, rows: Tensor) -> Tensor:
        """A tensor like the parameter, from this rank's rows."""
        return rows if self.shards is None else self.shards.like(name, rows)

    def groups_in(self, name: str) -> tuple[int, ...]:
        """The groups that have a scalar of parameter ``name``.

        >>> import gnewton as gn
        >>> gn.Partition.by_row(gn.models.perceptron([4, 3, 2])).groups_in("2.bias")
        (3, 4)
        """
        label = self._labels[name]
        if name not in self._groups_in:
            groups = [label] if isinstance(label, int) else torch.unique(label).tolist()
            self._groups_in[name] = tuple(g for g in groups if g < len(self))
        return self._groups_in[name]

    def members(self, group: int) -> list[str]:
        """The names of the parameters that have a scalar in the group."""
        return [
            n for n, lab in self._labels.items() if (lab == group if isinstance(lab, int) else (lab == group).any())
        ]

    def sums(self, values: Mapping[str, Tensor]) -> Tensor:
        """Sums over each group, I_{S:P} v: (S,), float64, differentiable in the values (a missing name counts as 0).

        >>> import torch, gnewton as gn
        >>> model = gn.models.perceptron([3, 2])
        >>> gn.Partition.by_tensor(model).sums({"0.bias": torch.tensor([1.0, 2.0])})
        tensor([0., 3.], dtype=torch.float64)
        """
        total = torch.zeros(len(self) + 1, dtype=accumulator_dtype(self.device), device=self.device)
        whole: dict[int, list[Tensor]] = {}
        for name, value in values.items():
            value, label = local_part(value), self._label_here(name)
            if isinstance(label, int):
                whole.setdefault(label, []).append(value if value.ndim == 0 else value.sum(dtype=total.dtype))
            else:
                total = total.index_add(0, label.flatten().to(total.device), value.flatten().to(total))
        if whole:
            # One addition for all tensors that lie in one group each: most partitions have no others.
            sums = [
                stack_numbers(parts).sum(dtype=total.dtype) if len(parts) > 1 else parts[0] for parts in whole.values()
            ]
            total = total.index_add(0, torch.tensor(list(whole), device=total.device), stack_numbers(sums).to(total))
        return (total if self.shards is None else self.shards.ranks.sum("sums", total))[:-1]

    def scale(self, direction: Mapping[str, Tensor], eta: Tensor) -> dict[str, Tensor]:
        """Each group's part of the direction times its own factor: U I_{P:S} eta, of the direction's shapes and dtypes.

        >>> import torch, gnewton as gn
        >>> partition = gn.Partition.by_row(gn.models.perceptron([2, 2]))
        >>> ones = {name: torch.ones_like(p) for name, p in partition.parameters.items()}
        >>> partition.scale(ones, torch.tensor([2.0, 5.0]))["0.bias"]
        tensor([2., 5.])
        """
        if eta.shape != (len(self),):
            raise ValueError(f"expected eta of shape ({len(self)},), got {tuple(eta.shape)}; give one rate per group")
        padded = torch.cat([eta, eta.new_zeros(1)])
        # Plain numbers, where they are at hand, spare every tensor a copy of all rates in its own dtype.
        numbers = padded.tolist() if padded.device.type == "cpu" and not padded.requires_grad else None

        def scaled(name: str, u: Tensor) -> Tensor:
            label = self._label_here(name)
            return u * (numbers[label] if numbers and isinstance(label, int) else padded.to(u)[label])

        return {name: self._with_rows(name, scaled(name, local_part(u))) for name, u in direction.items()}

    def largest(self, direction: Mapping[str, Tensor]) -> Tensor:
        """The largest magnitude of a direction's entries, ().

        >>> import torch, gnewton as gn
        >>> gn.Partition.single(gn.models.perceptron([2, 2])).largest({"0.bias": torch.tensor([1.0, -2.0])})
        tensor(2.)
        """
        parts = [local_part(u) for u in direction.values()]
        most = torch.stack([u.abs().max() if u.numel() else u.new_zeros(()) for u in parts]).max()
        return most if self.shards is None else self.shards.ranks.largest("largest", most)

    def restrict(self, direction: Mapping[str, Tensor], group: int) -> dict[str, Tensor]:
        """u_s: the direction inside one group, zero elsewhere.

        >>> import torch, gnewton as gn
        >>> partition = gn.Partition.by_tensor(gn.models.perceptron([2, 2]))
        >>> ones = {name: torch.ones_like(p) for name, p in partition.parameters.items()}
        >>> partition.restrict(ones, 1)["0.bias"], partition.restrict(ones, 1)["0.weight"].sum()
        (tensor([1., 1.]), tensor(0.))
        """
        if not 0 <= group < len(self):
            raise ValueError(f"expected a group index below {len(self)}, got {group}; the names are in partition.names")
        # Not a product with 0 and 1: an infinite entry outside the group must stay outside.
        return {
            name: torch.where(self._inside(name, group, u), u, torch.zeros_like(u)) for name, u in direction.items()
        }

    def over(self, group: Any) -> "Partition":
        """The same partition, of replicas that share a loss: their parameters start alike, each sees samples of its own.

        Args:
            group: a process group of torch.distributed, such as ``torch.distributed.group.WORLD``, or a device mesh of one
                dimension. None is this process alone.

        Every value, gradient and summary is then the mean over the samples of all ranks, and all of them call the same in
        the same order. A partition that was built on DistributedDataParallel or on a model in ``fully_shard`` is over its
        process group already. Raises TypeError for another object, ValueError for a group without this process, or for
        others than the ranks that hold the shards.

        >>> import gnewton as gn
        >>> gn.Partition.single(gn.models.perceptron([2, 2])).over(None).ranks
        Ranks(alone)
        """
        if self.shards is not None:
            self.shards.check_group(group)
            return self
        return self._over(ranks_over(group, next(iter(self.parameters.values())), self.ranks))

    @property
    def here(self) -> "Partition":
        """The same partition for this rank's own samples: the partition itself where there is one process."""
        if self.ranks.size == 1:
            return self
        # Kept: what was warned of once is not warned of again.
        self._here = self._here or self._over(self.ranks.here())
        return self._here

    def _over(self, ranks: Ranks) -> "Partition":
        same = copy.copy(self)
        same.ranks, same._here, same._gathered = ranks, None, None
        return same

    @contextmanager
    def gathered(self) -> Iterator["Partition"]:
        """The same groups of whole parameters, for this rank's own samples; the partition itself where none is sharded.

        Inside, the module reads each weight from all ranks when it needs it.
        """
        if self.shards is None:
            yield self
            return
        # Kept: what was warned of once is not warned of again.
        self._gathered = self._gathered or self._with_whole_parameters(self.shards)
        assert self._gathered.weights is not None
        with self._gathered.weights.in_use():
            yield self._gathered

    def _with_whole_parameters(self, shards: Shards) -> "Partition":
        same = self._over(self.ranks.here())
        same.shards, same.weights = None, Weights(shards, self.parameters)
        same.parameters = {name: same.weights.stand_ins[name] for name in self.parameters}
        return same

    def whole(self, direction: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """A direction along whole parameters: inside ``gathered`` each part is gathered when it is read."""
        return direction if self.weights is None else WholeDirection(self.weights.shards, direction)

    def check_held(self, unused: Sequence[str]) -> None:
        """Raises ValueError where a parameter that a loss does not use was the module's, and is no more.

        >>> import gnewton as gn
        >>> layer = nn.Linear(2, 1)
        >>> partition = gn.Partition.single(layer)
        >>> partition.check_held(["bias"])
        >>> layer.bias = nn.Parameter(torch.ones(1))
        >>> partition.check_held(["bias"])
        Traceback (most recent call last):
        ...
        ValueError: expected the parameters that the module has now, got bias, ...
        """
        if not unused or self.weights is not None or self.shards is not None:
            return
        ours = self._held.intersection(unused)
        gone = ours - _names_held(self.module, {name: self.parameters[name] for name in ours})
        if gone:
            raise ValueError(
                f"expected the parameters that the module has now, got {_shorten(sorted(gone))}, which it had when the partition was "
                "built and the loss does not use any more (replaced, removed or parametrized); build the Partition anew, and the "
                "optimizer on it"
            )

    def on_any_rank(self, flag: bool) -> bool:
        """Whether it is so on some rank, where the ranks must decide alike: inside ``gathered``."""
        return flag if self.weights is None else self.weights.shards.ranks.any("decision", flag)

    def coarsen(self, groups: Groups) -> "Partition":
        """The partition with groups merged; ``groups`` lists group names or indices, each exactly once.

        >>> import gnewton as gn
        >>> partition = gn.Partition.by_tensor(gn.models.perceptron([4, 3, 2]))
        >>> partition.coarsen({"weights": [0, 2], "biases": ["0.bias", "2.bias"]}).sizes
        (18, 5)
        """
        merged = merged_groups(groups, self.names)
        new = torch.empty(len(self) + 1, dtype=torch.int64, device="cpu")
        for i, members in enumerate(merged.values()):
            new[members] = i
        new[-1] = len(merged)
        labels = {n: int(new[lab]) if isinstance(lab, int) else new[lab] for n, lab in self._labels.items()}
        return Partition(tuple(merged), self.parameters, labels, module=self.module)._over(self.ranks)

    # -- text ------------------------------------------------------------------------------------------------------

    def __repr__(self) -> str:
        rows = [("group", "parameters", "scalars"), *self._rows()]
        wide, mid = (max(len(row[i]) for row in rows) for i in (0, 1))
        lines = [f"  {a:<{wide}}  {b:<{mid}}  {c:>9}" for a, b, c in rows]
        return "\n".join([f"Partition: {self._headline()}", *lines])

    def _repr_html_(self) -> str:
        from html import escape

        head = "<tr><th>group</th><th>parameters</th><th>scalars</th></tr>"
        body = "".join("<tr>" + "".join(f"<td>{escape(x)}</td>" for x in row) + "</tr>" for row in self._rows())
        return f"<table><caption>Partition: {self._headline()}</caption>{head}{body}</table>"

    def _headline(self) -> str:
        groups = "1 group" if len(self) == 1 else f"{len(self):,} groups"
        return f"{groups}, {sum(self.sizes):,} scalars"

    def _rows(self, most: int = 20) -> list[tuple[str, str, str]]:
        rows = [(self.names[s], _shorten(self.members(s)), f"{self.sizes[s]:,}") for s in range(min(len(self), most))]
        if len(self) > most:
            rows.append(("...", f"and {len(self) - most:,} more groups", f"{sum(self.sizes[most:]):,}"))
        return rows

    # -- construction ------------------------------------------------------------------------------------------------

    def _inside(self, name: str, group: int, like: Tensor) -> Tensor:
        return torch.as_tensor(self.label(name) == group, device=like.device)

    def _count(self) -> tuple[int, ...]:
        total = torch.zeros(len(self) + 1, dtype=torch.int64, device="cpu")
        for name, p in self.parameters.items():
            label = self._labels[name]
            if isinstance(label, int):
                total[label] += p.numel()
            else:
                total += label.flatten().bincount(minlength=len(total))
        return tuple(total[:-1].tolist())

    @classmethod
    def _by_key(cls, module: nn.Module, key: Callable[[str], str]) -> Self:
        """Whole tensors, grouped by a key of their names, in order of first appearance."""
        parameters = _named_parameters(module)
        # A tensor without a scalar, such as the weight of Linear(0, 3), makes no group of its own.
        keys = list(dict.fromkeys(key(name) for name, p in parameters.items() if nn.parameter.is_lazy(p) or p.numel()))
        label = {k: i for i, k in enumerate(keys)}
        # Parameters of the root module have no layer name: "model", told apart from a layer of that name.
        names = _distinct([k or "model" for k in keys])
        return cls(names, parameters, {name: label.get(key(name), len(keys)) for name in parameters}, module=module)

    @classmethod
    def _by_keys(cls, module: nn.Module, key: Callable[[str], str], rows: bool) -> Self:
        """Rows or scalars of tensors; tensors with the same key and the same number of rows share them."""
        parameters = _named_parameters(module)
        _check_shaped(parameters)
        names: list[str] = []
        labels: dict[str, Label] = {}
        start: dict[Hashable, int] = {}
        for name, p in parameters.items():
            shape = tuple(p.shape[:1]) if rows else tuple(p.shape)
            index = torch.arange(torch.Size(shape).numel(), device="cpu").reshape(shape)
            if (key(name), shape) not in start:
                start[key(name), shape] = len(names)
                names += [(key(name) or "model") + _bracket(i) for i in product(*map(range, shape))]
            # A row's label holds for all of its scalars: append the missing axes and broadcast.
            index = index.reshape(shape + (1,) * (p.dim() - len(shape))).expand(p.shape)
            labels[name] = start[key(name), shape] + index
        return cls(_distinct(names), parameters, labels, module=module)

    @classmethod
    def _from_claims(
        cls,
        groups: Mapping[str, Mapping[str, Tensor | tuple[Tensor, Tensor]]],
        parameters: Mapping[str, Tensor],
        rest: Rest,
        module: nn.Module | None,
    ) -> Self:
        """Groups that claim tensors or masked parts of them; every claim is checked against the earlier ones."""
        free = len(groups)
        _check_shaped(parameters)
        labels = {name: torch.full(p.shape, free, device="cpu") for name, p in parameters.items()}
        for i, (group, claims) in enumerate(groups.items()):
            for name, claim in claims.items():
                mask = _mask(claim, name, group)
                taken = labels[name][mask & (labels[name] != free)]
                if taken.numel():
                    raise ValueError(
                        f"expected groups that do not overlap, got {taken.numel()} scalars of {name} in both "
                        f"{list(groups)[int(taken[0])]!r} and {group!r}; take them out of one"
                    )
                labels[name][mask] = i
        left = {name: int((label == free).sum()) for name, label in labels.items() if (label == free).any()}
        if left and rest == "error":
            raise ValueError(
                "expected every scalar in a group, got none for "
                + ", ".join(f"{n} scalars of {name}" for name, n in left.items())
                + '; add a group or pass rest="ignore" to leave them where they are'
            )
        return cls(tuple(groups), parameters, labels, module=module)


def merged_groups(groups: Groups, names: Sequence[str]) -> dict[str, list[int]]:
    """The new group names and the old indices in each; every old group must appear exactly once.

    >>> merged_groups([["a", "c"], [1]], ["a", "b", "c"])
    {'a + c': [0, 2], 'b': [1]}
    """
    listed = list(groups.values()) if isinstance(groups, Mapping) else list(groups)
    if any(isinstance(group, str) or not isinstance(group, Sequence) for group in listed):
        raise TypeError(
            "expected a list of lists of group names or indices, got a bare name or number; write [[0, 1], [2]]"
        )
    if not all(len(group) for group in listed):
        raise ValueError("expected at least one group in each of the lists, got an empty one; leave it out")
    indices = [[_group_index(g, names) for g in group] for group in listed]
    seen = sorted(i for group in indices for i in group)
    if seen != list(range(len(names))):
        wrong = [names[i] for i in range(len(names)) if seen.count(i) != 1]
        raise ValueError(f"expected every group exactly once, got none or several of {_shorten(wrong)}; list each once")
    labels = list(groups) if isinstance(groups, Mapping) else [_shorten([names[i] for i in g], " + ") for g in indices]
    return dict(zip(_distinct(labels), indices, strict=True))


def _group_index(group: int | str, names: Sequence[str]) -> int:
    if isinstance(group, str) and group in names:
        return names.index(group)
    # A bool is an int of Python's, and a mask to torch.
    if isinstance(group, int) and not isinstance(group, bool) and 0 <= group < len(names):
        return group
    raise ValueError(
        f"expected a group name or an index below {len(names)}, got {group!r}; the groups are {_shorten(names)}"
    )


def _named_parameters(module: nn.Module) -> dict[str, Tensor]:
    if not isinstance(module, nn.Module):
        raise TypeError(
            f"expected a torch.nn.Module, got {type(module).__name__}; "
            "for loose tensors use Partition.from_groups([{name: tensor}, ...])"
        )
    reshard(unwrap(module))
    return dict(unwrap(module).named_parameters())  # torch lists a tied parameter once, by its first name


def _parameters_of(groups: Mapping[str, Mapping[str, Tensor | tuple[Tensor, Tensor]]]) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for group, claims in groups.items():
        if not isinstance(claims, Mapping):
            raise TypeError(
                f"expected group {group!r} as {{name: parameter}}, got {type(claims).__name__}; key it by name"
            )
        for name, claim in claims.items():
            tensor = claim[0] if isinstance(claim, tuple) else claim
            if not isinstance(tensor, Tensor):
                raise TypeError(f"expected a parameter for {name} in group {group!r}, got {type(tensor).__name__}")
            other = tensors.setdefault(name, tensor)
            if other is not tensor:
                raise ValueError(
                    f"expected one tensor for the name {name}, got two (the second in group {group!r}); rename one"
                )
    by_id: dict[int, str] = {}
    for name, tensor in tensors.items():
        first = by_id.setdefault(id(tensor), name)
        if first != name:
            raise ValueError(
                f"expected one name for a tensor, got {first} and {name}; a tied parameter goes by one name"
            )
    return tensors


def _names_held(module: nn.Module | None, parameters: Mapping[str, Tensor]) -> frozenset[str]:
    """Those of the parameters that the module has."""
    held = set() if module is None else {id(p) for p in module.parameters()}
    return frozenset(name for name, p in parameters.items() if id(p) in held)


def _check_parameters(parameters: Mapping[str, Tensor], shards: Shards | None) -> None:
    if not parameters:
        raise ValueError("expected at least one parameter, got none; give a module that has parameters")
    _check_shaped(parameters)
    for name, p in parameters.items():
        if isinstance(p, Tensor) and p.is_complex():
            raise TypeError(
                f"expected real parameters, got {p.dtype} for {name}; write gnewton.split_complex(model) first, which keeps the "
                "real and the imaginary part as two parameters, or leave it out"
            )
        if not isinstance(p, Tensor) or not p.is_floating_point():
            raise TypeError(
                f"expected real floating-point tensors, got {getattr(p, 'dtype', type(p))} for {name}; leave it out"
            )
        if not p.is_leaf:
            raise ValueError(
                f"expected parameters (leaf tensors), got the result of an operation for {name}; give the parameter"
            )
        if shards is None or id(p) not in shards.names:
            check_whole(name, p)
    check_apart({name: local_part(p) for name, p in parameters.items()})


def _check_shaped(parameters: Mapping[str, Tensor]) -> None:
    for name, p in parameters.items():
        if nn.parameter.is_lazy(p):
            raise ValueError(
                f"expected parameters with a shape, got {name} of a lazy module; run one batch through it first"
            )


def _check_labels(parameters: Mapping[str, Tensor], labels: Mapping[str, Label], groups: int) -> None:
    """Raises ValueError unless each parameter has the index of a group, or one for each of its scalars; the last index is no group."""
    for name, p in parameters.items():
        label = labels.get(name)
        if not _is_label(label, p, groups):
            got = f"{label.dtype} of shape {tuple(label.shape)}" if isinstance(label, Tensor) else repr(label)
            raise ValueError(
                f"expected as the label of {name} a number from 0 to {groups}, or an int64 tensor of such numbers and of shape "
                f"{tuple(p.shape)}, got {got}; write Partition.from_groups, which makes them"
            )


def _is_label(label: Label | None, parameter: Tensor, groups: int) -> bool:
    if isinstance(label, int):
        return 0 <= label <= groups
    if not isinstance(label, Tensor) or label.dtype != torch.int64 or label.shape != parameter.shape:
        return False
    return label.is_meta or not label.numel() or bool(((label >= 0) & (label <= groups)).all())


def _check_groups(names: Sequence[str], sizes: Sequence[int]) -> None:
    if not names:
        raise ValueError("expected at least one group, got none; give a group of parameters")
    check_names(names)
    if len(set(names)) != len(names):
        raise ValueError(f"expected distinct group names, got {_shorten(names)}; rename the repeated ones")
    for name, size in zip(names, sizes, strict=True):
        if size == 0:
            raise ValueError(f"expected at least one scalar in every group, got none in {name!r}; drop it or fill it")


def check_names(names: Sequence[Any]) -> None:
    """Raises TypeError for group names that are no strings.

    >>> check_names(["first", "second"])
    """
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"expected group names as strings, got {name!r}; write {str(name)!r}")


def _check_rest(rest: str) -> None:
    if rest not in ("error", "ignore"):
        raise ValueError(f'expected rest="error" or rest="ignore", got {rest!r}')


def _matches(glob: str, parameters: Iterable[str], group: str) -> list[str]:
    names = list(parameters)
    matching = [name for name in names if fnmatchcase(name, glob)]
    if not matching:
        raise ValueError(
            f"expected the pattern {glob!r} of group {group!r} to match a parameter, got none; the names are {_shorten(names)}"
        )
    return matching


def _mask(claim: Tensor | tuple[Tensor, Tensor], name: str, group: str) -> Tensor:
    if not isinstance(claim, tuple):
        return torch.ones(claim.shape, dtype=torch.bool, device="cpu")
    parameter, mask = claim
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.shape != parameter.shape:
        raise ValueError(
            f"expected a boolean mask of shape {tuple(parameter.shape)} for {name} in group {group!r}, "
            f"got {getattr(mask, 'dtype', type(mask).__name__)} of shape {tuple(getattr(mask, 'shape', ()))}; build it with torch.zeros_like({name}, dtype=torch.bool)"
        )
    return mask.cpu()


def _simplify(label: Label) -> Label:
    # One group for the whole tensor is the common case and needs no tensor of labels.
    if isinstance(label, Tensor) and label.numel() and bool((label == label.flatten()[0]).all()):
        return int(label.flatten()[0])
    return label


def _layer(name: str) -> str:
    return name.rpartition(".")[0]


def _kind(name: str) -> str:
    last = name.rpartition(".")[2]
    return "weights" if "weight" in last else "biases" if "bias" in last else "rest"


def _layers(module: nn.Module, n: int) -> dict[str, int]:
    layers = list(dict.fromkeys(_layer(name) for name in _named_parameters(module)))
    if not (isinstance(n, Integral) and 1 <= n <= len(layers)):
        raise ValueError(
            f"expected a whole number 1 <= n <= {len(layers)} (the number of layers with parameters), got n = {n!r}"
        )
    return {layer: i for i, layer in enumerate(layers)}


def _bracket(index: Sequence[int]) -> str:
    return "[" + ",".join(map(str, index)) + "]" if index else ""


def _as_list(globs: str | Sequence[str]) -> Sequence[str]:
    return [globs] if isinstance(globs, str) else globs


def _distinct(names: Sequence[str]) -> list[str]:
    # Two tensors of one layer whose rows differ in number would share names: number the second set.
    seen: dict[str, int] = {}
    out = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        out.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return out


def _shorten(names: Sequence[str], joint: str = ", ", most: int = 4) -> str:
    more = len(names) - most
    return joint.join(names[:most]) + (f"{joint}... ({more:,} more)" if more > 0 else "")
