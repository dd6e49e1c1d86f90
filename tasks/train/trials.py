"""The trials of a search, trained together: asked for in batches, judged at rungs, reported to the study, replaced.

Time is counted in epochs ("ticks"), not by the clock. A trial asked for at tick t ends its e-th epoch at tick t + e. At
each tick, every trial at a rung is judged among all that had reached that rung by then; the results of all that end are
written to the study; and only then are new trials asked for in their place, the sampler seeded by the number of the new
trial. So a search that was killed goes through the same ticks again: finished trials are not trained again, running
ones are (networks in training are not kept), and the result is the same. Where other workers share the study, their
results arrive by the clock, so the path may differ; the budget is still kept exactly.
"""

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pipeline.spec import UseCase
from tasks.common.energy import Meter
from tasks.train.study import (
    Attempt,
    Claim,
    ask_trial,
    best_loss_by,
    fail_unclaimed_trials,
    finish_trial,
    keeps_up,
    list_claims,
    print_trial,
    read_attempt,
    report_rung,
)

if TYPE_CHECKING:
    import optuna

    from adapters.connect import Outside
    from adapters.warehouse import Fence
    from models.population import Member
    from models.training import TrainingProgress
    from tasks.train.trainer import Trainer


@dataclass(kw_only=True)
class Running:
    """A trial in training."""

    claim: Claim
    trial: "optuna.trial.FrozenTrial"
    member: "Member"
    progress: "TrainingProgress"
    seconds: float = 0.0
    energy_joules: float | None = 0.0

    def attempt(self, *, pruned: bool) -> Attempt:
        """How it went, if it ends here."""
        return Attempt(
            epochs=len(self.progress.losses),
            best_epoch=self.progress.best_epoch,
            pruned=pruned,
            losses=self.progress.losses,
            seconds=self.seconds,
            energy_joules=self.energy_joules,
        )

    def charge(self, seconds: float, energy_joules: float | None) -> None:
        """Its share of what an epoch took."""
        self.seconds += seconds
        known = self.energy_joules is not None and energy_joules is not None
        self.energy_joules = (self.energy_joules or 0.0) + (energy_joules or 0.0) if known else None


@dataclass
class Search:
    """One worker's share of a study."""

    use_case: UseCase
    study: "optuna.Study"
    trainer: "Trainer"
    trials: int
    worker: int
    fence: "Fence"
    outside: "Outside"
    asked_for: int = 0  # trials of the study, by all workers, when this one last looked
    running: list[Running] = field(default_factory=list)
    ended: list[tuple[Claim, Attempt]] = field(default_factory=list)

    def run(self) -> None:
        """Tick by tick, until nothing is left to train or to ask for."""
        for claim, trial in list_claims(self.study):
            attempt = read_attempt(trial)
            if attempt is not None:
                self.ended.append((claim, attempt))
            elif claim.worker == self.worker:
                self.running.append(self._begun(claim, trial))
        tick = min((one.claim.tick for one in self.running), default=self._last_tick())
        self._fill(tick)
        while self.running:
            tick += 1
            self._train([one for one in self.running if one.claim.tick < tick])
            self._judge(tick)
            self._fill(tick)

    def _last_tick(self) -> int:
        """When the last trial of this worker ended."""
        return max((c.tick + a.epochs for c, a in self.ended if c.worker == self.worker), default=0)

    def _begun(self, claim: Claim, trial: "optuna.trial.FrozenTrial") -> Running:
        from models.training import TrainingProgress

        return Running(claim=claim, trial=trial, member=self.trainer.begin(trial.params), progress=TrainingProgress())

    def _fill(self, tick: int) -> None:
        """Ask for as many trials as there is room for, while the budget lasts; no two workers ask at a time."""
        room = self.use_case.train.trials_at_once - self._occupied(tick)
        if room <= 0 or self.asked_for >= self.trials:
            return
        with self.outside.warehouse.transaction(self.fence) as cursor:
            cursor.execute("select pg_advisory_xact_lock(hashtext('search'), hashtext(%s))", (self.study.study_name,))
            fail_unclaimed_trials(self.study)
            claimed = list_claims(self.study)
            self._load_ended_by_others(claimed)
            self.asked_for = max(len(claimed), min(self.trials, len(claimed) + room))
            for place in range(len(claimed), self.asked_for):
                claim = Claim(worker=self.worker, tick=tick, place=place)
                self.running.append(self._begun(*ask_trial(self.study, self.use_case, claim)))

    def _load_ended_by_others(self, claimed: "list[tuple[Claim, optuna.trial.FrozenTrial]]") -> None:
        others = [(claim, read_attempt(trial)) for claim, trial in claimed if claim.worker != self.worker]
        self.ended = [
            *((claim, attempt) for claim, attempt in self.ended if claim.worker == self.worker),
            *((claim, attempt) for claim, attempt in others if attempt is not None),
        ]

    def _occupied(self, tick: int) -> int:
        """How many trials of this worker are under way after a tick, those included that a dead process has ended."""
        return len(self.running) + sum(
            claim.worker == self.worker and claim.tick <= tick < claim.tick + attempt.epochs
            for claim, attempt in self.ended
        )

    def _train(self, those: list[Running]) -> None:
        began, meter = time.monotonic(), Meter(self.trainer.device.type)
        losses = self.trainer.train_epoch([one.member for one in those])
        seconds, joules = time.monotonic() - began, meter.joules()
        for one, loss in zip(those, losses, strict=True):
            one.progress.losses.append(loss)
            one.charge(seconds / len(those), None if joules is None else joules / len(those))

    def _judge(self, tick: int) -> None:
        """End the trials that are done, diverged or behind at a tick; those without a usable result count as pruned."""
        train = self.use_case.train
        ending = []
        for one in self.running:
            epoch, diverged = len(one.progress.losses), one.progress.diverged
            if epoch in train.rungs:
                report_rung(self.study, one.trial, epoch, one.progress.best_loss)
            behind = epoch in train.rungs[:-1] and not self._keeps_up(one, epoch, tick)
            done = epoch == train.rungs[-1] or one.progress.exhausted(train.patience_epochs)
            if diverged or behind or done:
                ending.append((one, diverged or behind or one.progress.best_epoch == 0))
        for one, pruned in ending:
            self._end(one, pruned=pruned)

    def _keeps_up(self, one: Running, rung: int, tick: int) -> bool:
        """Whether a trial is among the best share of those that had reached a rung by a tick."""
        there = [
            (best_loss_by(losses, rung), claim.place)
            for claim, losses in (
                *((r.claim, r.progress.losses) for r in self.running if r is not one),
                *((claim, attempt.losses) for claim, attempt in self.ended),
            )
            if len(losses) >= rung and (claim.worker != self.worker or claim.tick + rung <= tick)
        ]
        return keeps_up((one.progress.best_loss, one.claim.place), there, self.use_case.train.keep_share)

    def _end(self, one: Running, *, pruned: bool) -> None:
        """Write a trial's end to the study, under the fence: a search that was overtaken changes nothing."""
        attempt = one.attempt(pruned=pruned)
        with self.outside.warehouse.transaction(self.fence):
            finish_trial(self.study, one.trial, attempt)
        self.running.remove(one)
        self.ended.append((one.claim, attempt))
        print_trial(self.study, one.trial.number, self.trials, self.use_case.train.metric)
