"""What this package adds to Airflow's UI, server side."""
