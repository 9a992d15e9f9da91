"""What a notebook's cells say about a training run: a static flow of values through its code, cell after cell.

Three levels. CLEAN: does not come from a run. TRUTH: a comparison of something that does, a statement in words. RUN: a number, a
name, a count that does; on another processor it may be another one. A run is a call that trains (TRAINS), a function of
the notebook in which one is called, or a loop that descends by hand. The flow is a guess on the safe side: what a run was
given is taken to be changed by it, and what is computed from a changed thing to depend on it.
"""

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field

CLEAN, TRUTH, RUN = 0, 1, 2
TRAINS = {
    "step",
    "fit",
    "train",
    "advance",
    "losses",
    "DeepRates",
    "InvarianceTwins",
    "LiveTraining",
    "SampleSpectrum",
    "SaddleExplorer",
    "QuadraticBowl",
}
BAND = "band"  # prints bounds, which it has checked, in place of the value
SAYS = {"all", "any", "allclose", "bool", "equal", "isfinite", "isinstance"}  # their result is true or false
CARRIES = {
    "cpu",
    "detach",
    "dict",
    "double",
    "float",
    "format",
    "item",
    "join",
    "list",
    "set",
    "sorted",
    "str",
    "tolist",
    "tuple",
}
NAMES_ONLY = {"__name__", "dtype", "names", "shape", "title"}  # what a run does not change
FILLS = {"add", "append", "extend", "update"}
IN_PLACE = {"add_", "copy_", "mul_", "sub_"}
DEEPEST = 3  # calls within calls that are looked into


