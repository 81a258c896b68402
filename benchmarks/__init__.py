"""How fast the service is, as a part of the machine's limit: docs/explanation/benchmarks.md."""
