"""The settings of the preconditioner: the same for a person's own loop and for a job."""

import re
from typing import Annotated, Literal

import torch
from pydantic import BeforeValidator, Field, model_validator

from hpcopt.config import Config
from hpcopt.solvers.kaisa.kinds import KINDS
from hpcopt.solvers.kaisa.kl_shampoo import KlShampooSettings
from hpcopt.solvers.kaisa.layers.layer import Options
from hpcopt.solvers.kaisa.muon import MuonSettings
from hpcopt.solvers.kaisa.newton_muon import NewtonMuonSettings
from hpcopt.solvers.kaisa.shampoo import ShampooSettings
from hpcopt.solvers.kaisa.soap import SoapSettings

UNITS = {"": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


def parse_bytes(text: object) -> object:
    """Turn "1.5GiB" into a number of bytes; leave what is no string."""
    if not isinstance(text, str):
        return text
    match = re.fullmatch(r"\s*([0-9.]+)\s*([A-Za-z]*)\s*", text)
    if not match or match[2] not in UNITS:
        raise ValueError(f'{text!r} is no amount of memory: write a number and one of {", ".join(UNITS)}, as in "2GiB"')
    return int(min(float(match[1]) * UNITS[match[2]], 1e300))  # infinity would be no integer


DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
MOVING = ("damping", "factor_every", "inverse_every")
DtypeName = Literal["float32", "bfloat16"]
MethodName = Literal["cholesky", "low_rank", "eigen", "ekfac", "muon", "newton_muon", "soap", "shampoo", "kl_shampoo"]
KFAC = ("cholesky", "low_rank", "eigen", "ekfac")


class KaisaSettings(Config):
    """What is computed of layers, how often, and how it is spread over the ranks."""

    damping: float = Field(0.03, gt=0, description="added to the curvature; in units of the loss's own")
    damping_of: Literal["loss", "layer"] = Field(
        "loss", description="layer: damping is over each layer's mean curvature; with cholesky and low_rank"
    )
    damping_final: float | None = Field(None, gt=0, description="damping at the run's end, reached geometrically")
    damping_every: int = Field(
        0, ge=0, description="steps from one Levenberg-Marquardt adaptation of the damping to the next; 0: none"
    )
    damping_decay: float = Field(0.95, gt=0, lt=1, description="most that adaptation changes the damping by in a step")
    damping_min: float = Field(1e-8, gt=0, description="least that adaptation goes down to")
    damping_max: float = Field(1e4, gt=0, description="most that it goes up to")
    factor_decay: float = Field(0.95, ge=0, lt=1, description="of the factors' running averages")
    factor_every: int = Field(10, ge=1, description="steps from one refresh of the factors to the next")
    inverse_every: int = Field(100, ge=1, description="steps from one refresh of the inverses to the next")
    factor_every_final: int | None = Field(None, ge=1, description="factor_every at the run's end, as damping_final")
    inverse_every_final: int | None = Field(None, ge=1, description="inverse_every at the run's end")
    kl_clip: float | None = Field(1e-3, gt=0, description="largest lr^2 <P, gradient> of a step; off: no clipping")
    graft: bool | None = Field(
        None, description="give each layer's preconditioned gradient the norm of its gradient; shampoo's unless false"
    )
    method: MethodName | Literal["auto"] = Field(
        "cholesky",
        description="cholesky, low_rank, eigen or ekfac: K-FAC, by how factors are inverted; muon, newton_muon, soap, "
        "shampoo or kl_shampoo; auto: muon of inner matrices in models with an embedding, newton_muon in those with "
        "convolutions, else low_rank of linear maps and cholesky of all else, or muon with inverse_dtype = bfloat16",
    )
    methods: dict[str, MethodName] = Field(
        {}, description="others, by patterns of names or classes of modules; the first that is found in them holds"
    )
    heads: dict[str, Annotated[int, Field(ge=1)]] = Field(
        {},
        description="by patterns, as of methods: equal parts of a weight's rows that are a matrix each, as those of "
        "attention's heads; with muon, soap, shampoo and kl_shampoo",
    )
    muon: MuonSettings = Field(MuonSettings(), description="of the method muon")
    newton_muon: NewtonMuonSettings = Field(NewtonMuonSettings(), description="of the method newton_muon")
    soap: SoapSettings = Field(SoapSettings(), description="of the method soap")
    shampoo: ShampooSettings = Field(ShampooSettings(), description="of the method shampoo")
    kl_shampoo: KlShampooSettings = Field(KlShampooSettings(), description="of the method kl_shampoo")
    rank: int = Field(64, ge=1, description="with low_rank: leading eigenvectors kept of a factor")
    fisher: Literal["empirical", "sampled"] = Field("empirical", description="gradients of true or of sampled targets")
    sharing: Literal["expand", "reduce"] = Field("expand", description="whether a sequence's positions are rows")
    skip: tuple[str, ...] = Field((), description="patterns of names or classes of modules to leave out")
    max_size: int = Field(2048, ge=1, description="factors with more rows are large")
    large: Literal["diagonal", "blocked"] = Field("diagonal", description="what is kept of large factors")
    batch_every: int = Field(1, ge=1, description="statistics look at every so manieth sample")
    position_every: int = Field(1, ge=1, description="and every so manieth token, or pixel in each direction")
    batch_dim: int = Field(0, ge=0, description="the dimension of layers' inputs that counts samples")
    fraction: float = Field(1.0, gt=0, le=1, description="of the ranks that keep each layer's inverses")
    memory_budget: Annotated[int | None, BeforeValidator(parse_bytes)] = Field(
        None, gt=0, description='most bytes of state a rank may keep, as in "2GiB"; picks the fraction'
    )
    factor_dtype: DtypeName = Field(
        "float32", description="factors are kept in; bfloat16 also lets their products round to it where that is quick"
    )
    tf32: bool = Field(
        False, description="on a GPU, let products of statistics round to TF32; they are float32's however torch is set"
    )
    inverse_dtype: DtypeName = Field("float32", description="inverses are kept, and multiplied, in")
    wire_dtype: DtypeName = Field("float32", description="factors travel in")
    refresh_tolerance: float = Field(0.0, ge=0, description="relative change below which a layer is not inverted again")
    inverse_lag: int = Field(0, ge=0, description="steps that inverses may be computed in the background")
    flops: float = Field(5e10, gt=0, description="a rank's operations a second: for the placement and for --dry-run")
    bandwidth: float = Field(1e9, gt=0, description="bytes a second that a rank sends: likewise")

    @model_validator(mode="after")
    def _one_law_of_damping(self) -> "KaisaSettings":
        if self.damping_every and self.damping_final is not None:
            raise ValueError("damping follows either damping_every or damping_final, not both")
        return self

    @model_validator(mode="after")
    def _eigenvectors_are_float32(self) -> "KaisaSettings":
        for name in self.method_names():
            if name in ("eigen", "ekfac", "soap") and self.inverse_dtype != "float32":
                raise ValueError(
                    f'method = "{name}" keeps eigenvectors, in float32: leave inverse_dtype, or use cholesky'
                )
        return self

    @model_validator(mode="after")
    def _methods_go_together(self) -> "KaisaSettings":
        for setting, patterns in (("methods", self.methods), ("heads", self.heads)):
            for pattern in patterns:
                try:
                    re.compile(pattern)
                except re.error as error:
                    raise ValueError(f"{setting}: {pattern!r} is no pattern: {error}") from None
        names = self.method_names()
        if "ekfac" in names and len(names) > 1:
            raise ValueError('method = "ekfac" looks at every layer\'s samples and stands alone: use eigen')
        others = [name for name in names if name not in KFAC]
        undamped = [name for name in names if name in ("eigen", "ekfac")]
        if self.damping_of == "layer" and (undamped or self.damping_every):
            what = f'method = "{undamped[0]}"' if undamped else "damping_every"
            raise ValueError(f'damping_of = "layer" goes with cholesky and low_rank, not with {what}')
        if self.damping_every and others:
            raise ValueError(f"damping_every measures K-FAC's model of the loss, which {others[0]} has none of")
        return self

    def method_names(self) -> list[MethodName]:
        """All that are named, each once."""
        first = KINDS if self.method == "auto" else (self.method,)
        return list(dict.fromkeys([*first, *self.methods.values()]))

    def options(self) -> Options:
        """Those of the statistics."""
        every, narrow = (self.batch_every, self.position_every), self.factor_dtype == "bfloat16"
        return Options(self.sharing, self.max_size, self.large, *every, self.batch_dim, narrow)

    def inverses(self, damping: float) -> tuple[object, ...]:
        """What inverses depend on beside the factors, where the damping in use is this."""
        names = self.method_names()
        damped = not {"cholesky", "low_rank"}.isdisjoint(names)  # others add it when they are applied
        own = {
            "low_rank": self.rank,
            "shampoo": self.shampoo,
            "newton_muon": self.newton_muon.damping,
            "kl_shampoo": self.kl_shampoo,
        }
        of_use = [own[name] for name in own if name in names]
        return self.method, self.methods, of_use, (damping, self.damping_of) if damped else None

    def moving(self, name: str) -> tuple[object, ...]:
        """What decides where ``name``, one of those in use that may move in a run, starts and goes."""
        adapts = name == "damping" and self.damping_every > 0
        return getattr(self, name), getattr(self, f"{name}_final"), adapts

    def scheduled(self, done: float) -> dict[str, float]:
        """The settings that have a ``_final``, when a run is ``done``, of 1: each goes there geometrically."""
        values: dict[str, float] = {}
        for name in MOVING:
            first, final = getattr(self, name), getattr(self, f"{name}_final")
            if final is not None:
                value = float(first * (final / first) ** done)
                values[name] = value if name == "damping" else round(value)
        return values
