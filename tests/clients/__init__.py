"""Programs that people already use, unchanged, against a real server. `make test-clients` runs these in an environment
of their own; `make test` does not collect them."""
