import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional

from models import memory, population
from models.encoder import Encoder
from models.ensemble import Recipe, rows_of, start_member
from models.memory import chunk_members, member_bytes
from models.population import Member, Population, stack_members
from models.training import TrainingRows, deterministic, predict_scores
from pipeline.settings import REPOSITORY
from tests.models.synthetic import CATEGORICAL, NUMERIC, table
from tests.models.test_training import CPU, recipe

TOLERANCE = 1e-5  # of a weight: a stack may sum in another order than a lone member
NETWORKS = ("mlp", "tabm")


@pytest.fixture(scope="module", params=["binary", "regression"])
def encoded(request) -> tuple[str, Encoder, TrainingRows]:
    rows = table(1000, kind=request.param)
    encoder = Encoder.fit(rows, numeric=NUMERIC, categorical=CATEGORICAL)
    return request.param, encoder, rows_of(encoder, rows, CPU)


def begin(encoded, seed: int = 1, **changes) -> Member:
    kind, encoder, rows = encoded
    return start_member(recipe(kind=kind, **changes), encoder, rows, seed=seed)


def train(rows: TrainingRows, *members: Member, epochs: int = 2, threads: int = 1) -> None:
    with deterministic(1):
        trained = Population(rows, threads=threads)
        for _ in range(epochs):
            trained.train_epoch(members)


def difference(one: Member, other: Member) -> float:
    pairs = zip(one.model.parameters(), other.model.parameters(), strict=True)
    return max(float((a - b).detach().abs().max()) for a, b in pairs)


def various(encoded, network: str) -> list[Member]:
    """Members that differ in everything a member may differ in, two shapes among them."""
    return [
        begin(encoded, network=network),
        begin(encoded, network=network, dropout=0.4, learning_rate=1e-3),
        begin(encoded, network=network, dropout=0.0, weight_decay=0.3, label_smoothing=0.1),
        begin(encoded, seed=2, network=network),
        begin(encoded, seed=3, network=network, hidden_units=16, layers=1),
    ]


@pytest.mark.parametrize("network", NETWORKS)
def test_a_member_trained_alone_ends_as_it_does_inside_a_population(encoded, network):
    together, alone = various(encoded, network), various(encoded, network)
    train(encoded[2], *together)
    for member in alone:
        train(encoded[2], member)
    assert max(difference(*pair) for pair in zip(together, alone, strict=True)) < TOLERANCE
    assert [a.curve for a in alone] == [pytest.approx(t.curve, abs=TOLERANCE) for t in together]
    assert difference(together[0], together[1]) > 100 * TOLERANCE, "their settings are their own"


def test_sabotage_members_that_read_each_others_rows_do_not(encoded, monkeypatch):
    together, alone = various(encoded, "mlp"), various(encoded, "mlp")
    monkeypatch.setattr(population._Stack, "_own", lambda _, rows: rows[:1])
    train(encoded[2], *together)
    monkeypatch.undo()
    train(encoded[2], alone[3])
    assert difference(together[3], alone[3]) > 100 * TOLERANCE


def test_without_dropout_a_member_ends_where_torchs_own_optimiser_takes_a_plain_network(encoded):
    member, plain, rows = begin(encoded, dropout=0.0), begin(encoded, dropout=0.0), encoded[2]
    train(rows, member, epochs=3)
    settings, model = plain.config, plain.model
    optimiser = torch.optim.AdamW(model.parameters(), lr=1.0, weight_decay=settings.weight_decay)
    steps = -(-len(rows) // settings.batch_rows)
    for epoch in range(3):
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(settings.seed * 100_003 + epoch))
        for i, batch in enumerate(order.split(settings.batch_rows)):
            optimiser.param_groups[0]["lr"] = settings.rate(epoch * steps + i, steps)
            output, label = model.judged(model.preprocess(rows.numbers[batch], rows.codes[batch])), rows.label[batch]
            if model.config.kind == "binary":
                loss = functional.binary_cross_entropy_with_logits(output, label)
            else:
                loss = functional.smooth_l1_loss(output, (label - model.label_mean) / model.label_scale, beta=0.1)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    assert difference(member, plain) < 1e-4  # some thirty steps apart


@pytest.mark.parametrize("network", NETWORKS)
def test_products_in_bf16_as_on_a_card_train_to_about_the_same(encoded, network, monkeypatch):
    single, halved, autocast = various(encoded, network), various(encoded, network), torch.autocast
    train(encoded[2], *single)
    monkeypatch.setattr(torch, "autocast", lambda device, dtype, **_: autocast(device, dtype))
    train(encoded[2], *halved)
    for one, other in zip(single, halved, strict=True):
        assert {parameter.dtype for parameter in other.model.parameters()} == {torch.float32}
        assert one.curve != other.curve, "both were trained at single precision"
        assert other.curve == pytest.approx(one.curve, rel=0.01)


@pytest.mark.parametrize("network", NETWORKS)
def test_one_that_joins_later_and_one_that_leaves_change_nothing_for_the_others(encoded, network):
    rows, (first, second, late) = encoded[2], (begin(encoded, seed=s, network=network) for s in (1, 1, 2))
    train(rows, first, second, epochs=1)
    train(rows, first, late, epochs=2)
    alone = begin(encoded, network=network), begin(encoded, seed=2, network=network)
    train(rows, alone[0], epochs=3)
    train(rows, alone[1], epochs=2)
    assert [m.epoch for m in (first, second, late)] == [3, 1, 2]
    assert max(difference(first, alone[0]), difference(late, alone[1])) < TOLERANCE


