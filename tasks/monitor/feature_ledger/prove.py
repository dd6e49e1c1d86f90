"""Gives each difference its cause, and proves it: with the rows of that cause as the store had them, and no others, the
definition gives what was served, to the bit.

It must also give batch's value on batch's rows. Where no set of causes gives what was served, or a row without a cause
is needed for it, the difference is a defect.
"""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import combinations
from operator import itemgetter
from typing import Any

from tasks.monitor.feature_ledger.answers import EventValues, FeatureDifference, ServedAnswer, Value
from tasks.monitor.feature_ledger.known_rows import DatasetObjects, KnownRows, RowDifference
from tasks.monitor.feature_ledger.recompute import Recomputation, compute_silently
from tasks.monitor.feature_ledger.row_causes import CauseFinder, KnownState, RowCause, ServedCause
from tasks.monitor.feature_ledger.store_steps import StoreSteps
from tasks.monitor.restated import EventKey

_NOT_FOLLOWED = " is not followed"
_ROWS_TOLD = 5  # of a proof
_MOST_SCENES = 100  # each takes a computation or more, of about a second


@dataclass(frozen=True, kw_only=True)
class ProvedDifference:
    """A difference, its cause, and the proof; of a defect, what could not be proved."""

    difference: FeatureDifference
    cause: ServedCause
    proof: Mapping[str, Any]


_Proofs = tuple[list[ProvedDifference], list[FeatureDifference]]  # and those that are left


@dataclass(frozen=True, kw_only=True)
class _Scene:
    """Answers, the rows that differ of those that one or another of them knew, and why each of these does.

    Of answers of several states of the store the rows must be the same as far as each knew.
    """

    answers: list[ServedAnswer]
    causes: list[RowCause]  # in the order in which they became known
    known: list[tuple[datetime, Any]]  # of each when it became known, and what tells it apart
    until: datetime  # the last moment that any of the answers knew of
    is_behind: bool

    def join(self, other: "_Scene") -> "_Scene | None":
        """This one and a later one in one, where neither sees what the other knew otherwise."""
        seen = bisect_right(other.known, self.until, key=itemgetter(0))
        if other.known[:seen] != self.known:
            return None
        return replace(other, answers=[*self.answers, *other.answers])

    def list_subsets(self) -> Iterator[tuple[ServedCause, ...]]:
        """Sets of causes, the fewest first. Who said that they were behind were, whatever else there is."""
        always = {ServedCause.STREAM_BEHIND} if self.is_behind else set()
        others = [cause for cause in ServedCause if cause in {row.cause for row in self.causes} - always]
        for count in range(0 if always else 1, len(others) + 1):
            for some in combinations(others, count):
                yield tuple(cause for cause in ServedCause if cause in {*some, *always})


