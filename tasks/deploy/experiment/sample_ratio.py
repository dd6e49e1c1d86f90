"""Whether each version answered its share of what the gateway gave out: where not, the rows that are compared are not
those that were drawn, and no difference between them says anything. Pure, so that every case is a test.

**Key.** The gateway draws once for an entity, or for a body where none was named. So a key counts by its first answer:
by chance, with the share that was in force then, it was the treatment's.

**Any time.** Each of a few bets holds that so many times as many of the treatment's keys are left as of the control's.
It multiplies its wealth by what the key's version is as likely as it says, against what the share says. That is
1 + lambda * (treated - share) with a lambda that is known before the key, so where the ratio holds, no bet gains
by expectation, whatever the share does meanwhile, and their mean passes 1 / level with probability `level` at most, at
all looks together (Ville 1939; Waudby-Smith, Ramdas 2024, Estimating means of bounded random variables by betting).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

RATIO_LEVEL = 0.001  # how often a ratio that holds is called a mismatch, over all looks
# Logarithms of how many times as many are left: 2 % more or fewer, and each twice the one before.
_BETS = tuple(sign * 0.02 * (1 << doubled) for doubled in range(7) for sign in (-1, 1))


@dataclass(frozen=True, kw_only=True)
class KeyCount:
    """Keys whose first answer was given under one share of the treatment, and how many of these it gave."""

    share: float
    keys: int
    treated: int


def find_mismatch(answered: Sequence[KeyCount], known: Sequence[KeyCount]) -> str | None:
    """What does not hold: of all keys that were answered, or of those of the events that are compared."""
    for what, counts in (("keys that were answered", answered), ("keys of events with a known outcome", known)):
        if is_ratio_broken(counts, level=RATIO_LEVEL / 2):
            keys, treated = sum(count.keys for count in counts), sum(count.treated for count in counts)
            expected = sum(count.keys * count.share for count in counts)
            return (
                f"of {keys} {what} the treatment gave {treated} ({treated / keys:.2%}),"
                f" where {expected:.0f} ({expected / keys:.2%}) were drawn for it"
            )
    return None


def is_ratio_broken(counts: Sequence[KeyCount], *, level: float) -> bool:
    """Whether the shares do not hold, asked as often as one likes: wrong in at most `level` of all sequences."""
    wealth = [
        sum(count.treated * bet - count.keys * math.log1p(count.share * math.expm1(bet)) for count in counts)
        for bet in _BETS
    ]
    greatest = max(wealth)
    mean = greatest + math.log(sum(math.exp(each - greatest) for each in wealth) / len(wealth))
    return mean >= -math.log(level)
