#!/usr/bin/env bash
# A pruned trial has its last reported value, but none at all where that one was NaN: what it reached before is lost.
#
# Versions: optuna==5.0.0, Python 3.11
# Expected: a trial that was pruned after 3.0, 1.0, NaN counts with 1.0, its last finite value, or is marked as failed.
# Behaviour: its value is None and its state stays PRUNED, so a table of trials by value leaves out one that had led.
# Seen:
#   [3.0, 1.0, 2.0] PRUNED 2.0
#   [3.0, 1.0, nan] PRUNED None
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check optuna==5.0.0
cat > "$folder/seen.py" <<'PY'
import optuna

optuna.logging.set_verbosity(optuna.logging.ERROR)
study = optuna.create_study()


def objective(trial):
    for step, loss in enumerate(reports):
        trial.report(loss, step)
    raise optuna.TrialPruned


for reports in ([3.0, 1.0, 2.0], [3.0, 1.0, float("nan")]):
    study.optimize(objective, n_trials=1)
    trial = study.trials[-1]
    print(reports, trial.state.name, trial.value)
PY
cd "$folder"
diff <("$folder/venv/bin/python" seen.py) - <<'SEEN'
[3.0, 1.0, 2.0] PRUNED 2.0
[3.0, 1.0, nan] PRUNED None
SEEN
echo "as described"
