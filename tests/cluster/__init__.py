"""A campaign on a Celery cluster: `make test-cluster`. Too slow for `make test`, which leaves this folder out."""
