"""The demo: a real history, the devices that replay it, and the checks of the result."""
