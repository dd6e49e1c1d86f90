"""Whether a model learnt today's features: where their definition has changed since, its columns mean other things."""

import features
from adapters.connect import Outside
from pipeline.spec import UseCase


def learnt_other_features(use_case: UseCase, version: str, outside: Outside) -> bool:
    """Whether a model version's feature definition is another than today's, so that it can answer no row of today.

    Raises:
        ValueError: the use case has no feature definition, or the bundle is damaged.
    """
    from models.bundle import load_bundle

    bundle = load_bundle(outside.registry.download_bundle(use_case.name, version))
    return bool(bundle.card["features"]["digest"] != features.definition(use_case.name).digest())
