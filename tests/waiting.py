"""Waiting for what real parts come to, as a test's condition."""

from collections.abc import Callable

from adapters.retrying import wait_until


def until(true: Callable[[], bool], seconds: float = 120) -> None:
    """Until it is true; a machine that is slow is waited for, what never comes fails."""
    assert wait_until(true, within_seconds=seconds), f"did not happen in {seconds:.0f} seconds"
