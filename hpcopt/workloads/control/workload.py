"""Reinforcement learning: an agent acts in environments of gymnasium, and is to earn as much as it can.

Environment e of all begins its n-th episode by a seed that is derived from the run's seed, n and e, whoever runs it:
what is collected depends on the actions alone, not on the number of ranks. Evaluation is by episodes of fixed seeds,
the same at every evaluation.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Annotated, ClassVar, Literal, NoReturn, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from hpcopt.errors import JobError
from hpcopt.families import BODIES, FEATURES
from hpcopt.models.control.agent import Agent
from hpcopt.models.control.body import BodyConfig
from hpcopt.models.control.features import FeatureConfig, NoFeaturesConfig
from hpcopt.models.control.perceptrons import MlpBodyConfig
from hpcopt.randomness import drawn_by
from hpcopt.seeds import EVERY_RANK, derive
from hpcopt.shapes.batch import TensorBatch
from hpcopt.shapes.context import Context
from hpcopt.shapes.simulation import Simulation
from hpcopt.shapes.workload import Better, Workload, WorkloadConfig
from hpcopt.workloads.control.apart import Apart
from hpcopt.workloads.control.episodes import Episodes
from hpcopt.workloads.control.evaluation import Evaluation
from hpcopt.workloads.control.maker import EnvironmentConfig, Maker
from hpcopt.workloads.control.simulator import Replaceable

RETURN = "evaluation_return"


class ControlConfig(WorkloadConfig, EnvironmentConfig):
    """Environments of gymnasium, an agent, and its return."""

    may_change: ClassVar[frozenset[str]] = frozenset(
        {
            "batch",
            "test",
            "max_episode_steps",
            "actor",
            "critic",
            "features",
            "where",
            "lost",
            "rewrites",
            "precision",
            "compile",
        }
    )

    name: Literal["control"] = "control"
    batch: int = Field(1, ge=1, description="steps of environments in one step of the run, over all ranks")
    environments: int = Field(1, ge=1, description="that are stepped together, over all ranks; batch is a multiple")
    where: Literal["rank", "process"] = Field(
        "rank", description="environments run in their rank, or in a process beside it, which may be lost"
    )
    lost: Literal["end", "restart"] = Field(
        "end", description="what follows when a process of environments is lost: the job ends, or new episodes begin"
    )
    test: int = Field(10, ge=1, description="episodes of an evaluation, with seeds of their own")
    features: Annotated[FeatureConfig, FEATURES] = Field(
        NoFeaturesConfig(), description="what actor and critics take observations and actions as"
    )
    actor: Annotated[BodyConfig, BODIES] = Field(MlpBodyConfig(), description="the actor's network, without its head")
    critic: Annotated[BodyConfig, BODIES] = Field(MlpBodyConfig(), description="each critic's network")

    @model_validator(mode="after")
    def _batch_is_whole_rounds(self) -> Self:
        if self.batch % self.environments:
            raise ValueError(f"batch = {self.batch} is no multiple of environments = {self.environments}")
        return self

    def build(self, context: Context) -> "Control":
        """Make the agent; environments are made when they are asked for.

        Raises:
            JobError: there is no such environment, its observations or actions are no vectors, or a network does not
            suit them.
        """
        return Control(self, context)


class Control(Workload):
    """The workload.

    Score: ``evaluation_return``, the mean of the evaluation episodes' undiscounted returns.

    Attributes:
        returns: of the latest evaluation's episodes, (test,), float64, once there was one.
    """

    train_samples = None

    def __init__(self, config: ControlConfig, context: Context) -> None:
        self._config, self._seed = config, context.run_seed
        self.batch, self.test_samples = config.batch, config.test
        self.scores: Mapping[str, Better] = {RETURN: "higher"}
        self.maker = Maker(config)
        self.layout = self.maker.layout
        self.returns = np.full(config.test, np.nan)
        self._evaluation: Evaluation | None = None
        with drawn_by(context.seed("agent")):
            try:
                self.model: nn.Module = Agent(
                    self.layout.observations, self.layout.actions, config.features, config.actor, config.critic
                )
            except ValueError as cause:
                raise JobError(f"[workload] features, actor or critic: {cause}") from cause

    def evaluation_seed(self, number: int) -> int:
        """Of an evaluation episode, by its number."""
        return derive(self._seed, number, EVERY_RANK, "evaluation") % 2**31

    def simulation(self) -> Simulation:
        """The environments to train in."""
        return Simulation(self._config.environments, self.batch, self.layout, self._open)

    def _open(self, numbers: Sequence[int]) -> Episodes:
        return Episodes(self._simulators(len(numbers)), numbers, self.layout, self._seed)

    def _simulators(self, count: int) -> Replaceable:
        """Of so many environments, where the job wants them."""
        make = partial(Apart, self.maker, count) if self._config.where == "process" else partial(self.maker.here, count)
        return Replaceable(make, self.maker.name, restart=self._config.lost == "restart")

    def train_batches(self, rank: int, size: int, start: int) -> Iterator[NoReturn]:
        """There are none: raises JobError, on all ranks, when the first is asked for."""
        raise JobError(
            'the data of [workload] name = "control" come of acting: [solver] name = "actor_critic" does that'
        ).everywhere()
        yield

    def test_batches(self, rank: int, size: int) -> Iterator[TensorBatch]:
        """This rank's episodes, yet to be acted: their numbers, and what is observed ``first``, (n, observations)."""
        numbers = np.array_split(np.arange(self.test_samples), size)[rank]
        if len(numbers):
            first = self._evaluated(len(numbers)).first(numbers.tolist())
            yield TensorBatch({"first": torch.from_numpy(first)}, torch.from_numpy(numbers), self.test_samples)

    def loss(self, model: nn.Module, batch: TensorBatch) -> Tensor:
        """Minus what the critics expect of the policy's first actions: what an actor minimises, on a few states."""
        assert isinstance(model, Agent)
        z_s = model.features.observe(batch.tensors["first"])
        values: Tensor = model.critics(model.features.act(z_s, model.policy(z_s)[0].tanh()))
        return -values.mean()

    @torch.no_grad()
    def score(self, model: nn.Module, batch: TensorBatch) -> dict[str, Tensor]:
        """Act in the episodes by what the policy thinks best, without exploring. Each episode's return has a place of
        its own among the sums.
        """
        device, returns = batch.tensors["first"].device, np.zeros(self.test_samples)

        def act(observed: np.ndarray) -> np.ndarray:
            actions: np.ndarray = model(torch.from_numpy(observed).to(device)).cpu().numpy()
            return actions

        numbers = batch.indices.tolist()
        returns[numbers] = self._evaluated(len(numbers)).returns(numbers, act)
        return {RETURN: torch.from_numpy(returns)}

    def finish(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        self.returns = sums[RETURN].numpy()
        return {RETURN: float(self.returns.mean())}

    def _evaluated(self, count: int) -> Evaluation:
        """So many environments to evaluate in, or more."""
        if self._evaluation is None or self._evaluation.count < count:
            if self._evaluation is not None:
                self._evaluation.close()
            self._evaluation = Evaluation(self._simulators(count), count, self.evaluation_seed)
        return self._evaluation
