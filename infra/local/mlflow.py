"""The MLflow server: PostgreSQL behind it, artifacts in S3, reached by clients through the server only."""

import json
import signal
import sys
from collections.abc import Mapping

from infra.local.home import Home
from infra.local.part import Part, fetch_status, is_answered_ok

# The tracking server's own names for its options. `mlflow server` sets them and starts this very command; left out,
# it saves one Python process of 250 MB and half of the start.
_OPTION = "_MLFLOW_SERVER_"
_READS = "/api/2.0/mlflow/experiments/search?max_results=1"  # its database, without which /health would say OK


def plan_mlflow(home: Home, environment: Mapping[str, str]) -> Part:
    """The MLflow server of this home."""
    port = home.ports["mlflow"]
    options = {
        f"{_OPTION}FILE_STORE": home.dsn("mlflow").replace("postgresql://", "postgresql+psycopg2://"),
        f"{_OPTION}ARTIFACT_ROOT": "mlflow-artifacts:/",
        f"{_OPTION}SERVE_ARTIFACTS": "true",
        f"{_OPTION}ARTIFACT_DESTINATION": "s3://mlflow",
        "_MLFLOW_SGI_NAME": "uvicorn",
        "MLFLOW_S3_ENDPOINT_URL": home.url("s3"),
        "MLFLOW_SERVER_ALLOWED_HOSTS": json.dumps([f"127.0.0.1:{port}", f"localhost:{port}"])[1:-1].replace('"', ""),
        "OMP_NUM_THREADS": "1",
    }
    return Part(
        name="mlflow",
        command=(
            *(sys.executable, "-m", "uvicorn", "--host", "127.0.0.1", "--port", str(port)),
            *("--no-access-log", "mlflow.server.fastapi_app:app"),
        ),
        environment={**environment, **options},
        directory=home.folder / "mlflow",
        address=home.url("mlflow"),
        is_healthy=lambda: is_answered_ok(port, _READS, seconds=10),
        is_alive=lambda: fetch_status(port, _READS, seconds=10) is not None,
        needs=("postgres", "s3"),
        port=port,
        stop_signal=signal.SIGTERM,
        stop_seconds=5,
    )
