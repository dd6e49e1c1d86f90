"""What all DAGs share: the use cases, assets, default arguments, retries, parameters, sensors. Airflow is here and in dags/."""
