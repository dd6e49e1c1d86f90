"""Gives each difference its cause, and proves it: with the rows of that cause as the store had them, and no others, the
definition gives what was served, to the bit.

It must also give batch's value on batch's rows, and what was served on all that the store held. Where it does not, or
where a row without a cause is needed for it, the difference is a defect.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import combinations
from typing import Any

from tasks.monitor.served.answers import EventValues, FeatureDifference, ServedAnswer, Value
from tasks.monitor.served.known_rows import DatasetObjects, KnownRows, RowDifference
from tasks.monitor.served.recompute import Recomputation, compute_silently
from tasks.monitor.served.row_causes import CauseFinder, KnownState, RowCause, ServedCause

_NOT_FOLLOWED = " is not followed"
_ROWS_TOLD = 5  # of a proof


@dataclass(frozen=True, kw_only=True)
class ProvedDifference:
    """A difference, its cause, and the proof; of a defect, what could not be proved."""

    difference: FeatureDifference
    cause: ServedCause
    proof: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class _Scene:
    """Answers that were given on the same rows, and why each of these that differs from batch does."""

    answers: list[ServedAnswer]
    state: KnownState
    causes: list[RowCause]

    def list_causes(self) -> list[ServedCause]:
        """Those that could be one."""
        present = {row.cause for row in self.causes}
        if self.state.behind is not None:
            present.add(ServedCause.STREAM_BEHIND)
        return [cause for cause in ServedCause if cause in present]


@dataclass(frozen=True, kw_only=True)
class DifferenceProver:
    """Proves the differences of one definition's answers; `find_dataset` gives what an older dataset was made of."""

    known: KnownRows
    causes: CauseFinder
    recomputation: Recomputation
    find_dataset: Callable[[str], DatasetObjects]

    def prove(self, differences: Sequence[FeatureDifference]) -> list[ProvedDifference]:
        """Each of them, once."""
        by_answer = defaultdict[tuple[str, datetime], list[FeatureDifference]](list)
        for each in differences:
            by_answer[each.answer.key].append(each)
        answers = [found[0].answer for found in by_answer.values()]
        silent = [answer for answer in answers if answer.is_store_silent]
        lost = [answer for answer in answers if not answer.is_store_silent and not _is_state_known(answer)]
        proved = self._prove_silent(silent, by_answer)
        proved += [
            _as_defect(each, "what the store held was not logged") for answer in lost for each in by_answer[answer.key]
        ]
        for scene in self._make_scenes([a for a in answers if not a.is_store_silent and _is_state_known(a)]):
            mine = [each for answer in scene.answers for each in by_answer[answer.key]]
            proved += _SceneProof(self.recomputation, scene).prove(mine)
        return proved

    def _prove_silent(
        self, answers: Sequence[ServedAnswer], by_answer: Mapping[Any, Sequence[FeatureDifference]]
    ) -> list[ProvedDifference]:
        if not answers:
            return []
        lead = self.recomputation.use_case.time.lead
        values = compute_silently(self.recomputation.definition, lead, answers)
        return [
            ProvedDifference(
                difference=each, cause=ServedCause.STORE_SILENT, proof={"reasons": list(each.answer.reasons)}
            )
            if _is_given(values, each, each.served)
            else _as_defect(each, "a store that is silent does not give it")
            for answer in answers
            for each in by_answer[answer.key]
        ]

    def _make_scenes(self, answers: Iterable[ServedAnswer]) -> list[_Scene]:
        """Answers by what they knew: of the rows that differ, those of their time."""
        together = defaultdict[Any, list[ServedAnswer]](list)
        differing = dict[tuple[str, int], list[RowDifference]]()
        rows_of = dict[Any, list[RowDifference]]()
        for answer in answers:
            assert answer.snapshot is not None
            assert answer.changes is not None
            store = answer.snapshot, answer.changes
            if store not in differing:
                then = self.find_dataset(answer.snapshot)
                differing[store] = sorted(self.known.find_differing(then, answer.changes), key=_moment)
            mine = [each for each in differing[store] if each.available_at <= answer.prediction_time]
            scene = answer.snapshot, answer.behind, _list_stopped(answer), tuple(mine)
            together[scene].append(answer)
            rows_of[scene] = mine
        return [self._make_scene(found, rows_of[scene], scene) for scene, found in together.items()]

    def _make_scene(self, answers: list[ServedAnswer], rows: Sequence[RowDifference], scene: Any) -> _Scene:
        snapshot, behind, stopped, _ = scene
        state = KnownState(
            then=self.find_dataset(snapshot),
            changes=max(answer.changes for answer in answers if answer.changes is not None),
            behind=behind,
            stopped=stopped,
        )
        return _Scene(answers=answers, state=state, causes=[self.causes.find_cause(row, state) for row in rows])