@dataclass
class Flow:
    """The levels of the names so far, and what the statements read last have printed."""

    levels: dict[str, int] = field(default_factory=dict)
    functions: dict[str, ast.FunctionDef] = field(default_factory=dict)
    methods: dict[str, ast.FunctionDef] = field(default_factory=dict)
    printed: list[tuple[int, str]] = field(default_factory=list)
    depth: int = 0

    def cell(self, body: list[ast.stmt]) -> list[tuple[int, str]]:
        """What a cell shows, (level, source): arguments of print and display, and its last expression."""
        self.printed = []
        for statement in body:
            self.read(statement)
        return self.printed

    def last(self, body: list[ast.stmt]) -> list[tuple[int, str]]:
        """What a cell shows without being told to: the value of its last expression."""
        if not body or not isinstance(body[-1], ast.Expr) or shows(body[-1].value) or is_band(body[-1].value):
            return []
        return [(self.level(body[-1].value), ast.unparse(body[-1].value))]

    def show(self, node: ast.expr, least: int = CLEAN) -> None:
        self.printed.append((max(self.level(node), least), ast.unparse(node)))

    # -- statements ---------------------------------------------------------------------------------------------------

    def read(self, node: ast.stmt, under: int = CLEAN) -> None:
        """One statement; ``under`` is the level of the tests that decide whether it is reached."""
        match node:
            case ast.FunctionDef():
                self.functions[node.name] = node
                self.levels.pop(node.name, None)
            case ast.ClassDef():
                self.methods |= {inner.name: inner for inner in node.body if isinstance(inner, ast.FunctionDef)}
            case ast.Assign(targets=targets, value=value):
                for target in targets:
                    self.bind(target, value, under)
            case ast.AnnAssign(target=target, value=ast.expr() as value):
                self.bind(target, value, under)
            case ast.AugAssign(target=target, value=value):
                self.raise_to(target, max(self.level(value), RUN * (under > CLEAN)))  # how often depends on the run
            case ast.For():
                self.loop(node, [(node.target, node.iter)], under)
            case ast.While():
                self.loop(node, [], under)
            case ast.If():
                deeper = max(under, min(self.level(node.test), TRUTH))
                self.read_all([*node.body, *node.orelse], deeper)
            case ast.With():
                self.read_with(node, under)
            case ast.Try():
                self.read_all(
                    [*node.body, *(s for h in node.handlers for s in h.body), *node.orelse, *node.finalbody], under
                )
            case ast.Return(value=ast.expr() as value) | ast.Expr(value=value):
                self.expression(value, under)

    def read_all(self, body: list[ast.stmt], under: int) -> None:
        for statement in body:
            self.read(statement, under)

    def read_with(self, node: ast.With, under: int) -> None:
        self.read_all(node.body, under)
        if any(self.is_run(call) for call in calls(node)):
            for item in node.items:  # warnings caught while it trained
                if item.optional_vars:
                    self.raise_to(item.optional_vars, RUN)

    def loop(self, node: ast.For | ast.While, pairs: list[tuple[ast.expr, ast.expr]], under: int) -> None:
        decided = dict.fromkeys(stored(node), RUN) if self.descends(node) or self.ends_early(node) else {}
        self.levels |= decided
        before = len(self.printed)
        for _ in range(2):  # what the end of a pass changes, its beginning sees in the next
            del self.printed[before:]
            for target, iterated in pairs:
                self.bind_iterated(target, iterated)
            often = RUN if isinstance(node, ast.While) and self.level(node.test) else under
            self.read_all([*node.body, *node.orelse], often)
            self.levels |= decided

    def ends_early(self, node: ast.For | ast.While) -> bool:
        """Whether a run decides how often the loop goes round: its counters then depend on the run."""
        leaves = isinstance(node, ast.While) or any(isinstance(part, ast.Break) for part in ast.walk(node))
        return leaves and any(self.is_run(call) for call in calls(node))

    def expression(self, node: ast.expr, under: int) -> None:
        for call in calls(node):
            if under and name_of(call.func) in FILLS and isinstance(call.func, ast.Attribute):
                self.raise_to(call.func.value, RUN)  # how many it holds depends on the run
            if shows(call):
                for argument in call.args:
                    self.show(argument, under)
            elif is_band(call):
                for argument in [*call.args[:1], *call.args[2:], *(k.value for k in call.keywords)]:
                    self.show(argument, under)  # a bound that comes from the run bounds nothing
        self.level(node)

    # -- names --------------------------------------------------------------------------------------------------------

    def bind(self, target: ast.expr, value: ast.expr, under: int = CLEAN) -> None:
        match target, value:
            case ast.Tuple(elts=targets), ast.Tuple(elts=values) if len(targets) == len(values):
                for one, other in zip(targets, values, strict=True):
                    self.bind(one, other, under)
            case ast.Name(id=name), ast.Lambda():
                self.functions[name] = ast.FunctionDef(name, value.args, [ast.Return(value.body)], [])
                self.levels[name] = CLEAN
            case ast.Name(id=name), _:
                self.levels[name] = max(self.level(value), under)
                self.functions.pop(name, None)
            case _:
                self.raise_to(target, max(self.level(value), under))

    def bind_iterated(self, target: ast.expr, iterated: ast.expr) -> None:
        """The targets of a loop: the keys of a dictionary and the count of an enumeration are clean, a zip goes in pairs."""
        match target, iterated:
            case ast.Tuple(elts=[key, value]), ast.Call(func=ast.Attribute(value=mapping, attr="items")):
                self.set_to(key, CLEAN)
                self.set_to(value, self.level(mapping))
            case ast.Tuple(elts=[number, value]), ast.Call(func=ast.Name(id="enumerate"), args=[inner, *_]):
                self.set_to(number, CLEAN)
                self.bind_iterated(value, inner)
            case ast.Tuple(elts=targets), ast.Call(func=ast.Name(id="zip"), args=args) if len(targets) == len(args):
                for one, other in zip(targets, args, strict=True):
                    self.bind_iterated(one, other)
            case ast.Tuple(elts=targets), ast.Tuple(elts=rows) | ast.List(elts=rows) if all_rows(rows, len(targets)):
                for column, one in enumerate(targets):
                    self.set_to(one, max(self.level(row.elts[column]) for row in rows))  # type: ignore[attr-defined]
            case _:
                self.set_to(target, self.level(iterated))

    def set_to(self, target: ast.expr, level: int) -> None:
        for name in (node.id for node in ast.walk(target) if isinstance(node, ast.Name)):
            self.levels[name] = level

    def raise_to(self, target: ast.expr, level: int) -> None:
        """A part of a thing is written, or several names at once: the level of the whole can only rise."""
        if isinstance(target, ast.Tuple | ast.List | ast.Starred):
            self.set_to(target, level)
        elif name := base(target):
            self.levels[name] = max(self.levels.get(name, CLEAN), level)

    # -- expressions --------------------------------------------------------------------------------------------------

    def level(self, node: ast.expr | None) -> int:
        match node:
            case None | ast.Constant():
                return CLEAN
            case ast.Name(id=name):
                return max(self.levels.get(name, CLEAN), RUN if self.trains(name) else self.of_function(name))
            case ast.Attribute(value=value, attr=attr):
                return CLEAN if attr in NAMES_ONLY else self.level(value)
            case ast.Compare() | ast.UnaryOp(op=ast.Not()):
                return min(self.most(ast.iter_child_nodes(node)), TRUTH)
            case ast.IfExp(test=test, body=body, orelse=orelse):
                return max(self.level(body), self.level(orelse), min(self.level(test), TRUTH))
            case ast.BinOp(left=left, right=right, op=op):
                level = max(self.level(left), self.level(right))
                kept = isinstance(op, ast.BitAnd | ast.BitOr | ast.Mod) or isinstance(left, ast.JoinedStr)
                return level if kept else RUN * (level > CLEAN)
            case ast.Call():
                return self.called(node)
            case ast.ListComp() | ast.SetComp() | ast.GeneratorExp() | ast.DictComp():
                return self.comprehended(node)
            case ast.Lambda():
                return self.inner().level(node.body)
            case _:
                return self.most(ast.iter_child_nodes(node))

    def most(self, nodes: Iterator[ast.AST]) -> int:
        return max((self.level(node) for node in nodes if isinstance(node, ast.expr)), default=CLEAN)

    def comprehended(self, node: ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp) -> int:
        inner = self.inner()
        for generator in node.generators:
            inner.bind_iterated(generator.target, generator.iter)
        if any(inner.level(test) for generator in node.generators for test in generator.ifs):
            return RUN  # how many there are depends on the run
        parts = [node.key, node.value] if isinstance(node, ast.DictComp) else [node.elt]
        return max(inner.level(part) for part in parts)

    def inner(self) -> "Flow":
        return Flow(dict(self.levels), dict(self.functions), self.methods, self.printed, self.depth + 1)

    def called(self, node: ast.Call) -> int:
        name, given = name_of(node.func), [*node.args, *(keyword.value for keyword in node.keywords)]
        level = max((self.level(argument) for argument in given), default=CLEAN)
        of = self.level(node.func.value) if isinstance(node.func, ast.Attribute) else CLEAN
        self.replay(node)
        if self.is_run(node):
            self.change(node)
            return RUN
        if name in SAYS:
            return min(max(level, of), TRUTH)
        if name in CARRIES:
            return max(level, of)
        if name in FILLS and isinstance(node.func, ast.Attribute):
            self.raise_to(node.func.value, level)
        return RUN if max(level, of, self.of_function(name)) else CLEAN

    def change(self, node: ast.Call) -> None:
        """A run changes what it is given, and the thing whose method it is."""
        things = list(node.args) + ([node.func.value] if isinstance(node.func, ast.Attribute) else [])
        for thing in things:
            if isinstance(thing, ast.Name) and thing.id not in self.functions:
                self.levels[thing.id] = RUN

    def replay(self, node: ast.Call) -> None:
        """What a function of the notebook prints is shown by the cell that calls it: its body is read with these arguments."""
        function = self.functions.get(name_of(node.func))
        if (
            function is None
            or self.depth > DEEPEST
            or not any(shows(call) or is_band(call) for call in calls(function))
        ):
            return
        inner = self.inner()
        names = [argument.arg for argument in function.args.args]
        given = dict(zip(names, node.args, strict=False)) | {k.arg: k.value for k in node.keywords if k.arg in names}
        inner.levels |= {name: self.level(given[name]) if name in given else CLEAN for name in names}
        inner.read_all(function.body, CLEAN)

    def of_function(self, name: str) -> int:
        """The highest level of the names that a function of the notebook takes from outside."""
        if (function := self.functions.get(name)) is None or self.depth > DEEPEST:
            return CLEAN
        own = stored(function)
        inner = self.inner()
        return max((inner.level(node) for node in loaded(function) if node.id not in own), default=CLEAN)

    # -- runs ---------------------------------------------------------------------------------------------------------

    def is_run(self, call: ast.Call) -> bool:
        name = name_of(call.func)
        if isinstance(call.func, ast.Attribute):
            return name in TRAINS or self.trains(name, of=self.methods)
        return (name in TRAINS and name not in self.functions) or self.trains(name)

    def trains(
        self, name: str, seen: frozenset[str] = frozenset(), of: dict[str, ast.FunctionDef] | None = None
    ) -> bool:
        """Whether a function of the notebook trains when it is called, itself or through another."""
        function = (self.functions if of is None else of).get(name)
        if function is None or name in seen:
            return False
        loops = (node for node in ast.walk(function) if isinstance(node, ast.For | ast.While))
        return any(self.descends(loop) for loop in loops) or any(
            name_of(call.func) in TRAINS - (set() if isinstance(call.func, ast.Attribute) else set(self.functions))
            or self.trains(name_of(call.func), seen | {name})
            for call in calls(function)
        )

    def descends(self, loop: ast.For | ast.While) -> bool:
        """A loop that subtracts from a name again and again, or calls a function that changes tensors in place."""
        nodes = [node for statement in loop.body for node in ast.walk(statement)]
        return any(subtracts(node) for node in nodes) or any(
            self.moves(name_of(node.func)) for node in nodes if isinstance(node, ast.Call)
        )

    def moves(self, name: str) -> bool:
        function = self.functions.get(name)
        return function is not None and any(name_of(call.func) in IN_PLACE for call in calls(function))


