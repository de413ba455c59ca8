"""The source of a module's ``forward``: what in it depends on no tensor and is decided once, which submodules it calls,
and expressions of it as functions of tensors.
"""

import ast
import builtins
import inspect
import textwrap
from types import CodeType
from typing import Any, NoReturn

from torch import Tensor, nn

from hpcopt.dataflow.graph import Wire
from hpcopt.dataflow.transform import Function
from hpcopt.errors import JobError


class Reading:
    """Attributes:
    tree: of the function.
    arguments: its parameters, the module first.
    static: what names stand for that depend on no tensor of the instance.
    wires: those of the names that do.
    """

    def __init__(self, model: nn.Module) -> None:
        """Raise JobError if there is no source."""
        self._fresh = 0
        function: Any = inspect.unwrap(type(model).forward)
        try:
            lines, first = inspect.getsourcelines(function)
        except (OSError, TypeError):
            raise JobError(f"{type(model).__name__}.forward has no source that can be read: give it wire()") from None
        self._file, self._first = inspect.getsourcefile(function) or "?", first
        tree = ast.parse(textwrap.dedent("".join(lines))).body[0]
        assert isinstance(tree, ast.FunctionDef)
        self.tree, self.arguments = tree, list(inspect.signature(function).parameters.values())
        self._globals = {**vars(builtins), **function.__globals__, **inspect.getclosurevars(function).nonlocals}
        self.static: dict[str, Any] = {self.arguments[0].name: model}
        self.wires: dict[str, Wire] = {}

    def bind(self, name: str, wire: Wire) -> None:
        """Let a name stand for a tensor from here on."""
        self.static.pop(name, None)
        self.wires[name] = wire

    def is_static(self, expression: ast.expr) -> bool:
        """Whether it reads no tensor of the instance, and calls no submodule with parameters."""
        if any(isinstance(node, ast.Name) and node.id in self.wires for node in ast.walk(expression)):
            return False
        calls = [node for node in ast.walk(expression) if isinstance(node, ast.Call)]
        return not any(self.module_of(call) for call in calls)

    def module_of(self, call: ast.Call) -> nn.Module | None:
        """The submodule with parameters that is called, if it is one."""
        if any(isinstance(node, ast.Name) and node.id in self.wires for node in ast.walk(call.func)):
            return None
        if any(isinstance(node, ast.Call) for node in ast.walk(call.func)):
            return None
        found = self.evaluate(call.func)
        return found if isinstance(found, nn.Module) and any(True for _ in found.parameters()) else None

    def evaluate(self, expression: ast.expr) -> Any:
        """The value of one that is static; JobError with its line if there is none."""
        whole = ast.fix_missing_locations(ast.Expression(expression))
        try:
            return eval(compile(whole, self._file, "eval"), {**self._globals, **self.static})
        except Exception as cause:
            self.refuse(expression, str(cause))

    def compiled(self, expression: ast.expr) -> tuple[tuple[str, ...], CodeType]:
        """The names of the wires that an expression reads, and its code."""
        named = dict.fromkeys(node.id for node in ast.walk(expression) if isinstance(node, ast.Name))
        for node in ast.walk(expression):
            if isinstance(node, ast.Lambda | ast.comprehension | ast.NamedExpr | ast.Await | ast.Yield):
                self.refuse(expression, "no node does this")
        whole = ast.fix_missing_locations(ast.Expression(expression))
        return tuple(name for name in named if name in self.wires), compile(whole, self._file, "eval")

    def function(
        self, code: CodeType, names: tuple[str, ...], known: dict[str, Any], count: int, where: ast.expr
    ) -> Function:
        """The code as a function of the tensors that it names, which must give so many.

        Args:
            code, names: as ``compiled`` gives them.
            known: what other names in it stand for.
            count: of the tensors that it gives.
            where: the expression, for messages.
        """
        scope, place = {**self._globals, **known}, self._where(where)

        def function(*values: Tensor) -> Any:
            made = eval(code, scope, dict(zip(names, values, strict=True)))
            several = len(made) if isinstance(made, tuple | list) else 1
            if several != count:
                raise JobError(f"{place}: {several} values, where {count} are named: name each, as in h, c = ...")
            return tuple(made) if count > 1 else made

        return function

    def fresh(self) -> str:
        """A name that no source has."""
        self._fresh += 1
        return f"_made{self._fresh}"

    def _where(self, node: ast.AST) -> str:
        line = self._first + getattr(node, "lineno", 1) - 1
        return f"{self._file}:{line}"

    def refuse(self, node: ast.AST, why: str) -> NoReturn:
        """Raise JobError, on all ranks, with the line."""
        text = ast.unparse(node).splitlines()[0]
        raise JobError(f"{self._where(node)}: `{text}` cannot become nodes of a graph: {why}").everywhere()


class Calls(ast.NodeTransformer):
    """Puts names in place of the outermost calls of submodules with parameters.

    Attributes:
        made: the module and the call, by name.
    """

    def __init__(self, reading: Reading) -> None:
        self._reading = reading
        self.made: dict[str, tuple[nn.Module, ast.Call]] = {}

    def visit_Call(self, node: ast.Call) -> ast.AST:
        module = self._reading.module_of(node)
        if module is None:
            return self.generic_visit(node)
        name = self._reading.fresh()
        copied = ast.copy_location(ast.Call(node.func, list(node.args), list(node.keywords)), node)
        self.made[name] = (module, copied)
        return ast.copy_location(ast.Name(name, ast.Load()), node)
