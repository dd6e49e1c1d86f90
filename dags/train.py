"""Search, fit, judge and, where it is better, promote a model.

**Steps.** `plan` fixes the features and the data time, and stops what could not be judged or served (all that the check
of a use case finds without the source, and events asked as a client asks); `tune`, a task a worker (`train.workers`),
searches on the validation days only (one Optuna study in Postgres, so that a killed search goes on where it was);
`refit` trains the best configuration and registers the candidate; `evaluate` compares it with the champion on the same
holdout rows; where the candidate won, and the use case's risk is high or the champion learnt features that can no
longer be computed, `approval` waits for a person (Required Actions, in the Airflow UI; no answer in time is a
rejection), else it skips; `admit` lets through only what will be promoted; `refit_winner` trains that anew, by the same
recipe and seeds, on all that was known at the data time, and turns it down where it agrees too little with the version
that was judged; `promote` follows the verdict, with the refit where there is one, and writes the ledger; `deploy`
brings the champion to the endpoint, where there is one, by the stages of `deploy`; `finish` closes the retrain decision
that asked for this, if one did, once the gate has spoken, whatever happened; the deployment goes on beside what comes
next.

With `challenger` a version that was held before is judged again, on the days that have come since, in place of a
search and a training.

**Started by** `retrain`, once for each decision, or by hand with the form.

**To resume** clear the failed task: the search keeps its trials, a refit that is registered is not trained again, and a
verdict is promoted at most once. Marking `refit_winner` as success promotes the winner as it was judged. A `plan` that
names mistakes is not tried again: mend them, and start a new run.
"""

from datetime import datetime, timedelta
from typing import Any

from airflow.providers.standard.operators.hitl import HITLOperator
from airflow.sdk import DAG, Param, task, teardown
from airflow.sdk.exceptions import AirflowSkipException

from orchestration.defaults import ACCELERATOR, dag_args, declared, reach_outside, rollout_time
from orchestration.parameters import MOMENT, read_moment
from pipeline.handoffs import Candidate, RefittedWinner, Release, ReleaseOutcome, Snapshot, Verdict
from pipeline.spec import UseCase

APPROVE, REJECT = "Approve", "Reject"


def form(use_case: UseCase) -> dict[str, Param]:
    """What a person may set when starting a training by hand."""
    return {
        "as_of": Param(
            None,
            type=["null", "string"],
            pattern=MOMENT,
            title="As of",
            description="Data time to train for, a partition's start; empty: the end of the latest features.",
        ),
        "trials": Param(use_case.train.trials, type="integer", minimum=1, title="Trials", description="Search budget."),
        "reason": Param("started by hand", type="string", minLength=3, title="Reason", description="For the ledger."),
        "dry_run": Param(default=False, type="boolean", title="Dry run", description="Judge, but promote nothing."),
        "decision_id": Param(
            None,
            type=["null", "string"],
            title="Decision",
            description="The monitoring decision this answers. Set by the retrain DAG.",
        ),
        "challenger": Param(
            None,
            type=["null", "string"],
            title="Standing challenger",
            description="A held version, to be judged again on the days since instead of a search; empty: train.",
        ),
    }


def skip_without_need(context: Any) -> None:
    """Ask a person only about a candidate that won."""
    if context["params"]["dry_run"] or not context["ti"].xcom_pull(task_ids="evaluate").needs_approval:
        raise AirflowSkipException("the verdict needs no approval")


def approval(use_case: UseCase) -> HITLOperator:
    """Wait, in no worker slot, for a person's answer. ApprovalOperator would skip the ledger entry of a rejection."""
    verdict = "ti.xcom_pull(task_ids='evaluate')"
    return HITLOperator(
        task_id="approval",
        subject=f"Promote version {{{{ {verdict}.candidate_version }}}} of {use_case.title}?",
        body=(
            f"In place of version {{{{ {verdict}.champion_version or 'none' }}}}, refitted on all that is known.\n\n"
            f"Effect on {use_case.gate.metric}: {{{{ {verdict}.effect }}}} "
            f"[{{{{ {verdict}.effect_low }}}}, {{{{ {verdict}.effect_high }}}}]\n\n"
            f"{{{{ {verdict}.reasons | join('; ') }}}}\n\nEvidence: {{{{ {verdict}.evidence_uri }}}}"
        ),
        options=[APPROVE, REJECT],
        defaults=REJECT,
        response_timeout=timedelta(hours=use_case.gate.approval_hours),
        pre_execute=skip_without_need,
    )


def answer(response: dict[str, Any] | None, run_id: str) -> tuple[bool | None, str]:
    """Whether the promotion was approved (None: nobody was asked) and by whom."""
    if response is None:
        return None, f"gate ({run_id})"
    user = response["responded_by_user"]
    return response["chosen_options"] == [APPROVE], user["name"] if user else "nobody (approval expired)"


