"""The series that are stored as they were before a move, and what of their later parts lay before the new split."""

from collections.abc import Collection, Iterable
from itertools import islice


class UnsettledSeries:
    """Texts of keys. Where all that lay apart before the split is *carried*, a later part can do without a new cut."""

    def __init__(self) -> None:
        self._texts = dict[str, None]()  # the largest first: those of them that change cost most
        self._payloads = dict[str, list[bytes]]()
        self._is_carried = set[str]()

    def __len__(self) -> int:
        """How many there are."""
        return len(self._texts)

    def carry(self, text: str, payloads: Iterable[bytes]) -> None:
        """Keep what lay apart of a series, behind what was carried already."""
        self._payloads[text] = [*self._payloads.get(text, ()), *payloads]

    def get_carried(self, text: str) -> list[bytes]:
        """What its later part begins with; nothing of one that is not unsettled."""
        return self._payloads.get(text, [])

    def mark(self, texts: Collection[str], carried: Collection[str]) -> None:
        """These are unsettled from now on, and no others; of these all is carried, where it was at the moves before."""
        partly = self._texts.keys() - self._is_carried
        self._is_carried = {*carried} & {*texts} - partly
        self._payloads = {text: self._payloads[text] for text in self._is_carried & self._payloads.keys()}
        sizes = {text: sum(map(len, payloads)) for text, payloads in self._payloads.items()}
        self._texts = dict.fromkeys(sorted(texts, key=lambda text: (-sizes.get(text, 0), text)))

    def find(self, texts: Collection[str]) -> set[str]:
        """Those of some texts that are unsettled."""
        return self._texts.keys() & texts

    def find_uncarried(self, texts: Collection[str]) -> set[str]:
        """Those of some texts that are unsettled, and of which not all is carried."""
        return self.find(texts) - self._is_carried

    def list_first(self, most: int) -> list[str]:
        """Some of them."""
        return [*islice(self._texts, most)]

    def settle(self, text: str) -> None:
        """It is cut anew."""
        self._texts.pop(text, None)
        self._payloads.pop(text, None)
        self._is_carried.discard(text)
