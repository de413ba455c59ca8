"""From a plain module to a graph: the source of its ``forward`` is read, and control flow becomes nodes.

- A call of a submodule with parameters is a transform node; what stands between is one without parameters.
- ``for row in rows:`` over the rows of a tensor is a loop of nodes, Phi, Cond and Isu, of as many passes as the
  instance has rows. What the body sets, and what it reads, goes round with it.
- What depends on no tensor is decided once: ``for layer in self.layers:`` is unrolled, ``if self.deep:`` takes its
  branch.
- A submodule that is called in several places is one node that the calls share.

Everything else is refused with its line.
"""

import ast
import copy
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch import Tensor, nn

from hpcopt.dataflow.control import Concat, Cond, Isu, Phi, Split, itself
from hpcopt.dataflow.graph import Graph, Wire, Wired
from hpcopt.dataflow.instance import Instance
from hpcopt.dataflow.many import Ungroup
from hpcopt.dataflow.message import State
from hpcopt.dataflow.reading import Calls, Reading
from hpcopt.dataflow.transform import Function

_ALONE = threading.Lock()  # Python 3.11's parser counts its depth for all threads together, and ranks may be threads


def graph_of(models: Sequence[nn.Module], criterion: Function) -> Graph:
    """The graph of a network, or of several replicas of it, with its loss.

    Raises:
        JobError: the network cannot be traced, and does not say how it is wired.
    """
    graph = Graph(len(models))
    for copy_number, model in enumerate(models):
        graph.begin_copy(copy_number)
        graph.loss(model.wire(graph) if isinstance(model, Wired) else trace(model, graph), criterion)
    graph.finish(models[0])
    return graph


def trace(model: nn.Module, graph: Graph) -> Wire:
    """Add the nodes of a module to a graph; give the wire of its outputs.

    Raises:
        JobError: its ``forward`` has no source, or does something that no nodes do; the message has the line.
    """
    with _ALONE:
        rehearsal = _Tracer(model, Graph(), Counter())
        rehearsal.run()
        return _Tracer(model, graph, rehearsal.sites).run()


