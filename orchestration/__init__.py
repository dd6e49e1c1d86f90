"""What all DAGs share: assets, default arguments, retries, parameters, sensors. Airflow lives here and in dags/."""
