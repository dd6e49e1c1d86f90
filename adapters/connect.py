"""The one place where the outside world is put together from the settings; nothing is opened until it is used."""

from dataclasses import dataclass
from functools import cache, cached_property
from typing import TYPE_CHECKING

from adapters.endpoint import Endpoint
from adapters.gateway import Gateway
from adapters.lake import Lake
from adapters.model_store import ModelStore
from adapters.warehouse import Warehouse
from pipeline.settings import Settings, settings

if TYPE_CHECKING:
    from adapters.alerts import Alerts
    from adapters.registry import Registry
    from adapters.versions import Versions


@dataclass(frozen=True)
class Outside:
    """Every part a task may talk to, by role; heavy clients are imported when first asked for."""

    settings: Settings

    @cached_property
    def warehouse(self) -> Warehouse:
        """Our own database: batches, predictions, decisions, ledger."""
        return Warehouse(self.settings.warehouse_dsn, code_sha=self.settings.code_sha)

    @cached_property
    def source(self) -> Warehouse:
        """The operator's database, which is only read."""
        return Warehouse(self.settings.source_dsn, what="source database", is_source=True)

    @cached_property
    def lake(self) -> Lake:
        """Raw and clean data, docs, reports and evidence, in S3."""
        s = self.settings
        return Lake(s.s3_endpoint, s.s3_access_key, s.s3_secret_key, s.lake_bucket, s.home / "cache")

    @cached_property
    def versions(self) -> "Versions":
        """Feature datasets, versioned by DVC."""
        from adapters.versions import Versions  # noqa: PLC0415  # DVC is heavy

        return Versions(settings=self.settings)

    @cached_property
    def registry(self) -> "Registry":
        """Runs and model versions, in MLflow."""
        from adapters.registry import Registry  # noqa: PLC0415  # MLflow is heavy

        return Registry(self.settings.tracking_uri, self.settings.home / "cache")

    @cached_property
    def alerts(self) -> "Alerts":
        """Slack, or the log; always the table."""
        from adapters.alerts import Alerts  # noqa: PLC0415  # slack-sdk is heavy

        return Alerts(self.warehouse, self.settings)

    @cached_property
    def gateway(self) -> Gateway | None:
        """Which version answers whom; None where the installation has no gateway."""
        s = self.settings
        if s.gateway_url is None:
            return None
        if s.gateway_admin is None or s.gateway_maps is None or s.gateway_key is None:
            raise ValueError("WINDSOCK_GATEWAY_URL is set: set WINDSOCK_GATEWAY_ADMIN, _MAPS and _KEY, too")
        return Gateway(s.gateway_url, s.gateway_admin, s.gateway_maps, s.gateway_key)

    @cached_property
    def endpoint(self) -> Endpoint | None:
        """The online server; None where there is none."""
        s = self.settings
        if s.inference_url is None or s.management_url is None or s.model_store is None:
            return None
        return Endpoint(s.inference_url, s.management_url, ModelStore(s.model_store))


@cache
def outside() -> Outside:
    """This process's outside world."""
    return Outside(settings())
