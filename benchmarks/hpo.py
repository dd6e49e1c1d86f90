"""Searching for hyperparameters: our population against Optuna with a DataLoader, the same trials on the same rows.

    python -m benchmarks.hpo [--rows 300000] [--trials 16] [--epochs 4] [--rounds 4]

Every contestant trains the same 16 configurations (Optuna's random sampler, seeded) of a perceptron of 2 x 64 for 4
epochs of 300,000 rows x 40 features in batches of 1,024, with the same schedule of learning rates, and judges each
epoch by AUC on 60,000 other rows. They take turns (a round: the baselines a share of their trials, ours all), so that
a busy machine is busy for all; the DataLoader has whichever numbers of threads and workers a pilot finds fastest.
"""

import argparse
import contextlib
import io
import os
from functools import cache
from pathlib import Path
from statistics import median

import numpy as np
import optuna
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks import alone
from benchmarks.table import Measured, keep, table
from models.metrics import compute_metric
from models.network import NetworkConfig
from models.networks import build_network
from models.population import Member, Population
from models.training import FitConfig, TrainingRows, best_device
from pipeline.settings import REPOSITORY
from pipeline.spec import UseCase, use_cases
from tasks.train.study import Params, read_attempt
from tasks.train.trainer import Trainer

FEATURES, BATCH_ROWS, UNITS, LAYERS = 40, 1024, 64, 2
RUNGS, KEEP_SHARE = (1, 2), 0.5
BOUNDS = {"learning_rate": (1e-3, 1e-2), "weight_decay": (1e-4, 1e-1), "dropout": (0.0, 0.3)}
SEED = 1  # of every trial, for every contestant: what differs is the configuration, as in our own search


