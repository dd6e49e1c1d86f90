"""A winner is fitted anew on all that was known, and that is promoted, unless it agrees too little with the judged one.

Nobody can judge it: no labelled row is left that it has not learnt. So it is held to the version that was judged, its
twin, on the twin's holdout. Having learnt these rows, it must not be worse on them; and it may answer otherwise only as
far as other seeds would, or where it is better for it, for the world of the newest rows may be another. What disagrees
stays in the registry, the twin is promoted, and people are told.
"""

import math
from collections.abc import Iterator, Mapping

import numpy as np

from adapters.connect import Outside
from pipeline.handoffs import Candidate, RefittedWinner
from pipeline.spec import Gate, UseCase
from tasks.promote.bootstrap import Floats
from tasks.promote.evaluate import frozen_rows, load_holdout, score_rows
from tasks.promote.gate import seed_error
from tasks.promote.gate_checks import Scored

_MOST_SPREADS = 5.0  # as far apart as other seeds, so many times; what was seen stands in docs/decisions/0040


def refit_winner(use_case: UseCase, candidate: Candidate, outside: Outside) -> RefittedWinner:
    """Train what takes a winner's place, and hold it to the winner. A retry trains nothing, and says the same."""
    from models.ensemble import TrainingDiverged
    from tasks.train.winner import fit_winner

    version, measured = None, {}
    try:
        version = fit_winner(use_case, candidate, outside).version
    except TrainingDiverged as error:
        against = [str(error)]
    else:
        table = load_holdout(use_case, candidate, outside)
        judged, _ = score_rows(use_case, candidate.model_version, table, outside, sha256=candidate.bundle_sha256)
        refitted, _ = score_rows(use_case, version, table, outside)
        measured = measure_agreement(use_case.gate, frozen_rows(use_case, table).label, judged, refitted)
        against = list(list_disagreements(use_case.gate, measured))
    _tell(use_case, candidate, against, outside)
    return RefittedWinner(
        use_case=use_case.name,
        judged_version=candidate.model_version,
        model_version=version,
        reasons=against,
        measured=measured,
    )


def measure_agreement(gate: Gate, label: Floats, judged: Scored, refitted: Scored) -> dict[str, float | None]:
    """How a refit stands to the version that was judged, on the same rows.

    `gain` is how much better it is by the gate's metric (None: an answer is not finite), `seed_error` the standard
    error of that from having drawn these seeds; `apart` is the root mean square between their answers, and
    `apart_by_seeds` what other seeds alone would make of it (None: of one seed that is not known).
    """
    from models.metrics import compute_metric, to_loss

    if not np.isfinite(refitted.scores).all():
        return {"gain": None, "seed_error": None, "apart": None, "apart_by_seeds": None}
    before, after = (to_loss(gate.metric, compute_metric(gate.metric, m.scores, label)) for m in (judged, refitted))
    variances = [_ensemble_variance(model) for model in (judged, refitted)]
    known = [variance for variance in variances if variance is not None]
    return {
        "gain": before - after,
        "seed_error": math.hypot(*(seed_error(gate.metric, label, model.members) for model in (judged, refitted))),
        "apart": float(np.sqrt(np.mean((refitted.scores - judged.scores) ** 2))),
        "apart_by_seeds": math.sqrt(sum(known)) if len(known) == 2 else None,
    }


def _ensemble_variance(model: Scored) -> float | None:
    """How much an ensemble's answer to a row varies with its seeds, a mean over the rows; None: one is no spread."""
    if model.members is None or len(model.members) < 2:
        return None
    return float(np.mean(np.var(model.members, axis=0, ddof=1))) / len(model.members)


def list_disagreements(gate: Gate, measured: Mapping[str, float | None]) -> Iterator[str]:
    """Why a refit is not to take the place of what was judged. Pure."""
    gain, error, apart, by_seeds = (measured[n] for n in ("gain", "seed_error", "apart", "apart_by_seeds"))
    if gain is None or error is None or apart is None:
        yield "an answer of it is not finite"
        return
    tolerated = gate.min_effect + error
    if gain < -tolerated:
        yield (
            f"worse by {-gain:.5f} {gate.metric} on rows that it has learnt and the judged version has not;"
            f" {tolerated:.5f} is tolerated"
        )
    elif gain <= tolerated and by_seeds is not None and apart > _MOST_SPREADS * by_seeds:
        yield (
            f"its answers are {apart:.4f} away from the judged version's, more than {_MOST_SPREADS:g} times what other"
            f" seeds do ({by_seeds:.4f}), and {gate.metric} is no better for it ({gain:+.5f})"
        )


def _tell(use_case: UseCase, candidate: Candidate, against: list[str], outside: Outside) -> None:
    """Raise a warning about a refit that is turned down; end it with the next one that is not."""
    fingerprint = f"{use_case.name}/gate/refit-disagrees"
    if not against:
        outside.alerts.resolve(fingerprint)
        return
    outside.alerts.raise_alert(
        "warning",
        use_case.name,
        fingerprint,
        f"{use_case.title}: the refit of version {candidate.model_version} is turned down",
        f"version {candidate.model_version} is promoted as it was judged: {'; '.join(against)}",
    )
