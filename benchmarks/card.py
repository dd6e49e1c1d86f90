"""How many trials a minute one device trains: one after another as Optuna does, or K at once as our search does.

    python -m benchmarks.card [--rows 300000] [--epochs 4] [--at-once 1 16 64 256] [--rounds 3]

The trials are those of `benchmarks.hpo`, in turns, without halving: every one goes through all its epochs. Beside them
stands the share of the time in which the device computes: on a card the seconds its kernels took, as torch's profiler
counts them, on a processor its processor seconds a core. It measures the card where torch finds one.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import optuna
import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.hpo import Sequential, halves, together
from benchmarks.table import Measured, keep, table
from models.training import TrainingRows, best_device


def synchronised(work: Callable[[], object]) -> None:
    """Do it, and wait until the device has."""
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def computing(work: Callable[[], object]) -> float:
    """Seconds in which the device computes while this is done; processor seconds where there is no card."""
    if not torch.cuda.is_available():
        began = time.process_time()
        work()
        return time.process_time() - began
    with profile(activities=[ProfilerActivity.CUDA]) as watched:
        synchronised(work)
    return float(sum(event.self_device_time_total for event in watched.key_averages())) / 1e6


def contestants(
    train: TrainingRows, validation: TrainingRows, epochs: int, at_once: list[int]
) -> dict[str, tuple[int, Callable[[], object]]]:
    """(trials a turn, a turn) of each by name."""
    loader, slices = (
        Sequential(train, validation, workers=workers, threads=torch.get_num_threads(), pruner=False)
        for workers in (0, None)
    )
    found: dict[str, tuple[int, Callable[[], object]]] = {
        "Optuna + DataLoader": (1, lambda: loader.run(1, epochs)),
        "Optuna + slices of resident tensors": (1, lambda: slices.run(1, epochs)),
    }
    for trials in at_once:

        def turn(trials: int = trials) -> object:
            return together(train, validation, trials=trials, epochs=epochs, threads=1, halving=False)

        found[f"population of {trials}"] = trials, turn
    return found


def measure(
    train: TrainingRows, validation: TrainingRows, epochs: int, at_once: list[int], rounds: int
) -> list[Measured]:
    """Seconds a trial of each contestant; `trials a minute` and `computing` (a share of the time) beside."""
    competing = contestants(train, validation, epochs, at_once)
    measured = {name: Measured(name=name) for name in competing}
    for _, turn in competing.values():
        synchronised(turn)  # what a first call compiles and allocates is none of its work
    for number in range(rounds):
        for name, (trials, turn) in competing.items():
            with measured[name].timed(share=trials):
                synchronised(turn)
        print(f"round {number + 1}: " + ", ".join(f"{m.wall[-1]:.3f} s a trial" for m in measured.values()), flush=True)
    for name, (trials, turn) in competing.items():
        seconds = median(measured[name].wall)
        measured[name].facts = {
            "trials a minute": round(60 / seconds, 1),
            "computing": round(computing(turn) / trials / seconds, 3),
        }
    return list(measured.values())


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.card", description=__doc__)
    for name, default in {"rows": 300_000, "epochs": 4, "rounds": 3}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--at-once", type=int, nargs="+", default=[1, 16, 64, 256])
    parser.add_argument("--into", type=Path, default=Path("benchmarks/results"))
    asked = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    train, validation = halves(asked.rows)
    device = torch.cuda.get_device_name() if best_device().type == "cuda" else "a processor"
    measured = measure(train, validation, asked.epochs, asked.at_once, asked.rounds)
    best = min((m for m in measured if m.name.startswith("population")), key=lambda m: median(m.wall))
    print(f"{device}; seconds are a trial's")
    print(table(measured, ours=best.name))
    print(keep("card", measured, asked.into, device=device, rows=asked.rows, epochs=asked.epochs))


if __name__ == "__main__":
    main()
