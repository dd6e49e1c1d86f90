"""What a step says when the data itself is wrong, so that trying again would give the same."""


class BadData(ValueError):  # noqa: N818  # says what the matter is, not that something broke
    """The data is not fit to go on with. Never retried; the alert was raised where it was found."""
