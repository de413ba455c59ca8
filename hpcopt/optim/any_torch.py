"""Any optimizer of torch's form, by where Python finds it.

    [solver.optimizer]
    name = "torch"
    type = "torch.optim:Muon"
    lr = 0.02
    arguments = { momentum = 0.9 }
    others = { name = "adamw", lr = 0.003 }    # for what the type does not take: vectors, here

What a type takes and does is tried on a small matrix when the job is read, so that a wrong argument is a message then.
"""

import inspect
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import ConfigDict, Field, PrivateAttr, ValidationInfo, WithJsonSchema, field_validator, model_validator
from torch import nn
from torch.optim import Optimizer

from hpcopt.errors import JobError
from hpcopt.families import OPTIMIZERS
from hpcopt.optim.arguments import checked, takes
from hpcopt.optim.config import OptimizerConfig
from hpcopt.optim.groups import decay_matrices_only, scale_learning_rate
from hpcopt.optim.modes import to_training
from hpcopt.optim.several import Several, has_modes
from hpcopt.plugins import import_class
from hpcopt.randomness import drawn

OTHERS = 'others = { name = "adamw", lr = 0.001 }'
AnyOptimizer = Annotated[
    OptimizerConfig,
    OPTIMIZERS,
    WithJsonSchema({"type": "object", "title": "optimizer", "properties": {"name": {"type": "string"}}}),
]  # as [solver.optimizer]; the schema does not go round in a circle


def _rate_may_be_the_types(schema: dict[str, Any]) -> None:
    schema["required"].remove("lr")


class AnyTorchConfig(OptimizerConfig):
    """Any subclass of torch.optim.Optimizer that steps by gradients, see docs/howto/choose_optimizer.md."""

    model_config = ConfigDict(json_schema_extra=_rate_may_be_the_types)

    name: Literal["torch"] = "torch"
    type: str = Field(description='"torch.optim:Muon", or any other class, as "package.module:Class"')
    lr: float = Field(
        gt=0, description="learning rate at the top of the schedule; may be left out if type has a default"
    )
    arguments: dict[str, Any] = Field(
        {}, description="keyword arguments of type; its weight_decay is for weights of two or more dimensions"
    )
    others: AnyOptimizer | None = Field(
        None, description='optimizer, such as `{ name = "adamw" }`, of the parameters that type does not take'
    )
    _draws: bool = PrivateAttr(False)
    _modes: bool = PrivateAttr(False)

    @model_validator(mode="before")
    @classmethod
    def _with_its_own_rate(cls, section: Any) -> Any:
        """Take over the type's default rate where there is none; what is wrong is said elsewhere."""
        if not isinstance(section, dict) or "lr" in section or not isinstance(section.get("type"), str):
            return section
        try:
            rate = takes(import_class(section["type"], Optimizer)).get("lr")
        except ValueError:
            return {**section, "lr": 1.0}  # the type is what is wrong, as will be said
        return section if rate is None or not isinstance(rate.default, float | int) else {**section, "lr": rate.default}

    @field_validator("type")
    @classmethod
    def _steps_by_gradients(cls, name: str) -> str:
        if ":" not in name:
            raise ValueError(f'"{name}" is not of the form "package.module:Class"')
        closure = inspect.signature(import_class(name, Optimizer).step).parameters.get("closure")
        if closure is not None and closure.default is closure.empty:
            raise ValueError(
                f"{name} asks for the loss again in the midst of a step (a closure), which no solver gives: take one "
                "that steps by gradients"
            )
        return name

    @field_validator("arguments")
    @classmethod
    def _fit_the_signature(cls, arguments: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        if "type" not in info.data:
            return arguments
        return checked(import_class(info.data["type"], Optimizer), arguments, ("params", "lr"))

    @model_validator(mode="after")
    def _steps_once(self) -> Self:
        """Try it on a matrix: some types say what they do not take only when they are made, or step."""
        p = nn.Parameter(torch.ones(4, 3))
        p.grad = torch.full((4, 3), 0.5)
        try:
            with drawn() as generators:
                optimizer = self._make([p])
                to_training(optimizer)
                optimizer.step()
        except Exception as error:
            raise ValueError(f"{self.type}, tried on a matrix, says {type(error).__name__}: {error}") from None
        self._draws, self._modes = bool(generators), has_modes(optimizer)
        return self

    @property
    def draws(self) -> bool:
        return self._draws or (self.others is not None and self.others.draws)

    @property
    def has_modes(self) -> bool:
        return self._modes or (self.others is not None and self.others.has_modes)

    def build(self, parameters: Iterable[nn.Parameter]) -> Optimizer:
        """Make the optimizer of these parameters.

        Raises:
            JobError: on all ranks: the type does not take all of them, and there are no ``others``.
        """
        taken, left = list(parameters), list[nn.Parameter]()
        refusals = {p: refusal for p in taken if (refusal := self._refusal(p))}
        if refusals and self.others is None:
            p, refusal = next(iter(refusals.items()))
            raise JobError(
                f"[solver.optimizer] {self.type} does not take parameters of shape {tuple(p.shape)} ({refusal}): name "
                f"an optimizer for such, {OTHERS}"
            ).everywhere()
        left, taken = list(refusals), [p for p in taken if p not in refusals]
        if self.others is None or not left:
            return self._make(taken)
        others = scale_learning_rate(self.others.build(left), self.others.lr / self.lr)
        return Several([self._make(taken), others]) if taken else others

    def _make(self, parameters: Sequence[nn.Parameter]) -> Optimizer:
        found = import_class(self.type, Optimizer)
        known = takes(found)
        settings = {"lr": self.lr, **self.arguments} if "lr" in known else dict(self.arguments)
        decay = self.arguments.get("weight_decay", known["weight_decay"].default if "weight_decay" in known else 0)
        groups = decay_matrices_only(parameters, decay) if decay and parameters else parameters
        optimizer: Optimizer = found(groups, **settings)
        return optimizer

    def _refusal(self, p: nn.Parameter) -> str:
        """Why the type does not take a parameter; empty, if it does."""
        try:
            self._make([p])
        except Exception as error:
            return str(error) or type(error).__name__
        return ""
