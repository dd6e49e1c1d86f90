"""Trials and what they add up to: the search space, the halving rule, and the Optuna study that remembers them."""

import json
import math
from dataclasses import asdict, dataclass
from typing import Any

import optuna
from optuna.trial import FrozenTrial, Trial, TrialState

from adapters.connect import Outside
from pipeline.spec import UseCase
from pipeline.training import Train

Params = dict[str, Any]  # numbers, and the network's name
_ATTEMPT = "attempt"  # the name under which a trial keeps how it went
_CLAIM = "claim"  # and who asked for it
_WARM_UP_TRIALS = 4  # drawn at random before the sampler has something to learn from


@dataclass(frozen=True, kw_only=True)
class StudyResult:
    """What the search found: the best configuration, its validation metric and the epoch it was reached at."""

    study_name: str
    best_params: Params
    best_value: float
    best_epochs: int
    trials: int
    seconds: float
    energy_joules: float | None  # None: this machine has no readable energy counter


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """How one trial went: validation losses per epoch (None: not finite), and the epoch (from 1) with the best."""

    epochs: int
    best_epoch: int
    pruned: bool
    losses: list[float | None]
    seconds: float
    energy_joules: float | None


@dataclass(frozen=True, kw_only=True)
class Claim:
    """Which worker asked for a trial, after how many epochs of its own search, and its number in the study, from 0."""

    worker: int
    tick: int
    place: int


def suggest_params(trial: Trial, train: Train) -> Params:
    """A point of the search space."""

    def between(name: str, bounds: tuple[float, float]) -> float:
        return float(trial.suggest_float(name, *bounds, log=bounds[0] > 0))

    return {
        "network": trial.suggest_categorical("network", list(train.networks)),
        "hidden_units": trial.suggest_categorical("hidden_units", list(train.hidden_units)),
        "layers": trial.suggest_categorical("layers", list(train.layers)),
        "dropout": float(trial.suggest_float("dropout", *train.dropout)),
        "learning_rate": between("learning_rate", train.learning_rate),
        "weight_decay": between("weight_decay", train.weight_decay),
        "label_smoothing": float(trial.suggest_float("label_smoothing", *train.label_smoothing)),
    }


