"""Steps: Airflow-free functions, pure ones first, the shell that reads and writes last."""
