import signal
from dataclasses import asdict
from datetime import timedelta

import optuna
import pyarrow as pa
import pyarrow.compute as pc
import pytest

import features
from adapters.errors import FencedOut
from tasks.build_features import dataset
from tasks.train import search as tune
from tasks.train import study as studies
from tasks.train import trials
from tasks.train.split import split
from tasks.train.study import keeps_up, middle_params
from tasks.train.study_name import name_study
from tasks.train.trainer import Trainer, split_rows
from tasks.train.trials import Search
from tests.models import synthetic
from tests.tasks import killed, toy


@pytest.fixture(autouse=True)
def rows(monkeypatch):
    monkeypatch.setattr(dataset, "load_rows", dataset.load_rows)  # put back afterwards
    toy.install()


def search(outside, trials=5, **train):
    tune.run_search(toy.use_case(**train), toy.SNAPSHOT, toy.AS_OF, trials, outside)
    return tune.load_study_result(toy.use_case(**train), toy.SNAPSHOT, toy.AS_OF, outside)


def best(found) -> dict:
    return {name: value for name, value in asdict(found).items() if name != "seconds"}


def trials_of(found, outside) -> list[dict]:
    table = studies.tabulate_trials(studies.open_study(found.study_name, toy.use_case(), outside))
    return [{name: value for name, value in entry.items() if name != "seconds"} for entry in table]


def forget(found, outside) -> None:
    study = studies.open_study(found.study_name, toy.use_case(), outside)
    optuna.delete_study(study_name=found.study_name, storage=study._storage)


SEARCH = """
from adapters.connect import Outside
from pipeline.settings import read_settings
import os
from tests.tasks import toy
from tasks.train import search
toy.install()
outside = Outside(read_settings(os.environ))
search.run_search(toy.use_case(), toy.SNAPSHOT, toy.AS_OF, 6, outside, worker={worker})
"""


def killed_after(finished: int, settings, *, worker: int = 0) -> None:
    """Run a search in a process of its own and kill -9 it once that many trials are done and the next ones run."""
    with killed.started(killed.environment(settings), SEARCH.format(worker=worker)) as (process, lines):
        for line in lines:
            if line.startswith(f"trial {finished}/"):
                process.kill()
    assert process.exitcode == -signal.SIGKILL


def test_a_search_killed_twice_and_resumed_ends_as_one_left_alone_with_its_exact_budget(outside, settings):
    killed_after(1, settings)
    killed_after(3, settings)
    resumed = search(outside, trials=6)
    resumed_trials = trials_of(resumed, outside)
    assert len(resumed_trials) == 6
    forget(resumed, outside)
    alone = search(outside, trials=6)
    assert best(resumed) == best(alone)
    assert resumed_trials == trials_of(alone, outside)


def test_sabotage_a_resumed_search_that_judges_by_the_clock_ends_elsewhere(outside, settings, monkeypatch):
    alone = search(outside, trials=6)
    kept = trials_of(alone, outside)
    forget(alone, outside)
    killed_after(3, settings)
    monkeypatch.setattr(Search, "_last_tick", lambda _: 0)
    monkeypatch.setattr(Search, "_occupied", lambda self, _: len(self.running))  # what has ended leaves room at once
    assert trials_of(search(outside, trials=6), outside) != kept


def test_what_a_dead_process_left_running_is_failed_and_sways_nothing(outside):
    alone = search(outside)
    forget(alone, outside)
    search(outside, trials=2)
    study = studies.open_study(alone.study_name, toy.use_case(), outside)
    for _ in range(3):
        studies.suggest_params(study.ask(), toy.use_case().train)  # died here
    resumed = search(outside)
    assert best(resumed) == best(alone)
    states = [trial.state.name for trial in study.get_trials()]
    assert (states.count("FAIL"), states.count("RUNNING"), len(states)) == (3, 0, 8)


def test_two_workers_share_a_study_and_its_exact_budget(outside, settings):
    with killed.started(killed.environment(settings), SEARCH.format(worker=1)) as (other, _):
        found = search(outside, trials=6)
    assert other.exitcode == 0
    asked = claims_of(found, outside)
    assert sorted(claim.place for claim, _ in asked) == list(range(6))
    assert {trial.state.is_finished() for _, trial in asked} == {True}
    together = tune.load_study_result(toy.use_case(), toy.SNAPSHOT, toy.AS_OF, outside)
    assert (together.trials, together.study_name) == (6, found.study_name)
    assert together.best_value <= found.best_value, "what this worker saw at its own end, or better"


