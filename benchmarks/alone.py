"""The product's search with its study in memory: a study that is nobody else's has nothing to be fenced off from."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import optuna

from adapters.connect import Outside
from adapters.warehouse import Fence
from pipeline.spec import UseCase
from tasks.train.trainer import Trainer
from tasks.train.trials import Search


class _NoWarehouse:
    @contextmanager
    def transaction(self, _fence: Fence) -> Iterator["_NoWarehouse"]:
        yield self

    def execute(self, *_: object) -> None:
        """What a cursor does."""


class _Outside:
    warehouse = _NoWarehouse()


def search(use_case: UseCase, study: optuna.Study, trainer: Trainer, trials: int) -> None:
    """Bring the study to this many trials, by the product's own loop."""
    study.set_user_attr("metric", use_case.train.metric)
    fence, outside = Fence(run_key="none", epoch=1), cast(Outside, _Outside())
    Search(use_case, study, trainer, trials, 0, fence, outside).run()
