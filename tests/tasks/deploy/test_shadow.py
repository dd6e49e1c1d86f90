"""Mirrored requests are requests that somebody sent."""

from tests.tasks.rollouts import challenge
from tests.tasks.server_room import EVENTS


def test_what_a_client_asked_under_one_id_again_and_again_is_mirrored_as_requests_that_were_sent(first, monkeypatch):
    through, direct, sizes = first._through, first._direct, []

    def beside_another(use_case, event):
        first._answer("1", [first.events[len(first.seen) % EVENTS]], "always the same", "stable")
        return through(use_case, event)

    def measured(use_case, version, events, *, request_id, slot):
        if slot == "shadow":
            sizes.append(len(events))
        return direct(use_case, version, events, request_id=request_id, slot=slot)

    monkeypatch.setattr(first, "_through", beside_another)
    monkeypatch.setattr(first, "_direct", measured)
    assert "version 2 answers everyone" in challenge(first)
    same = "from online_answers where request_id = 'always the same' and model_version = '1'"
    assert first.outside.warehouse.query(f"select count(*) as rows {same}")[0]["rows"] > 10
    assert set(sizes) == {1}