class _Tracer:
    """Attributes:
    sites: how often each module is called, by id.
    """

    def __init__(self, model: nn.Module, graph: Graph, known_sites: Counter[int]) -> None:
        self._model, self._graph, self._known_sites = model, graph, known_sites
        self.sites = Counter[int]()
        self._shared: dict[int, tuple[int, int, list[Function]]] = {}
        self._names = {id(module): name for name, module in model.named_modules()}
        self._code, self._depth = Reading(model), 0

    def run(self) -> Wire:
        """Trace the whole; give the wire of what is returned."""
        code, place = self._code, 0
        for argument in code.arguments[1:]:
            if argument.kind is not argument.POSITIONAL_OR_KEYWORD:
                code.refuse(code.tree, f"{argument} is not one tensor")
            if argument.default is not argument.empty:
                code.static[argument.name] = argument.default
                continue
            code.wires[argument.name] = self._graph.entry(_input(place))
            place += 1
        result = self._body(code.tree.body)
        if result is None:
            code.refuse(code.tree, "it returns nothing")
        return result

    def _body(self, statements: Iterable[ast.stmt]) -> Wire | None:
        for statement in statements:
            if isinstance(statement, ast.Return) and statement.value is not None:
                if self._depth:
                    self._code.refuse(statement, "a return inside a loop")
                return self._value(statement.value)
            result = self._statement(statement)
            if result is not None:
                return result
        return None

    def _statement(self, statement: ast.stmt) -> Wire | None:
        match statement:
            case ast.Assign(targets=[target], value=value) | ast.AnnAssign(target=target, value=ast.expr() as value):
                self._assign(target, value)
            case ast.AugAssign(target=ast.Name(id=name) as target, op=op, value=value):
                read = ast.copy_location(ast.Name(name, ast.Load()), target)
                self._assign(target, ast.copy_location(ast.BinOp(read, op, value), statement))
            case ast.For(target=ast.Name(id=name), iter=rows, body=body, orelse=[]):
                if self._code.is_static(rows):
                    return self._unrolled(name, self._code.evaluate(rows), body)
                self._loop(name, rows, body)
            case ast.If(test=test) if self._code.is_static(test):
                return self._body(statement.body if self._code.evaluate(test) else statement.orelse)
            case ast.Expr(value=ast.Constant()) | ast.Pass():
                pass
            case ast.If() | ast.While():
                self._code.refuse(statement, "whether it goes on depends on a tensor's values: give the network wire()")
            case _:
                self._code.refuse(statement, "no node does this")
        return None

    def _assign(self, target: ast.expr, value: ast.expr) -> None:
        if isinstance(target, ast.Name):
            if self._code.is_static(value) and not isinstance(known := self._code.evaluate(value), Tensor):
                self._code.static[target.id] = known
                self._code.wires.pop(target.id, None)
                return
            self._code.bind(target.id, self._value(value))
        elif isinstance(target, ast.Tuple) and all(isinstance(one, ast.Name) for one in target.elts):
            made = self._value(value, len(target.elts))
            split = self._graph.add(Split(len(target.elts)), made).node
            for port, one in enumerate(target.elts):
                assert isinstance(one, ast.Name)
                self._code.bind(one.id, Wire(split, port))
        else:
            self._code.refuse(target, "only names can be set")

    def _unrolled(self, name: str, things: Iterable[Any], body: list[ast.stmt]) -> Wire | None:
        for thing in things:
            self._code.static[name] = thing
            self._code.wires.pop(name, None)
            result = self._body(body)
            if result is not None:
                return result
        return None

    def _loop(self, name: str, rows: ast.expr, body: list[ast.stmt]) -> None:
        """One pass for each row. Every variable that the body names goes round: in by a Phi, out by a Cond."""
        graph, before = self._graph, dict(self._code.wires)
        cut = graph.add(Ungroup(), self._value(rows)).node
        named = {node.id for statement in body for node in ast.walk(statement) if isinstance(node, ast.Name)}
        carried = {variable: wire for variable, wire in self._code.wires.items() if variable in named - {name}}
        phis, after = {}, {}
        for variable, wire in carried.items():
            begun = graph.add(Concat([itself, _outer], lead=1), wire, Wire(cut, 1))
            phi = phis[variable] = graph.add(Phi(), begun)
            cond = graph.add(Cond(_is_over), phi).node
            self._code.wires[variable] = Wire(cond, 0)
            after[variable] = graph.add(Isu(lambda state: state.at[:-2]), Wire(cond, 1))
        self._code.bind(name, Wire(cut, 0))
        self._depth += 1
        self._body(body)
        self._depth -= 1
        for variable, phi in phis.items():
            if variable not in self._code.wires:
                self._code.refuse(body[0], f"{variable} is a tensor before the loop and none in it")
            graph.connect(graph.add(Isu(_next_pass), self._code.wires[variable]), phi.node, 1)
        self._code.wires = before | after

    def _value(self, expression: ast.expr, count: int = 1) -> Wire:
        """The wire of an expression's value, of so many tensors."""
        calls = Calls(self._code)
        rest = calls.visit(copy.deepcopy(expression))  # a loop that is unrolled comes here again
        if isinstance(rest, ast.Name) and rest.id in self._code.wires and count == 1:
            return self._code.wires[rest.id]
        if isinstance(rest, ast.Name) and rest.id in calls.made:
            return self._call(*calls.made[rest.id], count)
        for name, (module, call) in calls.made.items():
            self._code.wires[name] = self._call(module, call, 1)
        return self._computed(rest, count)

    def _call(self, module: nn.Module, call: ast.Call, count: int) -> Wire:
        """A submodule's node, with what stands in the call's brackets worked out there too."""
        inner = Calls(self._code)
        call.args = [inner.visit(argument) for argument in call.args]
        call.keywords = [ast.keyword(k.arg, inner.visit(k.value)) for k in call.keywords]
        for name, (deeper, arguments) in inner.made.items():
            self._code.wires[name] = self._call(deeper, arguments, 1)
        call.func = ast.copy_location(ast.Name("_module", ast.Load()), call.func)
        names, code = self._code.compiled(call)
        known = {**self._code.static, "_module": module}
        self.sites[id(module)] += 1
        name = self._names.get(id(module), type(module).__name__.lower())
        function, inputs = self._code.function(code, names, known, count, call), self._inputs(names, call)
        if self._known_sites[id(module)] > 1:
            return self._one_of_several(module, name, function, inputs)
        return self._graph.transform(name, function, *inputs, module=module)

    def _one_of_several(self, module: nn.Module, name: str, function: Function, inputs: list[Wire]) -> Wire:
        """A call of a submodule that has others: a counter of the state tells them apart in their one node."""
        graph, key = self._graph, id(module)
        if key not in self._shared:
            functions, sites = list[Function](), self._known_sites[key]
            phi = graph.add(Phi(sites))
            made = graph.transform(
                name, lambda state, *x: functions[state.at[-1]](*x), phi, module=module, asks_state=True
            )
            back = graph.add(Cond(lambda state: state.at[-1], sites), made)
            self._shared[key] = phi.node, back.node, functions
        phi_node, back_node, functions = self._shared[key]
        site = len(functions)
        functions.append(function)
        graph.connect(graph.add(Isu(lambda state: (*state.at, site)), graph.joined(*inputs)), phi_node, site)
        return graph.add(Isu(lambda state: state.at[:-1]), Wire(back_node, site))

    def _computed(self, expression: ast.expr, count: int) -> Wire:
        for node in ast.walk(expression):
            if isinstance(node, ast.Attribute) and self._code.is_static(node):
                found = self._code.evaluate(node)
                if isinstance(found, nn.Parameter):
                    self._code.refuse(node, "a parameter belongs to a submodule that is called")
        names, code = self._code.compiled(expression)
        function = self._code.function(code, names, dict(self._code.static), count, expression)
        return self._graph.transform("compute", function, *self._inputs(names, expression))

    def _inputs(self, names: tuple[str, ...], where: ast.expr) -> list[Wire]:
        if names:
            return [self._code.wires[name] for name in names]
        if self._depth:
            self._code.refuse(where, "in a loop a value is made of others: make it before the loop")
        return [self._graph.entry(lambda instance: ())]


def _input(place: int) -> Callable[[Instance], tuple[Tensor, ...]]:
    return lambda instance: (instance.inputs[place],)


def _outer(state: State) -> State:
    return state.moved(state.at[:-2])


def _is_over(state: State) -> int:
    return int(state.at[-2] >= state.at[-1])


def _next_pass(state: State) -> tuple[int, ...]:
    return (*state.at[:-2], state.at[-2] + 1, state.at[-1])