@dataclass(frozen=True, kw_only=True)
class DifferenceProver:
    """Proves the differences of one definition's answers; `find_dataset` gives what an older dataset was made of."""

    known: KnownRows
    causes: CauseFinder
    recomputation: Recomputation
    find_dataset: Callable[[str], DatasetObjects]

    def prove(self, differences: Sequence[FeatureDifference]) -> list[ProvedDifference]:
        """Each of them, once."""
        left = [each for each in differences if not each.answer.is_store_silent]
        proved = self._prove_silent([each for each in differences if each.answer.is_store_silent])
        for step in (self._refuse_unlogged, self._refuse_other_batch, self._prove_behind, self._prove_by_rows):
            done, left = step(left)
            proved += done
        assert not left
        return proved

    def _prove_silent(self, differences: Sequence[FeatureDifference]) -> list[ProvedDifference]:
        lead = self.recomputation.use_case.time.lead
        values = compute_silently(self.recomputation.definition, lead, _list_answers(differences))
        return [
            ProvedDifference(
                difference=each, cause=ServedCause.STORE_SILENT, proof={"reasons": list(each.answer.reasons)}
            )
            if _is_given(values, each, each.served)
            else _as_defect(each, "a store that is silent does not give it")
            for each in differences
        ]

    def _refuse_unlogged(self, differences: Sequence[FeatureDifference]) -> _Proofs:
        lost = [each for each in differences if each.answer.snapshot is None or each.answer.changes is None]
        return _part(differences, [_as_defect(each, "what the store held was not logged") for each in lost])

    def _refuse_other_batch(self, differences: Sequence[FeatureDifference]) -> _Proofs:
        """Batch's rows must give what batch has: else what gives the served value proves nothing."""
        values = self._compute(differences)
        other = [each for each in differences if not _is_given(values, each, each.batch)]
        return _part(differences, [_as_defect(each, "batch's rows do not give batch's value") for each in other])

    def _prove_behind(self, differences: Sequence[FeatureDifference]) -> _Proofs:
        """Those that differ by nothing else, all at once: they need no rows, for what came later is not seen."""
        behind = [each for each in differences if each.answer.behind is not None]
        values = self._compute(behind, is_behind=True)
        proved = [
            ProvedDifference(difference=each, cause=ServedCause.STREAM_BEHIND, proof=_describe_state(each.answer))
            for each in behind
            if _is_given(values, each, each.served)
        ]
        return _part(differences, proved)

    def _prove_by_rows(self, differences: Sequence[FeatureDifference]) -> _Proofs:
        by_answer = defaultdict[EventKey, list[FeatureDifference]](list)
        for each in differences:
            by_answer[each.answer.key].append(each)
        scenes = sorted(self._make_scenes(_list_answers(differences)), key=lambda scene: -len(scene.answers))
        proved = list[ProvedDifference]()
        for number, scene in enumerate(scenes):
            mine = [each for answer in scene.answers for each in by_answer[answer.key]]
            if number < _MOST_SCENES:
                proved += _SceneProof(self.recomputation, scene).prove(mine)
            else:
                proved += [
                    _as_defect(each, f"not examined: beyond {_MOST_SCENES} states of the store") for each in mine
                ]
        return proved, []

    def _compute(self, differences: Sequence[FeatureDifference], *, is_behind: bool = False) -> EventValues:
        answers = _list_answers(differences)
        return self.recomputation.compute(answers, is_behind=is_behind) if answers else {}

    def _make_scenes(self, answers: Iterable[ServedAnswer]) -> list[_Scene]:
        """Answers by what they knew: of the rows that differ, those of their time."""
        together = defaultdict[Any, list[ServedAnswer]](list)
        stores = dict[str, StoreSteps]()
        rows_of = dict[Any, list[RowDifference]]()
        for answer in sorted(answers, key=lambda answer: answer.changes or 0):
            assert answer.snapshot is not None
            assert answer.changes is not None
            if (store := stores.get(answer.snapshot)) is None:
                store = stores[answer.snapshot] = StoreSteps(self.known, self.find_dataset(answer.snapshot))
            store.reach(answer.changes)
            mine = store.list_until(answer.behind or answer.prediction_time)
            scene = answer.snapshot, answer.behind, _list_stopped(answer), tuple(map(id, mine))
            together[scene].append(answer)
            rows_of[scene] = mine
        scenes = [self._make_scene(found, rows_of[scene], scene) for scene, found in together.items()]
        return _join_scenes(scenes)

    def _make_scene(self, answers: list[ServedAnswer], rows: Sequence[RowDifference], scene: Any) -> tuple[Any, _Scene]:
        """A scene, and what those have in common that may be joined."""
        snapshot, behind, stopped, _ = scene
        state = KnownState(
            then=self.find_dataset(snapshot),
            changes=max(answer.changes for answer in answers if answer.changes is not None),
            behind=behind,
            stopped=stopped,
        )
        causes = [self.causes.find_cause(row, state) for row in rows]
        made = _Scene(
            answers=answers,
            causes=causes,
            known=[(row.difference.available_at, (id(row.difference), row.cause)) for row in causes],
            until=behind or max(answer.prediction_time for answer in answers),
            is_behind=behind is not None,
        )
        return (snapshot, stopped, made.is_behind), made