def test_a_worker_that_died_leaves_its_trials_to_its_next_run_and_to_nobody_else(outside, settings):
    killed_after(1, settings, worker=1)
    found = search(outside, trials=6)
    left = [claim for claim, trial in claims_of(found, outside) if not trial.state.is_finished()]
    assert {claim.worker for claim in left} == {1}
    assert found.trials == 6 - len(left) < 6
    tune.run_search(toy.use_case(), toy.SNAPSHOT, toy.AS_OF, 6, outside, worker=1)
    again = tune.load_study_result(toy.use_case(), toy.SNAPSHOT, toy.AS_OF, outside)
    assert again.trials == 6
    assert again.best_value <= found.best_value


def test_a_worker_for_whom_no_trial_is_left_ends_in_peace_before_any_has_ended(outside, monkeypatch):
    case = toy.use_case(trials_at_once=2)
    with monkeypatch.context() as patched:
        patched.setattr(Search, "_train", dying(Search._train, 0))
        with pytest.raises(KeyboardInterrupt):
            tune.run_search(case, toy.SNAPSHOT, toy.AS_OF, 2, outside)  # asked for both, and trains them
    tune.run_search(case, toy.SNAPSHOT, toy.AS_OF, 2, outside, worker=1)
    with pytest.raises(ValueError, match="none of 0 trials converged"):
        tune.load_study_result(case, toy.SNAPSHOT, toy.AS_OF, outside)


def claims_of(found, outside) -> list:
    return studies.list_claims(studies.open_study(found.study_name, toy.use_case(), outside))


def test_room_is_filled_with_new_trials_while_others_go_on(outside):
    found = search(outside, trials=6)
    claims = [claim for claim, _ in claims_of(found, outside)]
    ticks = [claim.tick for claim in sorted(claims, key=lambda claim: claim.place)]
    assert ticks[:3] == [0, 0, 0]
    assert 1 in ticks[3:], "at the first rung some ended, and were replaced there and then"
    attempts = [studies.read_attempt(trial) for _, trial in claims_of(found, outside)]
    busy = [sum(c.tick <= t < c.tick + a.epochs for c, a in zip(claims, attempts, strict=True)) for t in range(12)]
    assert max(busy) == toy.use_case().train.trials_at_once


def test_killed_between_the_asks_of_a_batch_and_between_its_tells_all_ends_the_same(outside, monkeypatch):
    alone = search(outside, trials=6)
    kept = trials_of(alone, outside)
    for name in ("ask_trial", "finish_trial", "report_rung"):
        for after in (2, 4):
            forget(alone, outside)
            with monkeypatch.context() as patched:
                patched.setattr(trials, name, dying(getattr(trials, name), after))
                with pytest.raises(KeyboardInterrupt):
                    search(outside, trials=6)
            assert trials_of(search(outside, trials=6), outside) == kept, (name, after)


def dying(work, after: int):
    """`work`, which dies when it is called once too often."""
    calls = []

    def worked(*arguments):
        calls.append(arguments)
        if len(calls) > after:
            raise KeyboardInterrupt
        return work(*arguments)

    return worked


def test_a_finished_search_is_not_searched_again(outside, capsys):
    first = search(outside, trials=3)
    capsys.readouterr()
    assert search(outside, trials=3) == first
    assert capsys.readouterr().out == ""


def test_a_larger_budget_goes_on_with_the_same_study(outside):
    few, more = search(outside, trials=2), search(outside, trials=4)
    assert (few.study_name, few.trials, more.trials) == (more.study_name, 2, 4)
    assert more.best_value <= few.best_value


def test_an_overtaken_search_can_not_tell(outside, monkeypatch):
    train_epoch = Trainer.train_epoch

    def overtaken(self, members):
        study = name_study(toy.use_case(), toy.SNAPSHOT, toy.AS_OF, features.definition("toy"))
        outside.warehouse.begin(f"search/{study}/0")
        return train_epoch(self, members)

    monkeypatch.setattr(Trainer, "train_epoch", overtaken)
    with pytest.raises(FencedOut):
        search(outside)


