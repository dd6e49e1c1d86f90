"""Trials and what they add up to: the search space, the halving rule, and the Optuna study that remembers them."""

import json
import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from pipeline.spec import Train, UseCase

if TYPE_CHECKING:
    import optuna

    from adapters.connect import Outside

_ATTEMPT = "attempt"  # the name under which a trial keeps how it went


@dataclass(frozen=True, kw_only=True)
class StudyResult:
    """What the search found: the best configuration, its validation metric and the epoch it was reached at."""

    study_name: str
    best_params: dict[str, float]
    best_value: float
    best_epochs: int
    trials: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """How one trial went: validation losses per epoch (None: not finite), and the epoch (from 1) with the best."""

    epochs: int
    best_epoch: int
    pruned: bool
    losses: list[float | None]
    seconds: float


def suggest(trial: "optuna.Trial", train: Train) -> dict[str, float]:
    """A point of the search space."""

    def between(name: str, bounds: tuple[float, float]) -> float:
        return float(trial.suggest_float(name, *bounds, log=bounds[0] > 0))

    return {
        "hidden_units": trial.suggest_categorical("hidden_units", list(train.hidden_units)),
        "layers": trial.suggest_categorical("layers", list(train.layers)),
        "dropout": float(trial.suggest_float("dropout", *train.dropout)),
        "learning_rate": between("learning_rate", train.learning_rate),
        "weight_decay": between("weight_decay", train.weight_decay),
    }


def middle(train: Train) -> dict[str, float]:
    """The first trial: the middle of every range, so that even a search of one is sensible."""

    def mean(low: float, high: float) -> float:
        return math.sqrt(low * high) if low > 0 else (low + high) / 2

    return {
        "hidden_units": train.hidden_units[len(train.hidden_units) // 2],
        "layers": train.layers[len(train.layers) // 2],
        "dropout": sum(train.dropout) / 2,
        "learning_rate": mean(*train.learning_rate),
        "weight_decay": mean(*train.weight_decay),
    }


def keeps_up(loss: float, earlier: list[float], keep_share: float) -> bool:
    """Asynchronous halving: whether a loss is among the best share of all that reached the same rung so far."""
    rank = sum(other <= loss for other in earlier)
    return math.isfinite(loss) and rank < max(1, round(keep_share * (len(earlier) + 1)))


def open_study(name: str, use_case: UseCase, outside: "Outside") -> "optuna.Study":
    """The study of this name in Postgres, made when there is none. Its objective is a loss: smaller is better."""
    import optuna
    from psycopg2.extensions import parse_dsn
    from sqlalchemy import URL

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    dsn = parse_dsn(outside.settings.studies_dsn)
    url = URL.create(
        "postgresql+psycopg2",
        username=dsn.get("user"),
        password=dsn.get("password"),
        host=dsn.get("host"),
        port=int(dsn["port"]) if "port" in dsn else None,
        database=dsn["dbname"],
    )
    storage = optuna.storages.RDBStorage(
        url.render_as_string(hide_password=False),
        engine_kwargs={"pool_pre_ping": True, "pool_size": 2, "connect_args": {"connect_timeout": 10}},
    )
    study = optuna.create_study(study_name=name, storage=storage, load_if_exists=True)
    study.set_user_attr("metric", use_case.train.metric)
    return study


def finished_trials(study: "optuna.Study") -> "list[optuna.trial.FrozenTrial]":
    """The trials that count against the budget: complete or pruned, in order."""
    from optuna.trial import TrialState

    return study.get_trials(deepcopy=False, states=[TrialState.COMPLETE, TrialState.PRUNED])  # type: ignore[no-any-return]


def fail_abandoned(study: "optuna.Study") -> None:
    """Mark what a dead process left running as failed: it counts for nothing, and the sampler does not see it."""
    from optuna.trial import TrialState

    for trial in study.get_trials(deepcopy=False, states=[TrialState.RUNNING]):
        study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)


def record(study: "optuna.Study", trial: "optuna.Trial", attempt: Attempt) -> None:
    """Finish a trial, complete or pruned."""
    from optuna.trial import TrialState

    trial.set_user_attr(_ATTEMPT, asdict(attempt))
    loss = attempt.losses[attempt.best_epoch - 1] if attempt.best_epoch else None
    if attempt.pruned:
        study.tell(trial, state=TrialState.PRUNED)
    else:
        study.tell(trial, loss)


def losses_at(study: "optuna.Study", rung: int) -> list[float]:
    """The losses of the finished trials that reached a rung."""
    return [t.intermediate_values[rung] for t in finished_trials(study) if rung in t.intermediate_values]


def trial_table(study: "optuna.Study") -> list[dict[str, Any]]:
    """What was tried and how it went, one entry a finished trial, as JSON values."""
    return [
        {"trial": i, "state": t.state.name, "params": t.params, **t.user_attrs[_ATTEMPT]}
        for i, t in enumerate(finished_trials(study), start=1)
    ]


def _best_loss(entry: dict[str, Any]) -> float:
    return float(entry["losses"][entry["best_epoch"] - 1]) if entry["best_epoch"] else math.inf


def report(study: "optuna.Study", trials: int, metric: str) -> None:
    """Print how the last trial went."""
    *_, last = trial_table(study)
    best = _best_loss(last)
    print(
        f"trial {last['trial']}/{trials} {last['state'].lower():8} {metric} {abs(best):.4f} at epoch "
        f"{last['best_epoch']} of {last['epochs']}, {last['seconds']:.1f} s  {json.dumps(last['params'])}",
        flush=True,
    )


def result(study: "optuna.Study") -> StudyResult:
    """The best complete trial of a study; the earliest of equals."""
    from models.metrics import higher_is_better

    table = trial_table(study)
    complete = [entry for entry in table if entry["state"] == "COMPLETE"]
    if not complete:
        raise ValueError(f"{study.study_name}: none of {len(table)} trials converged; lower train.learning_rate")
    best = min(complete, key=_best_loss)
    loss = _best_loss(best)
    return StudyResult(
        study_name=study.study_name,
        best_params=best["params"],
        best_value=-loss if higher_is_better(study.user_attrs["metric"]) else loss,
        best_epochs=best["best_epoch"],
        trials=len(table),
        seconds=sum(entry["seconds"] for entry in table),
    )
