"""How small or fast a model is to become: the one form of a budget for all stages that cut.

target: {latency: 0.5}        half of the incoming model's latency
target: {latency_ms: 5}       5 ms a batch
"""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from trainers.config import Config
from trainers.hashing import LATER

Quantity = Literal["latency", "macs", "params", "bytes"]

UNITS: dict[Quantity, str] = {
    "latency": "ms",
    "macs": "multiply-accumulates",
    "params": "parameters",
    "bytes": "bytes",
}
"""What each quantity is counted in, also where the target is a share of it."""

Share = Annotated[float | None, LATER]
"""A share that did not always exist: where it is not given, it enters no cache key."""


class Target(Config):
    """What the model that a stage returns may cost at most; exactly one entry is given."""

    latency: Share = Field(
        None, gt=0, lt=1, description="share of the incoming model's latency"
    )
    macs: Share = Field(
        None,
        gt=0,
        lt=1,
        description="share of the incoming model's multiply-accumulates",
    )
    params: Share = Field(
        None, gt=0, lt=1, description="share of the incoming model's parameters"
    )
    bytes: Share = Field(
        None,
        gt=0,
        lt=1,
        description="share of the bytes of the incoming model's parameters and buffers",
    )
    latency_ms: Share = Field(
        None, gt=0, description="latency of one batch in ms, whatever came in"
    )

    @model_validator(mode="after")
    def _exactly_one(self) -> "Target":
        given = self._given()
        if len(given) != 1:
            got = ", ".join(given) or "none"
            raise ValueError(
                f"exactly one of {', '.join(type(self).model_fields)} is set; got {got};"
                " write one, such as {latency: 0.5}"
            )
        return self

    def _given(self) -> dict[str, float]:
        return {
            name: value
            for name in type(self).model_fields
            if (value := getattr(self, name)) is not None
        }

    @property
    def value(self) -> float:
        """The number that is given: a share, or milliseconds."""
        return next(iter(self._given().values()))

    @property
    def is_share(self) -> bool:
        """Whether it is a share of the incoming model's cost."""
        return self.latency_ms is None

    @property
    def quantity(self) -> Quantity:
        """What is limited."""
        names: tuple[Quantity, ...] = ("macs", "params", "bytes")
        return next((n for n in names if getattr(self, n) is not None), "latency")

    def limit(self, incoming: float) -> float:
        """What the result may cost at most.

        Args:
            incoming: cost of the incoming model, in `UNITS[self.quantity]`.
        """
        return self.value * incoming if self.is_share else self.value

    def describe(self) -> str:
        """It in words: "0.5 of the incoming model's latency", "5 ms a batch"."""
        if self.is_share:
            return f"{self.value:g} of the incoming model's {self.quantity}"
        return f"{self.value:g} ms a batch"
