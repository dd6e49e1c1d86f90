"""The series that are stored as they were before a move, and what of their later parts lay before the new split."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import islice

from features.series import Series

_CARRIED_BYTES = 16 << 10  # that are cut at once
_FEW = 32  # small ones, where something else waits
_LARGE_BYTES = 512  # carried by one: each change of it writes them again, so that a new cut is soon worth its work


class UnsettledSeries:
    """Texts of keys. Where all that lay apart before the split is *carried*, a later part can do without a new cut."""

    def __init__(self, series: Sequence[Series]) -> None:
        self._stored = {each.name: dict[str, bool]() for each in series}  # whether it has a later part, by text
        self._lasting = {each.name for each in series if each.reach is None and each.is_parted}
        self._texts = dict[str, dict[str, None]]()  # by series; first what is largest: where that changes it costs most
        self._payloads = dict[str, list[bytes]]()
        self._is_carried = set[str]()

    def __len__(self) -> int:
        """How many there are."""
        return sum(map(len, self._texts.values()))

    def carry(self, text: str, payloads: Iterable[bytes]) -> None:
        """Keep what lay apart of a series, behind what was carried already."""
        self._payloads[text] = [*self._payloads.get(text, ()), *payloads]

    def get_carried(self, text: str) -> list[bytes]:
        """What its later part begins with; nothing of one that is not unsettled."""
        return self._payloads.get(text, [])

    def note_stored(self, settled: Mapping[str, bytes | None], recent: Mapping[str, bytes | None]) -> None:
        """What is handed on is stored."""
        for text in settled:
            self._stored[name_series(text)].setdefault(text, False)
        for text, payload in recent.items():
            self._stored[name_series(text)][text] = payload is not None
            if payload is None and settled.get(text, b"") is None:  # nothing is left of it
                del self._stored[name_series(text)][text]

    def mark_stored(self, stored: Iterable[tuple[str, bool, bool]]) -> None:
        """These are all that are stored, whether each has a later part, and is unsettled: nothing is carried."""
        elsewhere = set[str]()
        for text, is_later, is_elsewhere in stored:
            self._stored[name_series(text)][text] = is_later
            if is_elsewhere:
                elsewhere.add(text)
        self._mark(elsewhere, set())

    def mark_moved(self, cut: Collection[str], carried: Collection[str]) -> None:
        """After a move all but some are unsettled, and of the series of these names all is carried.

        A series that lasts for ever, and has no later part, is as it should be, unless it was unsettled before.
        """
        texts, of_carried = set[str](), set[str]()
        for name, stored in self._stored.items():
            left = stored.keys() - cut
            if name in self._lasting:
                left = {text for text in left if stored[text]} | self.find(left)
            texts |= left
            if name in carried:
                of_carried |= left
        self._mark(texts, of_carried)

    def _mark(self, texts: set[str], carried: set[str]) -> None:
        """These are unsettled from now on, and no others; of these all is carried, where it was at the moves before."""
        before = {text for of_series in self._texts.values() for text in of_series}
        self._is_carried = carried - (before - self._is_carried)
        self._payloads = {text: self._payloads[text] for text in self._is_carried & self._payloads.keys()}
        sizes = {text: sum(map(len, payloads)) for text, payloads in self._payloads.items()}
        by_series = defaultdict[str, list[str]](list)
        for text in sorted(texts, key=lambda text: (-sizes.get(text, 0), text)):
            by_series[name_series(text)].append(text)
        sized = {name: sum(sizes.get(text, 0) for text in found) / len(found) for name, found in by_series.items()}
        names = sorted(by_series, key=lambda name: (-sized[name], name))
        self._texts = {name: dict.fromkeys(by_series[name]) for name in names}

    def find(self, texts: Collection[str]) -> set[str]:
        """Those of some texts that are unsettled."""
        return {text for text in texts if text in self._texts.get(name_series(text), ())}

    def find_uncarried(self, texts: Collection[str]) -> set[str]:
        """Those of some texts that are unsettled, and of which not all is carried."""
        return self.find(texts) - self._is_carried

    def list_first(self, most: int, *, is_busy: bool) -> list[str]:
        """Some of one series: a query of each that has some would take longer than all else.

        Of large ones fewer: whoever reads the store decodes all of each anew, and answers nothing meanwhile. Of small
        ones a few, where something else waits.
        """
        least = _LARGE_BYTES if is_busy else 0
        for found in self._texts.values():
            first, carried = list[str](), 0
            for text in islice(found, most):
                size = self._count_carried(text)
                carried += size
                if size < least or (first and carried > _CARRIED_BYTES):
                    break
                first.append(text)
            if first:
                return first
        return list(islice(next((found for found in self._texts.values() if found), ()), min(most, _FEW)))

    def _count_carried(self, text: str) -> int:
        return sum(map(len, self._payloads.get(text, ())))

    def settle(self, text: str) -> None:
        """It is cut anew."""
        self._texts.get(name_series(text), {}).pop(text, None)
        self._payloads.pop(text, None)
        self._is_carried.discard(text)


def name_series(text: str) -> str:
    """The series of the text of a key."""
    return text.partition("[")[0]
