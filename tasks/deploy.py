"""Bring the champion to the online server, for use cases that have one."""

from typing import TYPE_CHECKING

from pipeline.handoffs import Release
from pipeline.spec import UseCase

if TYPE_CHECKING:
    from adapters.connect import Outside


def deploy(use_case: UseCase, release: Release, outside: "Outside") -> str:  # what a server will need
    """One sentence that says what was deployed, or that nothing is to be.

    Raises:
        ValueError: an endpoint is configured, which this version cannot deploy to.
    """
    if use_case.endpoint is not None and outside.settings.gateway_url is not None:
        raise ValueError(
            f"{use_case.name}: endpoint is {use_case.endpoint!r}, but no server can be deployed to yet; set it to null"
        )
    serves = f"version {release.champion_version} scores in batch"
    said = f"{use_case.name}: no endpoint is configured, so nothing is deployed; {serves}"
    print(said)  # a task's log is its standard output
    return said
