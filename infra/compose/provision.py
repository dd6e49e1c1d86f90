"""Makes what the services share, and changes nothing that is there: `python -m infra.compose.provision`.

Databases with their roles, buckets, tables, Airflow's administrator, the maps that the gateway does not start without.
"""

import os
import sys

import psycopg2

from adapters.gateway import set_client
from adapters.warehouse import Warehouse
from infra.local import airflow, airflow_main, gateway, postgres, s3
from pipeline.settings import Settings, settings


def provision_services(known: Settings) -> None:
    """All of it, in the order in which one needs the other."""
    passwords = {name: os.environ[f"SECRET_{name.upper()}"] for name in (*postgres.ROLES, *postgres.DATABASES)}
    postgres.provision_databases(os.environ["WINDSOCK_ADMIN_DSN"], passwords)
    s3.create_buckets(known.s3_endpoint, known.s3_access_key, known.s3_secret_key)
    Warehouse(known.warehouse_dsn).migrate()
    assert known.gateway_maps is not None
    assert known.gateway_key is not None
    set_client(known.gateway_maps, gateway.CLIENT, known.gateway_key)
    airflow.prepare_airflow_home(known.home / "airflow", os.environ["AIRFLOW_ADMIN_PASSWORD"])
    airflow_main.set_up_database()


def main() -> int:
    """0 when all is there; else 1, and what is missing."""
    try:
        provision_services(settings())
    except (ValueError, KeyError, ConnectionError, psycopg2.Error) as error:
        print(f"windsock: {error}", file=sys.stderr)
        return 1
    print("databases, buckets, tables and maps are there")
    return 0


if __name__ == "__main__":
    sys.exit(main())
