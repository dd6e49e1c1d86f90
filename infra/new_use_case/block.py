"""The block of params.yaml that a plan comes to, as text: what was derived says from what."""

import json
import math

from infra.new_use_case.answers import Answers
from infra.new_use_case.plan import DAILY_ROWS, Plan
from infra.new_use_case.profile import TableProfile

_RECALIBRATION = "{half_life_days: 28, spread: 0.15, min_gain: 0.0002}"


def render_block(
    answers: Answers, profile: TableProfile, plan: Plan, *, key: tuple[str, ...], known: str,
    slices: tuple[str, ...], structural: tuple[str, ...], features: int,
) -> str:  # fmt: skip
    """The whole block. `key` and `known` are columns as they are called here, `slices` and `structural` features."""
    weekly = plan.partition_days == 7
    day = plan.first_partition.isoweekday() % 7
    relation = "" if profile.relation == profile.name else f"relation: {json.dumps(profile.relation)}, "
    exempt = f", exempt: [{', '.join(f'{json.dumps(str(d))}' for d in plan.exempt)}]" if plan.exempt else ""
    last = json.dumps(str(plan.last_partition)) if plan.last_partition else "null"
    ended = "the last whole one: the table ends with it" if plan.last_partition else "rows still arrive"
    wide = "a week" if weekly else f"a day, for one has {DAILY_ROWS:,} rows and more"
    seen = f"{plan.low_rows:,} to {plan.high_rows:,} rows in nine of ten of {plan.partitions} partitions"
    table = (
        f"{relation}key: [{', '.join(key)}], available_at: {known}, min_rows: {plan.min_rows},"
        f" max_rows: {plan.max_rows}, max_quarantined_share: 0.05{exempt}"
    )
    first = "a Monday" if weekly else "the first day"
    earlier = f"rows that became known before are left out: {plan.earlier_rows:,} of {profile.rows:,}"
    points = plan.day_points * plan.partition_days
    per_day = f"{plan.day_labels:,.0f} labels come in a day of a weak partition"
    return f"""
# Written by `make new-use-case` from {profile.relation}, of which {profile.rows:,} rows were there. It is yours now.
{answers.name}:
  title: {json.dumps(answers.title or answers.name)}
  owner: {json.dumps(answers.owner or "nobody yet")}
  risk: low                        # high: a named person approves each promotion in the Airflow UI
  seed: 0
  engine: duckdb

  target:
    kind: {answers.kind}
    meaning: {json.dumps(answers.meaning or f"{answers.target} of a row of {profile.relation}")}
{_render_interval(answers)}
  time:
    lead_minutes: {answers.lead_minutes}
    label_delay_hours: {answers.label_delay_hours}  # 99% are known {profile.label_hours:.1f} hours after the event

  source:
    first_partition: "{plan.first_partition}"  # {first}: from then on the table is filled; {earlier}
    last_partition: {last}  # {ended}
    partition_days: {plan.partition_days}  # {wide}
    recheck_partitions: 4
    follow: null                   # cdc | poll: changes reach the online store within seconds; see docs/online.md
    horizon_seconds: 60
    watermark: null
    cron: "{f"0 0 * * {day}" if weekly else "0 0 * * *"}"  # as each partition ends
    tables:
      {profile.name}:  # {seen}
        {{{table}}}

  train:
    metric: {_metric(answers)}
    trials: 9
    trials_at_once: 3
    workers: 1
    rungs: [2, 5, 10]
    keep_share: 0.34
    patience_epochs: 3
    batch_rows: {plan.batch_rows}  # an eighth of min_rows, at most 1024
    ensemble_seeds: 3
    validation_days: {plan.validation_days}  # an eighth of {plan.days} days, 7 to 28, and more than labels take to come
    holdout_days: {plan.holdout_days}  # the same
    min_rows: {plan.train_min_rows}  # half of what was there to learn from: {per_day}
    networks: [mlp, tabm]
    hidden_units: [64, 128]
    layers: [1, 2, 3]
    dropout: [0.1, 0.4]
    learning_rate: [0.001, 0.005]
    weight_decay: [0.0001, 0.3]
    label_smoothing: [0.0, 0.0]

{_render_gate(answers, profile, plan, slices)}

  monitor:
    min_rows: {plan.monitor_min_rows}  # half of a weak partition, which has {points:,.0f}; 500 is the least
    bins: 10
    threshold_margin: 1.5
    min_threshold_psi: 0.2
    persistence_breaches: 2
    persistence_of: 3
    min_drifted_features: {max(1, round(features / 10))}  # a tenth of {features}
    broken_missing_share: 0.3
    structural_features: [{", ".join(structural)}]  # that are there in every row
    performance_days: {plan.performance_days}  # {"two weeks" if weekly else "a week"}
    min_labelled: {plan.min_labelled}  # half of what a weak time has of them
    min_coverage: {plan.min_coverage}  # {plan.coverage:.0%} of the points have a label after the label delay
    limits:
{_render_limits(answers, profile)}
    max_loss: null  # of gate.metric, surely lost since the gate saw it: a trigger, too
    recalibration: {_RECALIBRATION if answers.kind == "binary" else "null"}  # of probabilities, by labels alone
    max_age_days: {plan.max_age_days}  # since it was trained
    max_new_rows_share: {plan.max_new_rows_share}  # a partition has {plan.new_rows_share:.1%} of what is learnt from
    cooldown_days: 14
    monthly_retrains: 3
    breaker_refusals: 2
    breaker_days: 28

{_render_endpoint(answers, plan)}

  experiment: null                 # see docs/online.md
"""


