"""Run a campaign on the services of docker-compose.yaml: `make test-cluster`. `make test` leaves this folder out."""