def test_a_search_finds_a_model_that_works_and_says_how_it_goes(outside, capsys):
    found = search(outside, metric="auc")
    assert found.best_value > 0.75
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" ")[1] for line in lines] == [f"{i}/5" for i in range(1, 6)]


def test_trials_that_diverge_are_pruned_and_when_all_do_it_says_so(outside):
    with pytest.raises(ValueError, match="none of 2 trials converged"):
        search(outside, trials=2, learning_rate=(1e30, 1e35))


def test_too_few_rows_is_said_with_the_setting_to_look_at(outside):
    with pytest.raises(ValueError, match=r"train.min_rows asks for 1000000"):
        search(outside, min_rows=1_000_000)


def test_a_training_beyond_the_features_is_refused(outside):
    with pytest.raises(ValueError, match="features reach to"):
        tune.run_search(toy.use_case(), toy.SNAPSHOT, toy.AS_OF + timedelta(days=7), 2, outside)


def test_a_row_is_of_a_part_only_if_its_label_had_its_time_to_come_by_the_parts_end():
    case, lag = toy.use_case(), timedelta(hours=26)
    moments = split(case, toy.AS_OF)
    known = synthetic.table()
    known = known.filter(pc.less_equal(known["label_time"], pa.scalar(moments.cutoff, known["label_time"].type)))
    train, validation = split_rows(known, moments)
    assert max(train["label_time"].to_pylist()) <= moments.train_end
    assert max(train["prediction_time"].to_pylist()) < moments.train_end - lag
    assert min(validation["prediction_time"].to_pylist()) >= moments.train_end
    assert max(validation["prediction_time"].to_pylist()) < moments.cutoff - lag
    assert moments.cutoff - lag - moments.train_end == timedelta(days=case.train.validation_days)
    assert toy.AS_OF - lag - moments.holdout_start == timedelta(days=case.train.holdout_days)


def test_the_newest_rows_that_are_known_early_are_of_one_kind_and_no_part_has_them():
    """Outcomes of one kind come at once, of the other after a day: of the last day only the first kind is known."""
    moments, lag = split(toy.use_case(), toy.AS_OF), timedelta(hours=26)
    hours = [moments.holdout_start - timedelta(hours=n) for n in range(1, 24 * 60)]
    soon = [n % 2 == 0 for n in range(len(hours))]
    rows = pa.table(
        {
            "prediction_time": pa.array(hours, pa.timestamp("us", "UTC")),
            "label_time": pa.array(
                [at + (timedelta(0) if early else lag) for at, early in zip(hours, soon, strict=True)],
                pa.timestamp("us", "UTC"),
            ),
            "label": pa.array([float(early) for early in soon]),
        }
    )
    known = rows.filter(pc.less_equal(rows["label_time"], pa.scalar(moments.cutoff, rows["label_time"].type)))
    ends = (moments.train_end, moments.cutoff)
    for part, end in zip(split_rows(known, moments), ends, strict=True):
        assert abs(pc.mean(part["label"]).as_py() - 0.5) < 0.01
        newest = known.filter(pc.greater(known["prediction_time"], pa.scalar(end - lag, rows["label_time"].type)))
        newest = newest.filter(pc.less_equal(newest["label_time"], pa.scalar(end, rows["label_time"].type)))
        assert pc.mean(newest["label"]).as_py() == 1.0, "what is left out"


def test_halving_keeps_the_best_share_and_never_what_is_not_finite():
    assert keeps_up((1.0, 0), [], 0.34)
    assert not keeps_up((float("inf"), 0), [], 0.34)
    others = [(loss, place) for place, loss in enumerate([0.5, 0.6, 0.7, 0.8, 0.9])]
    assert [keeps_up((loss, 9), others, 0.34) for loss in (0.4, 0.55, 0.65, 1.0)] == [True, True, False, False]


def test_of_equals_the_first_keeps_up():
    assert keeps_up((0.5, 0), [(0.5, 1), (0.5, 2)], 0.34)
    assert not keeps_up((0.5, 1), [(0.5, 0), (0.5, 2)], 0.34)


def test_the_first_trial_is_the_middle_of_the_space():
    train = toy.use_case(hidden_units=(8, 16, 32), dropout=(0.0, 0.4), learning_rate=(1e-4, 1e-2)).train
    assert middle_params(train)["hidden_units"] == 16
    assert middle_params(train)["dropout"] == 0.2
    assert middle_params(train)["learning_rate"] == pytest.approx(1e-3)