class _SceneProof:
    """The features of one scene's events, with the rows of some causes as the store had them."""

    def __init__(self, recomputation: Recomputation, scene: _Scene) -> None:
        self._recomputation, self._scene = recomputation, scene
        self._computed: dict[tuple[ServedCause, ...], EventValues] = {}

    def prove(self, differences: Sequence[FeatureDifference]) -> list[ProvedDifference]:
        """Each of them, by the fewest causes that give what was served."""
        return [self._prove(each) for each in differences]

    def _prove(self, each: FeatureDifference) -> ProvedDifference:
        present = tuple(self._scene.list_causes())
        if not _is_given(self._compute(()), each, each.batch):
            return _as_defect(each, "batch's rows do not give batch's value")
        if not _is_given(self._compute(present), each, each.served):
            return _as_defect(each, "the rows that the store held do not give it")
        for causes in _list_subsets(present):
            if _is_given(self._compute(causes), each, each.served):
                cause = ServedCause.DEFECT if ServedCause.DEFECT in causes else causes[0]
                return ProvedDifference(difference=each, cause=cause, proof=self._describe(each, causes))
        raise AssertionError("all of them together gave it")

    def _compute(self, causes: tuple[ServedCause, ...]) -> EventValues:
        if causes not in self._computed:
            undone = [row.difference for row in self._scene.causes if row.cause in causes]
            behind = self._scene.state.behind if ServedCause.STREAM_BEHIND in causes else None
            self._computed[causes] = self._recomputation.compute(self._scene.answers, undone, behind)
        return self._computed[causes]

    def _describe(self, each: FeatureDifference, causes: Sequence[ServedCause]) -> dict[str, Any]:
        answer, rows = each.answer, [row for row in self._scene.causes if row.cause in causes]
        return {
            "dataset": answer.snapshot,
            "step": answer.changes,
            "known_until": None if answer.known_until is None else answer.known_until.isoformat(),
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


def _list_subsets(causes: Sequence[ServedCause]) -> Iterator[tuple[ServedCause, ...]]:
    for count in range(1, len(causes) + 1):
        yield from combinations(causes, count)


def _is_given(values: EventValues, each: FeatureDifference, wanted: Value) -> bool:
    return values.get(each.answer.key, {}).get(each.feature) == wanted


def _is_state_known(answer: ServedAnswer) -> bool:
    return answer.snapshot is not None and answer.changes is not None


def _list_stopped(answer: ServedAnswer) -> frozenset[str]:
    """The tables that it says the stream misses something of."""
    return frozenset(why.removesuffix(_NOT_FOLLOWED) for why in answer.reasons if why.endswith(_NOT_FOLLOWED))


def _moment(difference: RowDifference) -> datetime:
    return difference.available_at


def _as_defect(each: FeatureDifference, missing: str) -> ProvedDifference:
    answer = each.answer
    proof = {"missing": missing, "dataset": answer.snapshot, "step": answer.changes, "reasons": list(answer.reasons)}
    return ProvedDifference(difference=each, cause=ServedCause.DEFECT, proof=proof)
