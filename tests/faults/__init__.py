"""The running service under faults done for real, and a checker of what it answered."""