def round_digits(value: float) -> float:
    """To two digits."""
    return float(f"{value:.2g}")


def entropy(share: float) -> float:
    """The log-loss of always saying the share of ones."""
    return -(share * math.log(share) + (1 - share) * math.log(1 - share))


def _metric(answers: Answers) -> str:
    return "log_loss" if answers.kind == "binary" else "mae"


def _render_interval(answers: Answers) -> str:
    if answers.kind == "binary":
        return ""
    return "    interval: {coverage: 0.9, max_gap: 0.03}  # around each answer, watched; null: none\n"


def _render_gate(answers: Answers, profile: TableProfile, plan: Plan, slices: tuple[str, ...]) -> str:
    is_binary, distance = answers.kind == "binary", profile.target.distance
    loss = 0.01 if is_binary else round_digits(0.05 * distance)
    gap = 0.08 if is_binary else round_digits(0.25 * distance)
    alarm = "{metric: auc, above: 0.98}" if is_binary else f"{{metric: mae, below: {round_digits(0.02 * distance)}}}"
    of = "" if is_binary else f"  # of {round_digits(distance)}, by which targets lie from their median"
    return f"""  gate:
    metric: {_metric(answers)}
    min_effect: {0.0005 if is_binary else round_digits(0.005 * distance)}{of}
    max_loss_chance: 0.2  # of losing as much as that; above it a candidate is held
    block: null  # what rows are alike within: day | two_days | week | entity; null: day, or longer with its labels
    confidence: 0.95
    resamples: 2000
    min_rows: {plan.gate_min_rows}  # half of what a weak holdout has
    min_days: 7
    slices: [{", ".join(slices)}]  # texts of few values
    min_slice_rows: {max(1, min(plan.gate_min_rows - 1, max(50, plan.gate_min_rows // 10)))}
    max_slice_loss: {loss}
    max_calibration_gap: {gap}
    max_latency_ms: 50
    leak_alarm: {alarm}  # better than this is too good to be true
    approval_hours: 24"""


def _render_limits(answers: Answers, profile: TableProfile) -> str:
    if answers.kind == "binary":
        mean = profile.target.mean
        return (
            f"      log_loss: {{max: {round(entropy(mean) + 0.005, 2)}}}  # what always saying {mean:.3f}, the share of"
            " ones, comes to\n      calibration_gap: {max: 0.1}"
        )
    far = round_digits(profile.target.distance)
    return f"      mae: {{max: {far}}}  # what always saying the median, {profile.target.median:g}, comes to"


def _render_endpoint(answers: Answers, plan: Plan) -> str:
    costs = "{missed: 1.0, needless: 1.0}   # in any one unit" if answers.kind == "binary" else "null"
    hours = plan.partition_days * 24 + 24
    return f"""  endpoint:                        # null: batch only
    batch_size: 64
    max_batch_delay_ms: 1
    workers: 1
    max_events: 256
    store_timeout_ms: 500
    max_feature_age_hours: {hours}  # a partition, and a day
    costs: {costs}
    answers: null                  # needs source.follow; see docs/online.md
    rollout:
      golden_rows: 256
      tolerance: 0.00001
      max_p99_ms: 250
      max_error_share: 0.01
      shadow_requests: 200
      canary_share: 0.05
      canary_requests: 50
      hold_minutes: 30"""
