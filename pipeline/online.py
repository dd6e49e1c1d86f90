"""The blocks of params.yaml about answering online: the endpoint, how a version is let in, and experiments."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Annotated, Literal

from pydantic import Field

from pipeline.fields import Block, Share
from pipeline.settings import WEBHOOK_PREFIX

SmallShare = Annotated[float, Field(gt=0, le=0.5)]
WebhookVariable = Annotated[str, Field(pattern=rf"^{WEBHOOK_PREFIX}[A-Z0-9_]+$")]


class Costs(Block):
    """What a wrong decision costs, in any one unit; a binary target is answered `true` where that is cheaper."""

    missed: float = Field(gt=0)
    needless: float = Field(gt=0)

    @property
    def threshold(self) -> float:
        """The probability from which a warning costs less than silence: p * missed > (1 - p) * needless."""
        return self.needless / (self.missed + self.needless)


class Rollout(Block):
    """How a version comes to answer everyone: mirrored requests first, then a share of the real ones, then all."""

    golden_rows: int = Field(ge=32)
    tolerance: float = Field(gt=0)  # largest |online - batch| of a score
    max_p99_ms: float = Field(gt=0)  # through the gateway, for one event a request
    max_error_share: Share
    shadow_requests: int = Field(gt=0)
    canary_share: SmallShare
    canary_requests: int = Field(gt=0)  # answered by the new version
    hold_minutes: float = Field(gt=0)  # without that many requests by then, the old version stays


class WebhookSettings(Block):
    """Where answers are sent as they are given. Address and secret are in the environment, which these names say."""

    url_env: WebhookVariable
    secret_env: WebhookVariable  # several secrets, separated by spaces, while one takes the place of another
    max_answers: int = Field(gt=0, le=1000)  # in one request
    timeout_seconds: float = Field(gt=0, le=60)  # a receiver that takes longer is tried again

    def _contradictions(self) -> Iterator[str]:
        if self.url_env == self.secret_env:
            yield f"secret_env: expected another variable than url_env, got {self.secret_env}"


class AnswerSettings(Block):
    """Events are answered by themselves once their prediction time has passed: in time, if before the event and within
    so many minutes."""

    within_minutes: int = Field(gt=0)
    webhook: WebhookSettings | None  # null: answers are in the warehouse, and are sent nowhere

    @property
    def budget(self) -> timedelta:
        """So long after its prediction time an answer is in time."""
        return timedelta(minutes=self.within_minutes)


class EndpointSettings(Block):
    """An online server: how it batches, how old its features may be, and how a version is let in."""

    batch_size: int = Field(gt=0)
    max_batch_delay_ms: int = Field(ge=0)
    workers: int = Field(gt=0)
    max_events: int = Field(gt=0)  # in one request
    store_timeout_ms: int = Field(gt=0)  # after this the answer does without history, flagged
    max_feature_age_hours: float = Field(gt=0)  # older history still answers, flagged
    costs: Costs | None
    answers: AnswerSettings | None  # null: who wants an answer asks for it
    rollout: Rollout


class ExperimentSettings(Block):
    """Two versions under a declared comparison of what their decisions cost; looked at as often as one likes."""

    mode: Literal["fixed", "thompson"]
    share: SmallShare  # of the candidate; where a Thompson-sampling experiment starts
    alpha: Annotated[float, Field(gt=0, lt=0.5)]  # how often a null may be called a difference, at any time
    min_effect: float = Field(ge=0)  # cost per event below which a difference does not matter
    min_events: int = Field(gt=0)  # with a known outcome, per version, before anything is called
    max_events: int = Field(gt=0)  # of the candidate at its declared share; then it ends undecided
    max_harm: float = Field(gt=0)  # guardrail: extra cost per event at which a candidate is stopped
    max_error_share: Share  # guardrail
    max_degraded_share: Share  # guardrail, of all answers: above the share that is degraded on any good day

    def _contradictions(self) -> Iterator[str]:
        if self.max_events <= self.min_events:
            yield f"max_events: expected more than min_events ({self.min_events}), got {self.max_events}"