def middle_params(train: Train) -> Params:
    """The first trial: the middle of every range, so that even a search of one is sensible."""

    def mean(low: float, high: float) -> float:
        return math.sqrt(low * high) if low > 0 else (low + high) / 2

    return {
        "network": train.networks[len(train.networks) // 2],
        "hidden_units": train.hidden_units[len(train.hidden_units) // 2],
        "layers": train.layers[len(train.layers) // 2],
        "dropout": sum(train.dropout) / 2,
        "learning_rate": mean(*train.learning_rate),
        "weight_decay": mean(*train.weight_decay),
        "label_smoothing": sum(train.label_smoothing) / 2,
    }


def best_loss_by(losses: list[float | None], epochs: int) -> float:
    """The best loss after that many epochs; infinite if there was none by then."""
    return min((loss for loss in losses[:epochs] if loss is not None), default=math.inf)


def keeps_up(own: tuple[float, int], others: list[tuple[float, int]], keep_share: float) -> bool:
    """Halving: whether a (loss, trial's place) is among the best share of all that reached the same rung so far."""
    return math.isfinite(own[0]) and sum(other < own for other in others) < max(
        1, round(keep_share * (len(others) + 1))
    )


def open_study(name: str, use_case: UseCase, outside: Outside) -> optuna.Study:
    """The study of this name in Postgres, made when there is none. Its objective is a loss: smaller is better."""
    study = optuna.create_study(study_name=name, storage=_open_storage(outside), load_if_exists=True)
    study.set_user_attr("metric", use_case.train.metric)
    return study


def _open_storage(outside: Outside) -> optuna.storages.RDBStorage:
    from psycopg2.extensions import parse_dsn
    from sqlalchemy import URL

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    dsn = parse_dsn(outside.settings.studies_dsn)
    return optuna.storages.RDBStorage(
        URL.create(
            "postgresql+psycopg2",
            username=dsn.get("user"),
            password=dsn.get("password"),
            host=dsn.get("host"),
            port=int(dsn["port"]) if "port" in dsn else None,
            database=dsn["dbname"],
        ).render_as_string(hide_password=False),
        engine_kwargs={"pool_pre_ping": True, "pool_size": 2, "connect_args": {"connect_timeout": 10}},
    )


def list_finished_trials(study: optuna.Study) -> list[FrozenTrial]:
    """The trials that count against the budget: complete or pruned, in order."""
    return study.get_trials(deepcopy=False, states=[TrialState.COMPLETE, TrialState.PRUNED])  # type: ignore[no-any-return]


def list_claims(study: optuna.Study) -> list[tuple[Claim, FrozenTrial]]:
    """The trials that count against the budget, finished or not, each with who asked for it and when."""
    return [
        (Claim(**trial.user_attrs[_CLAIM]), trial)
        for trial in study.get_trials(
            deepcopy=False, states=[TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING]
        )
        if _CLAIM in trial.user_attrs
    ]


def fail_unclaimed_trials(study: optuna.Study) -> None:
    """Mark as failed the trials of processes that died while asking. The caller holds the lock under which all ask."""
    for trial in study.get_trials(deepcopy=False, states=[TrialState.RUNNING]):
        if _CLAIM not in trial.user_attrs:
            study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)


def ask_trial(study: optuna.Study, use_case: UseCase, claim: Claim) -> tuple[Claim, FrozenTrial]:
    """One more trial. Its parameters follow from its place and the finished trials; running trials do not count."""
    study.sampler = optuna.samplers.TPESampler(
        seed=(use_case.seed * 1009 + claim.place) % 2**32,
        n_startup_trials=_WARM_UP_TRIALS,
        multivariate=True,
        constant_liar=False,
    )
    if claim.place == 0 and not study.get_trials(deepcopy=False, states=[TrialState.WAITING]):
        study.enqueue_trial(middle_params(use_case.train))
    trial = study.ask()
    suggest_params(trial, use_case.train)
    trial.set_user_attr(_CLAIM, asdict(claim))  # last: a trial without a claim does not count
    return claim, study.get_trials(deepcopy=False)[trial.number]


def report_rung(study: optuna.Study, trial: FrozenTrial, rung: int, loss: float) -> None:
    """Record in the study, once, the best loss that a running trial had at a rung."""
    if math.isfinite(loss) and rung not in trial.intermediate_values:
        Trial(study, trial._trial_id).report(loss, rung)  # noqa: SLF001 (a trial begun by a dead process)


def finish_trial(study: optuna.Study, trial: FrozenTrial, attempt: Attempt) -> None:
    """Finish a trial, complete or pruned."""
    Trial(study, trial._trial_id).set_user_attr(_ATTEMPT, asdict(attempt))  # noqa: SLF001 (as above)
    if attempt.pruned:
        study.tell(trial.number, state=TrialState.PRUNED)
    else:
        study.tell(trial.number, attempt.losses[attempt.best_epoch - 1])


def read_attempt(trial: FrozenTrial) -> Attempt | None:
    """How a finished trial went; None while it runs."""
    return Attempt(**trial.user_attrs[_ATTEMPT]) if trial.state.is_finished() else None


def tabulate_trials(study: optuna.Study) -> list[dict[str, Any]]:
    """What was tried and how it went, one entry a finished trial, as JSON values."""
    return [
        {"trial": i, "state": t.state.name, "params": t.params, **t.user_attrs[_ATTEMPT]}
        for i, t in enumerate(list_finished_trials(study), start=1)
    ]


def _best_loss(entry: dict[str, Any]) -> float:
    return float(entry["losses"][entry["best_epoch"] - 1]) if entry["best_epoch"] else math.inf


def print_trial(study: optuna.Study, number: int, trials: int, metric: str) -> None:
    """Print how a trial went that has just finished."""
    table = tabulate_trials(study)
    entry = table[[trial.number for trial in list_finished_trials(study)].index(number)]
    print(
        f"trial {len(table)}/{trials} {entry['state'].lower():8} {metric} {abs(_best_loss(entry)):.4f} at epoch "
        f"{entry['best_epoch']} of {entry['epochs']}, {entry['seconds']:.1f} s  {json.dumps(entry['params'])}",
        flush=True,
    )


def summarise_study(study: optuna.Study) -> StudyResult:
    """The best complete trial of a study; the earliest of equals."""
    from models.metrics import METRICS

    table = tabulate_trials(study)
    complete = [entry for entry in table if entry["state"] == "COMPLETE"]
    if not complete:
        raise ValueError(f"{study.study_name}: none of {len(table)} trials converged; lower train.learning_rate")
    best = min(complete, key=_best_loss)
    loss = _best_loss(best)
    return StudyResult(
        study_name=study.study_name,
        best_params=best["params"],
        best_value=-loss if METRICS[study.user_attrs["metric"]].is_ranking else loss,
        best_epochs=best["best_epoch"],
        trials=len(table),
        seconds=sum(entry["seconds"] for entry in table),
        energy_joules=_total([entry["energy_joules"] for entry in table]),
    )


def _total(energies: list[float | None]) -> float | None:
    """None if any is not known: half a sum would look like the whole."""
    known = [each for each in energies if each is not None]
    return sum(known) if len(known) == len(energies) else None