def _join_scenes(scenes: Iterable[tuple[Any, _Scene]]) -> list[_Scene]:
    """Those that may be computed at once: what became known later is not seen, and what each knew is a part of it."""
    joined = defaultdict[Any, list[_Scene]](list)
    for alike, scene in sorted(scenes, key=lambda each: each[1].until):
        for place, earlier in enumerate(joined[alike]):
            if (both := earlier.join(scene)) is not None:
                joined[alike][place] = both
                break
        else:
            joined[alike].append(scene)
    return [scene for found in joined.values() for scene in found]


class _SceneProof:
    """The features of one scene's events, with the rows of some causes as the store had them."""

    def __init__(self, recomputation: Recomputation, scene: _Scene) -> None:
        self._recomputation, self._scene = recomputation, scene
        self._computed: dict[tuple[ServedCause, ...], EventValues] = {}

    def prove(self, differences: Sequence[FeatureDifference]) -> list[ProvedDifference]:
        """Each of them, by the fewest causes that give what was served."""
        return [self._prove(each) for each in differences]

    def _prove(self, each: FeatureDifference) -> ProvedDifference:
        for causes in self._scene.list_subsets():
            if _is_given(self._compute(causes), each, each.served):
                cause = ServedCause.DEFECT if ServedCause.DEFECT in causes else causes[0]
                return ProvedDifference(difference=each, cause=cause, proof=self._describe(each, causes))
        return _as_defect(each, "the rows that the store held do not give it")

    def _compute(self, causes: tuple[ServedCause, ...]) -> EventValues:
        if causes not in self._computed:
            undone = [row.difference for row in self._scene.causes if row.cause in causes]
            is_behind = ServedCause.STREAM_BEHIND in causes
            self._computed[causes] = self._recomputation.compute(self._scene.answers, undone, is_behind=is_behind)
        return self._computed[causes]

    def _describe(self, each: FeatureDifference, causes: Sequence[ServedCause]) -> dict[str, Any]:
        until = each.answer.behind or each.answer.prediction_time
        known = self._scene.causes[: bisect_right(self._scene.known, until, key=itemgetter(0))]
        rows = [row for row in known if row.cause in causes]
        return {
            **_describe_state(each.answer),
            "causes": [cause.value for cause in causes],
            "rows_in_all": len(rows),
            "rows": [
                {
                    "table": row.difference.table,
                    "identity": row.difference.identity,
                    "served": row.difference.served.row_data if row.difference.served else None,
                    "batch": row.difference.batch.row_data if row.difference.batch else None,
                    **row.evidence,
                }
                for row in rows[:_ROWS_TOLD]
            ],
        }


def _is_given(values: EventValues, each: FeatureDifference, wanted: Value) -> bool:
    return values.get(each.answer.key, {}).get(each.feature) == wanted


def _list_answers(differences: Iterable[FeatureDifference]) -> list[ServedAnswer]:
    return list({each.answer.key: each.answer for each in differences}.values())


def _part(differences: Iterable[FeatureDifference], proved: list[ProvedDifference]) -> _Proofs:
    """What is proved, and the others."""
    done = {id(each.difference) for each in proved}
    return proved, [each for each in differences if id(each) not in done]


def _describe_state(answer: ServedAnswer) -> dict[str, Any]:
    """What the store held, and the time for which it was asked."""
    return {
        "dataset": answer.snapshot,
        "step": answer.changes,
        "known_until": None if answer.known_until is None else answer.known_until.isoformat(),
        "prediction_time": answer.prediction_time.isoformat(),
    }


def _list_stopped(answer: ServedAnswer) -> frozenset[str]:
    """The tables that it says the stream misses something of."""
    return frozenset(why.removesuffix(_NOT_FOLLOWED) for why in answer.reasons if why.endswith(_NOT_FOLLOWED))


def _as_defect(each: FeatureDifference, missing: str) -> ProvedDifference:
    answer = each.answer
    proof = {**_describe_state(answer), "missing": missing, "reasons": list(answer.reasons)}
    return ProvedDifference(difference=each, cause=ServedCause.DEFECT, proof=proof)