def subtracts(node: ast.AST) -> bool:
    match node:
        case ast.Assign(targets=[ast.Name(id=name)], value=ast.BinOp(left=ast.Name(id=left), op=ast.Sub())):
            return name == left
        case ast.AugAssign(op=ast.Sub()):
            return True
    return False


def shows(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and name_of(node.func) in {"print", "display"}


def is_band(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and name_of(node.func) == BAND


def calls(node: ast.AST) -> Iterator[ast.Call]:
    return (part for part in ast.walk(node) if isinstance(part, ast.Call))


def name_of(node: ast.expr) -> str:
    """The last name of what is called: ``fit`` of ``gn.training.fit``."""
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def base(node: ast.expr) -> str:
    """The name of the thing whose part is written: ``runs`` of ``runs["a"].losses``."""
    while isinstance(node, ast.Attribute | ast.Subscript):
        node = node.value
    return node.id if isinstance(node, ast.Name) else ""


def all_rows(rows: list[ast.expr], width: int) -> bool:
    return bool(rows) and all(isinstance(row, ast.Tuple | ast.List) and len(row.elts) == width for row in rows)


def stored(node: ast.AST) -> set[str]:
    names = {part.id for part in ast.walk(node) if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store)}
    inner = {
        part.name for part in ast.walk(node) if isinstance(part, ast.FunctionDef | ast.ClassDef) and part is not node
    }
    return names | inner | {part.arg for part in ast.walk(node) if isinstance(part, ast.arg)}


def loaded(node: ast.AST) -> Iterator[ast.Name]:
    return (part for part in ast.walk(node) if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Load))
