"""Features of events anew, by their definition's own SQL, on batch's rows with some of them as the store had them."""

import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from adapters.connect import Outside
from features import FeatureSet
from features.engine import moment_sql
from features.offline import build_offline
from features.online import OnlineFeatures
from pipeline.partitions import Interval
from pipeline.spec import UseCase
from serving.request import RequestReader
from tasks.build_features.followed_rows import FollowedRow, decode_rows
from tasks.monitor.feature_ledger.answers import EventValues, ServedAnswer, read_values
from tasks.monitor.feature_ledger.known_rows import CleanRows, DatasetObjects, RowDifference
from tasks.monitor.restated import EventKey

_MICROSECOND = timedelta(microseconds=1)
_CACHE_BYTES = 1 << 20


def compute_silently(definition: FeatureSet, lead: timedelta, answers: Sequence[ServedAnswer]) -> EventValues:
    """The features of answers' requests, by the server's own code, from a store that does not answer."""
    reader = RequestReader(definition.request, max_events=1)
    names = [*definition.numeric, *definition.categorical]
    online = OnlineFeatures(definition, lead, cache_bytes=_CACHE_BYTES)
    rows = [reader.read(_to_body(answer), explain=False).rows[0] for answer in answers]
    computed = online.compute_rows(reader.list_events(rows), None).features
    return read_values(computed, frozenset(answer.key for answer in answers), names)


def _to_body(answer: ServedAnswer) -> bytes:
    return json.dumps(answer.request).encode()


@dataclass(frozen=True, kw_only=True)
class Recomputation:
    """Computes the features of a definition on the clean objects of a dataset, with some rows changed."""

    use_case: UseCase
    definition: FeatureSet
    clean: CleanRows
    batch: DatasetObjects
    outside: Outside

    def compute(
        self, answers: Sequence[ServedAnswer], undone: Iterable[RowDifference] = (), *, is_behind: bool = False
    ) -> EventValues:
        """The features of the events of answers, with rows as the store had them.

        Events that then are none are left out. With `is_behind` none knows more than its answer did.
        """
        names = [*self.definition.numeric, *self.definition.categorical]
        moments = [answer.prediction_time for answer in answers]
        knew = {answer.key: answer.behind for answer in answers if is_behind and answer.behind is not None}
        interval = Interval(min([*moments, *knew.values()]), max(moments) + _MICROSECOND)
        definition = know_less(self.definition, knew) if knew else self.definition
        with self._change_files(list(undone)) as tables:
            points, _ = build_offline(definition, tables, interval, self.use_case.time.lead)
        return read_values(points, frozenset(answer.key for answer in answers), names)

    @contextmanager
    def _change_files(self, undone: Sequence[RowDifference]) -> Iterator[dict[str, list[Path]]]:
        with tempfile.TemporaryDirectory() as folder:
            yield {table: self._list_files(table, undone, Path(folder)) for table in self.batch.objects}

    def _list_files(self, table: str, undone: Sequence[RowDifference], folder: Path) -> list[Path]:
        """A table's files; an object with a row that the store had not is written anew, without it."""
        mine = [each for each in undone if each.table == table]
        out = {each.batch for each in mine if each.batch is not None}
        files = []
        for item in self.batch.objects[table].values():
            path = self.outside.lake.local(item.uri)
            if out and any(each in out for each in self.clean.list_rows(table, item)):
                mask = [each not in out for each in self.clean.list_rows(table, item)]
                path = folder / f"{table}-{item.key}.parquet"
                pq.write_table(self.clean.load_table(table, item).filter(pa.array(mask, pa.bool_())), path)
            files.append(path)
        if back := [each.served for each in mine if each.served is not None]:
            files.append(self._write_rows(table, back, folder / f"{table}.parquet"))
        return files

    def _write_rows(self, table: str, rows: Sequence[FollowedRow], path: Path) -> Path:
        texts = [row.row_data for row in rows if row.row_data is not None]
        pq.write_table(decode_rows(self.use_case, table, texts), path)
        return path


def know_less(definition: FeatureSet, until: Mapping[EventKey, datetime]) -> FeatureSet:
    """The definition where some events know nothing beyond a moment: what a server does whose store is behind."""
    events = (f"({_text_sql(key)}, {moment_sql(event)}, {moment_sql(knew)})" for (key, event), knew in until.items())
    key, event = definition.point_sql["entity_key"], definition.point_sql["event_time"]  # of `asked`, as a request is
    less = "least(asked.prediction_time, coalesce(knew.until, asked.prediction_time)) as prediction_time"
    given = f"(values {', '.join(events)}) knew (entity_key, event_time, until)"
    joined = f"{given} on knew.entity_key = {key} and knew.event_time = {event}".replace("{", "{{").replace("}", "}}")
    asked = f"select asked.* replace ({less}) from ({definition.steps['asked']}) asked left join {joined}"  # noqa: S608
    return replace(definition, steps={**definition.steps, "asked": asked})


def _text_sql(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