def halves(rows: int) -> tuple[TrainingRows, TrainingRows]:
    """(training rows, a fifth as many validation rows) of one make, on the device."""
    both = synthetic(rows + rows // 5)
    train, validation = (
        TrainingRows(*(t[part] for t in (both.numbers, both.codes, both.label)))
        for part in (slice(rows), slice(rows, None))
    )
    return train, validation


def synthetic(rows: int, seed: int = 7) -> TrainingRows:
    """Correlated, heavy-tailed and discrete columns, a label with interactions and noise, a few values missing."""
    draw = np.random.default_rng(seed)
    common = draw.normal(size=(rows, 5))
    x = common @ draw.normal(size=(5, FEATURES)) * 0.5 + draw.normal(size=(rows, FEATURES))
    x[:, 10:15] = np.exp(x[:, 10:15] / 2)
    x[:, 15:20] = np.round(x[:, 15:20])
    signal = x[:, 0] * x[:, 1] + np.sin(2 * x[:, 2]) + np.maximum(x[:, 3], x[:, 4]) + 0.5 * np.log(x[:, 10])
    signal += (x[:, 15] > 1) * x[:, 5] + x[:, 6:10].sum(axis=1) / 4
    label = signal - np.median(signal) + draw.logistic(size=rows) > 0.8
    x = (x - x.mean(axis=0)) / x.std(axis=0)
    no_codes = np.zeros((rows, 0), np.int64)
    return TrainingRows.on(best_device(), x.astype(np.float32), no_codes, label.astype(np.float64))


def ask_trial(study: optuna.Study) -> tuple[optuna.Trial, dict[str, float]]:
    """The next configuration."""
    trial = study.ask()
    return trial, {name: trial.suggest_float(name, *bounds, log=bounds[0] > 0) for name, bounds in BOUNDS.items()}


def new_study(pruner: optuna.pruners.BasePruner | None = None) -> optuna.Study:
    """A study in memory: what storage costs is the same for all, and not what is measured."""
    sampler = optuna.samplers.RandomSampler(seed=1)
    return optuna.create_study(direction="maximize", sampler=sampler, pruner=pruner or optuna.pruners.NopPruner())


def settings(params: dict[str, float], epochs: int, seed: int) -> FitConfig:
    """How a configuration is trained."""
    return FitConfig(
        learning_rate=params["learning_rate"], weight_decay=params["weight_decay"], label_smoothing=0.0,
        batch_rows=BATCH_ROWS, schedule_epochs=epochs, seed=seed,
    )  # fmt: skip


def plain_network(dropout: float) -> nn.Sequential:
    """The perceptron, as one writes it."""
    layers: list[nn.Module] = []
    for before in (FEATURES, *[UNITS] * (LAYERS - 1)):
        layers += [nn.Linear(before, UNITS), nn.SiLU(), nn.Dropout(dropout)]
    return nn.Sequential(*layers, nn.Linear(UNITS, 1))


class Sequential:
    """Optuna's loop, one trial after another: with a DataLoader, or with slices of resident tensors."""

    def __init__(
        self, train: TrainingRows, validation: TrainingRows, *, workers: int | None, threads: int, pruner: bool
    ) -> None:
        self.train, self.validation = train, validation
        self.workers, self.threads, self.device = workers, threads, train.label.device
        self.label = validation.label.cpu().numpy()
        self.study = new_study(optuna.pruners.SuccessiveHalvingPruner(1, 2) if pruner else None)
        self.aucs: list[float] = []

    def batches(self, seed: int) -> "list[tuple[Tensor, Tensor]] | DataLoader[tuple[Tensor, ...]]":
        """An epoch's batches, shuffled."""
        dice = torch.Generator().manual_seed(seed)
        if self.workers is None:
            order = torch.randperm(len(self.train), generator=dice).to(self.device)
            x, y = self.train.numbers[order], self.train.label[order]
            return list(zip(torch.split(x, BATCH_ROWS), torch.split(y, BATCH_ROWS), strict=True))
        dataset = TensorDataset(self.train.numbers.cpu(), self.train.label.cpu())
        pinned = self.device.type == "cuda"
        return DataLoader(
            dataset, BATCH_ROWS, shuffle=True, generator=dice, num_workers=self.workers, pin_memory=pinned
        )

    def run(self, trials: int, epochs: int) -> None:
        """Some more trials."""
        before = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        for _ in range(trials):
            self._trial(epochs)
        torch.set_num_threads(before)

    def _trial(self, epochs: int) -> None:
        trial, params = ask_trial(self.study)
        torch.manual_seed(SEED)
        network, config = plain_network(params["dropout"]).to(self.device), settings(params, epochs, SEED)
        optimiser = torch.optim.AdamW(network.parameters(), weight_decay=config.weight_decay, fused=True)
        loss_of, steps = nn.BCEWithLogitsLoss(), -(-len(self.train) // BATCH_ROWS)
        auc = 0.0
        for epoch in range(epochs):
            network.train()
            for i, (x, y) in enumerate(self.batches(SEED + epoch)):
                optimiser.param_groups[0]["lr"] = config.rate(epoch * steps + i, steps)
                optimiser.zero_grad()
                logits = network(x.to(self.device, non_blocking=True)).squeeze(1)
                loss_of(logits, y.to(self.device, non_blocking=True)).backward()
                optimiser.step()
            network.eval()
            with torch.no_grad():
                auc = compute_metric("auc", network(self.validation.numbers).squeeze(1).cpu(), self.label)
            trial.report(auc, epoch + 1)
            if epoch + 1 < epochs and trial.should_prune():
                self.study.tell(trial, state=optuna.trial.TrialState.PRUNED)
                return
        self.aucs.append(auc)
        self.study.tell(trial, auc)


class Resident(Trainer):
    """The product's trainer over rows that are encoded already."""

    def __init__(self, case: UseCase, train: TrainingRows, validation: TrainingRows, *, threads: int) -> None:
        self._use_case, self._validation, self.device = case, validation, train.label.device
        self._label = validation.label.double().cpu().numpy()
        self._population = Population(train, threads=threads)

    def begin(self, params: Params) -> Member:
        """A configuration as a member of a population."""
        return member(params, self._use_case.train.rungs[-1])


def together(
    train: TrainingRows, validation: TrainingRows, *, trials: int, epochs: int, threads: int, halving: bool
) -> list[float]:
    """Ours, by the product's own search: all asked for at once; the AUC of each trial that went through."""
    source, study = new_study(), optuna.create_study()
    for _ in range(trials):
        study.enqueue_trial(ask_trial(source)[1])
    rungs = (*(rung for rung in RUNGS if halving and rung < epochs), epochs)
    case = use_case(trials, epochs, rungs)
    with contextlib.redirect_stdout(io.StringIO()):  # trial by trial: the baselines say nothing either
        alone.search(case, study, Resident(case, train, validation, threads=threads), trials)
    attempts = [read_attempt(trial) for trial in study.get_trials(states=[optuna.trial.TrialState.COMPLETE])]
    return [-attempt.losses[-1] for attempt in attempts if attempt and attempt.losses[-1] is not None]


@cache
def use_case(trials: int, epochs: int, rungs: tuple[int, ...]) -> UseCase:
    """The shipped use case with the search of this benchmark."""
    shipped = use_cases(REPOSITORY / "params.yaml")["flights"]
    train = shipped.train.model_copy(
        update={
            "metric": "auc", "trials": trials, "trials_at_once": trials, "rungs": rungs, "keep_share": KEEP_SHARE,
            "patience_epochs": epochs, "networks": ("mlp",), "hidden_units": (UNITS,), "layers": (LAYERS,),
            "label_smoothing": (0.0, 0.0), **BOUNDS,
        }
    )  # fmt: skip
    return shipped.model_copy(update={"train": train})


def member(params: dict[str, float], epochs: int) -> Member:
    """A configuration as a member of a population."""
    torch.manual_seed(SEED)
    network = build_network(
        NetworkConfig(
            network="mlp", kind="binary", numeric=FEATURES, masked=(), cardinalities=(), hidden_units=UNITS,
            layers=LAYERS, dropout=params["dropout"],
        )
    )  # fmt: skip
    for name, value in {"low": -10.0, "high": 10.0, "scale": 1.0}.items():
        getattr(network, name).fill_(value)  # the columns are standardised already, for every contestant
    return Member(network, settings(params, epochs, SEED))


def pilot(train: TrainingRows, validation: TrainingRows) -> tuple[int, int]:
    """(threads, workers) with which the DataLoader is fastest here: the median of three short epochs."""
    some = TrainingRows(*(t[:40_000] for t in (train.numbers, train.codes, train.label)))
    tried = {
        (threads, workers): Measured(name=f"pilot, {threads} threads, {workers} workers")
        for threads in sorted({1, os.cpu_count() or 1})
        for workers in (0, 1, 2)
    }
    for _ in range(3):
        for (threads, workers), measured in tried.items():
            one = Sequential(some, validation, workers=workers, threads=threads, pruner=False)
            with measured.timed():
                one.run(1, 1)
    best = min(tried, key=lambda key: median(tried[key].wall))
    print(table(list(tried.values()), ours=tried[best].name), flush=True)
    return best


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.hpo", description=__doc__)
    for name, default in {"rows": 300_000, "trials": 16, "epochs": 4, "rounds": 4}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--loader", type=int, nargs=2, metavar=("THREADS", "WORKERS"), help="instead of the pilot")
    parser.add_argument("--into", type=Path, default=Path("benchmarks/results"))
    asked = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    train, validation = halves(asked.rows)
    threads, workers = asked.loader or pilot(train, validation)
    cores = len(os.sched_getaffinity(0))
    loader = f"Optuna + DataLoader ({threads} threads, {workers} workers)"
    baselines = {
        loader: Sequential(train, validation, workers=workers, threads=threads, pruner=False),
        "the same, with its halving pruner": Sequential(
            train, validation, workers=workers, threads=threads, pruner=True
        ),
        "Optuna + slices of resident tensors": Sequential(
            train, validation, workers=None, threads=threads, pruner=False
        ),
    }
    ours = {
        f"population ({cores} chunks at a time, 1 thread each)": (cores, False),
        "population (1 thread)": (1, False),
        "population with halving": (cores, True),
    }
    measured = {name: Measured(name=name) for name in (*baselines, *ours)}
    aucs: dict[str, list[float]] = {}
    share = asked.trials // asked.rounds
    for number in range(asked.rounds):
        for name, baseline in baselines.items():
            with measured[name].timed(share=share / asked.trials):
                baseline.run(share, asked.epochs)
            aucs[name] = baseline.aucs
        for name, (at_a_time, halving) in ours.items():
            with measured[name].timed():
                aucs[name] = together(
                    train, validation, trials=asked.trials, epochs=asked.epochs, threads=at_a_time, halving=halving
                )
        print(f"round {number + 1}: " + ", ".join(f"{m.wall[-1]:.1f} s" for m in measured.values()), flush=True)
    for name, found in aucs.items():
        measured[name].facts = {"best AUC": round(max(found), 4), "mean AUC": round(float(np.mean(found)), 4)}
    print(table(list(measured.values()), ours=next(iter(ours))))
    about = {"rows": asked.rows, "features": FEATURES, "trials": asked.trials, "epochs": asked.epochs}
    print(keep("hpo", list(measured.values()), asked.into, **about))


if __name__ == "__main__":
    main()
