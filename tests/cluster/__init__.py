"""A campaign on what docker-compose.yaml starts: `make test-cluster`. Too slow for `make test`, which leaves this folder out."""
