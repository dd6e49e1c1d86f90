"""Prints a token such as an executor gives a task: `python -m infra.doctor.token`, in Airflow's environment."""

import uuid

from infra.local.airflow_main import import_airflow

if __name__ == "__main__":
    generator = import_airflow("airflow.executors.base_executor").BaseExecutor().jwt_generator
    print(generator.generate({"sub": str(uuid.uuid4())}))
