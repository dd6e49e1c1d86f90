"""What the outside world may answer instead of what was asked for. Only `Unavailable` is mended by asking again."""

# In a workspace: where a stage says what is wrong with its inputs, before it fails.
REFUSAL = "local/refusal.txt"
ENCODING_REMEDY = (
    "its server_encoding is SQL_ASCII, which says nothing of what its bytes mean; move it to a database of UTF8, or"
    " read a view that has convert_from(column::bytea, 'LATIN1')"
)


class Refused(ValueError):  # noqa: N818  # reads as the answer it is
    """A store turned us away: wrong credentials, unknown database or bucket. Says which setting to look at."""


class Unreadable(ValueError):  # noqa: N818  # reads as the answer it is
    """A source's rows cannot be read as they are. Says which column or setting, and what to do."""


class Missing(ValueError):  # noqa: N818  # reads as the answer it is
    """A store has nothing under this name: neither a mistake in it nor a lost artefact is mended by asking again."""


class Corrupt(RuntimeError):  # noqa: N818  # reads as the answer it is
    """Stored bytes are not the bytes that were written."""


class FencedOut(RuntimeError):  # noqa: N818  # reads as the answer it is
    """A later run of the same piece of work has begun; this one may not commit."""


class Unavailable(ConnectionError):  # noqa: N818  # says what the matter is
    """A server did not answer; the same call may succeed later."""


class SlotGone(Missing):
    """A replication slot is not there, or lost what it was to keep: what was missed is in the tables alone."""


class PublicationGone(Missing):
    """A publication is not there, or was made anew: what was written in between was not published."""


class SlotInUse(Unavailable):
    """Another follower holds the replication slot; it may leave."""