def plan_training(use_case: UseCase, params: Any) -> dict[str, Any]:
    """The features to learn from and the data time, where the outcome could be judged and served."""
    from tasks.build_features import dataset
    from tasks.build_features.learnt_features import require_todays_features
    from tasks.check_use_case.servable import require_servable

    snapshot = dataset.latest_snapshot(use_case, reach_outside())
    if snapshot is None:
        raise ValueError(f"{use_case.name} has no features yet: run {use_case.name}.ingest first")
    require_todays_features(use_case, snapshot, reach_outside())
    as_of = read_moment(use_case, params["as_of"], snapshot.end)
    require_servable(use_case, snapshot, as_of, reach_outside())
    return {"snapshot": snapshot, "as_of": as_of}


def hand_on_challenger(use_case: UseCase, snapshot: Snapshot, as_of: datetime, params: Any) -> Candidate:
    """The standing challenger that is to be judged again, as a refit would hand it on."""
    from tasks.promote import standing

    why = (params["reason"], params["decision_id"])
    return standing.load_challenger(use_case, params["challenger"], snapshot.version, as_of, *why, reach_outside())


def make_train_dag(use_case: UseCase) -> DAG:
    """`plan -> tune -> refit -> evaluate -> approval -> admit -> refit_winner -> promote -> deploy`; then `finish`."""
    with DAG(**dag_args(use_case, "train", __doc__), schedule=None, params=form(use_case)) as dag:

        @task(execution_timeout=timedelta(hours=1))  # packs series, as a refresh does
        def plan(params: Any = None) -> dict[str, Any]:
            return plan_training(use_case, params)

        @task(execution_timeout=timedelta(hours=12), **ACCELERATOR)
        def tune(planned: dict[str, Any], worker: int, params: Any = None) -> None:
            from tasks.train import search as step

            if not params["challenger"]:
                step.run_search(
                    use_case, planned["snapshot"], planned["as_of"], params["trials"], reach_outside(), worker=worker
                )

        @task(execution_timeout=timedelta(hours=12), **ACCELERATOR)
        def refit(planned: dict[str, Any], params: Any = None) -> Candidate:
            from tasks.train import refit as step
            from tasks.train import search

            snapshot, as_of = planned["snapshot"], planned["as_of"]
            if params["challenger"]:
                return hand_on_challenger(use_case, snapshot, as_of, params)
            study = search.load_study_result(use_case, snapshot, as_of, reach_outside())
            return step.refit(
                use_case, snapshot, study, as_of, params["reason"], params["decision_id"], reach_outside()
            )

        @task(execution_timeout=timedelta(hours=2))
        def evaluate(candidate: Candidate) -> Verdict:
            from tasks.promote import evaluate as step

            return step.judge_candidate(use_case, candidate, reach_outside())

        # A task of its own, so that what is held waits for no accelerator.
        @task.short_circuit(
            execution_timeout=timedelta(minutes=10), trigger_rule="none_failed", ignore_downstream_trigger_rules=False
        )
        def admit(verdict: Verdict, response: Any = None, params: Any = None, dag_run: Any = None) -> bool:
            from tasks.promote import promote as step

            approved, actor = answer(response, dag_run.run_id)
            return not params["dry_run"] and step.will_promote(
                use_case, verdict, reach_outside(), actor=actor, approved=approved
            )

        @task(execution_timeout=timedelta(hours=12), **ACCELERATOR)
        def refit_winner(candidate: Candidate) -> RefittedWinner:
            from tasks.promote import winner as step

            return step.refit_winner(use_case, candidate, reach_outside())

        @task(execution_timeout=timedelta(minutes=10), trigger_rule="none_failed")
        def promote(
            verdict: Verdict,
            refitted: RefittedWinner | None = None,
            response: Any = None,
            params: Any = None,
            dag_run: Any = None,
        ) -> Release:
            from tasks.promote import promote as step

            approved, actor = answer(response, dag_run.run_id)
            return step.promote(
                use_case,
                verdict,
                reach_outside(),
                actor=actor,
                approved=approved,
                dry_run=params["dry_run"],
                refitted=refitted,
            )

        @task(execution_timeout=rollout_time(use_case))
        def deploy(release: Release) -> str:
            from tasks.deploy import deploy as step

            if release.outcome != ReleaseOutcome.PROMOTED:
                raise AirflowSkipException(f"{release.outcome}: the champion stays")
            return step.deploy_release(use_case, release, reach_outside())

        @teardown
        @task(execution_timeout=timedelta(minutes=10))
        def finish(release: Release | None = None, params: Any = None) -> None:
            from tasks.monitor import retrain

            if params["decision_id"] and not params["dry_run"]:
                outcome = release.outcome if release else retrain.TRAINING_FAILED
                retrain.finish_retrain(params["decision_id"], outcome, reach_outside())

        planned: Any = plan()  # XComArgs stand for the hand-offs
        candidate: Any = refit(planned)
        tune.partial(planned=planned).expand(worker=list(range(use_case.train.workers))) >> candidate
        verdict: Any = evaluate(candidate)
        approved = approval(use_case)
        verdict >> approved
        refitted: Any = refit_winner(candidate)
        admit(verdict, approved.output) >> refitted
        release: Any = promote(verdict, refitted, approved.output)
        finish(release)  # the decision has its answer; how the version gets to its clients is a matter of its own
        deploy(release)
    return dag


for declared_use_case in declared():
    globals()[f"{declared_use_case.name}_train"] = make_train_dag(declared_use_case)
