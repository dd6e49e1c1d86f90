"""What docker-compose needs of us: its .env, the set-up of databases and stores, the health of Airflow's servers."""
