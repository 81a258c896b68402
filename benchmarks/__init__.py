"""How fast the service is, told as a part of what this machine allows. See docs/benchmarks.md."""