def test_threads_take_chunks_and_change_no_bit(encoded, monkeypatch):
    monkeypatch.setattr(population, "chunk_members", lambda *_: 2)
    one, two = various(encoded, "mlp"), various(encoded, "mlp")
    train(encoded[2], *one)
    train(encoded[2], *two, threads=2)
    assert max(difference(*pair) for pair in zip(one, two, strict=True)) == 0.0
    assert [m.curve for m in one] == [m.curve for m in two]


@pytest.mark.parametrize("network", NETWORKS)
def test_a_population_scores_as_its_members_do(encoded, network):
    members, rows = various(encoded, network), encoded[2]
    train(rows, *members)
    found = Population(rows).scores(members, rows)
    for member, score in zip(members, found, strict=True):
        assert np.abs(score - predict_scores(member.model, rows.numbers, rows.codes)).max() < 1e-5


@pytest.mark.parametrize("share", [0.1, 0.4])
def test_dropout_drops_its_share_and_keeps_the_mean(encoded, share):
    stacked = population._Stack([begin(encoded), begin(encoded, dropout=share)], encoded[2])
    hidden = stacked.activation(torch.full((2, 400, 500), 3.0))
    assert stacked.activation.gain is not None
    dropped = (hidden * stacked.activation.gain)[1] / functional.silu(torch.tensor(3.0))
    assert float((dropped == 0).float().mean()) == pytest.approx(share, abs=0.005)
    assert float(dropped.mean()) == pytest.approx(1.0, abs=0.005)
    assert len(dropped.unique()) == 2


def test_a_masked_silu_has_the_gradient_it_should(encoded):
    values = torch.randn(3, 4, 5, dtype=torch.float64, requires_grad=True)
    mask = (torch.rand(3, 4, 5) > 0.3).double()
    assert torch.autograd.gradcheck(lambda v: population._MaskedSiLU.apply(v, mask), (values,))


def test_one_that_diverges_does_not_touch_its_neighbours(encoded):
    good, bad, alone = begin(encoded), begin(encoded, learning_rate=1e30), begin(encoded)
    train(encoded[2], good, bad)
    train(encoded[2], alone)
    assert not np.isfinite(bad.curve).all() or max(bad.curve) > 1e6
    assert difference(good, alone) < TOLERANCE


def test_stacking_keeps_every_parameter_in_place(encoded):
    members = [begin(encoded, seed=seed) for seed in (1, 2, 3)]
    stacked = stack_members([m.model for m in members])
    for k, member in enumerate(members):
        for own, of_all in zip(member.model.parameters(), stacked.parameters(), strict=True):
            assert torch.equal(own, of_all[k])


MEASURE = """
import gc, os, re, sys
from pathlib import Path
from models.population import Member, Population
import models.population as population
from tests.models.test_population import large
population.chunk_members = lambda *_: 10_000
counts = [int(count) for count in sys.argv[2:]]
while len(counts) > 1:  # one process a count, which have loaded torch once and used nothing of it
    if os.fork() == 0: counts = counts[:1]
    else: os.wait(); counts = counts[1:]
members, rows = large(counts[0], sys.argv[1])
gc.collect()
Population(rows).train_epoch(members[:1])  # what the first step of all loads
def size(name): return int(re.search(name + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024
Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
before = size("VmRSS")
Population(rows).train_epoch(members)
print(size("VmHWM") - before)
"""


def large(count: int, network: str) -> tuple[list[Member], TrainingRows]:
    rows = table(1024)
    encoder = Encoder.fit(rows, numeric=NUMERIC, categorical=CATEGORICAL)
    on = rows_of(encoder, rows, CPU)
    wide: Recipe = replace(recipe(), network=network, hidden_units=128, batch_rows=1024)
    return [start_member(wide, encoder, on, seed=1) for _ in range(count)], on


@pytest.mark.usefixtures("processes")
@pytest.mark.parametrize("network", NETWORKS)
def test_the_memory_a_member_needs_is_predicted(network):
    few, many = (8, 32) if network == "mlp" else (2, 10)
    command = [sys.executable, "-c", MEASURE, network, str(few), str(many)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=REPOSITORY)
    used = [int(line) for line in done.stdout.splitlines()]
    measured = (used[1] - used[0]) / (many - few)
    predicted = member_bytes(large(1, network)[0][0].model, 1024)
    print(f"{network}: predicted {predicted / 2**20:.1f} MiB, measured {measured / 2**20:.1f} MiB a member")
    assert 0.6 * predicted < measured < 1.15 * predicted


def test_how_many_step_together_follows_from_the_memory(encoded, monkeypatch):
    model = begin(encoded).model
    each = member_bytes(model, 256)
    monkeypatch.setattr(memory, "free_bytes", lambda _: 100 * each)
    cuda = torch.device("cuda")
    assert chunk_members(model, 256, cuda) == 80
    monkeypatch.setattr(memory, "free_bytes", lambda _: each // 2)
    assert chunk_members(model, 256, cuda) == 1
    monkeypatch.setattr(memory, "_CACHE_BYTES", 5 * each)
    assert chunk_members(model, 256, CPU) == 5
