"""The running service under real faults, and a checker of its answers."""
