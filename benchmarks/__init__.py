"""The speed of the service as a share of the machine's limit: docs/explanation/benchmarks.md."""
