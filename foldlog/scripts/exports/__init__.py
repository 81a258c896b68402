"""Reads and writes the two file formats of an exported log: JSON lines, and the archive for
auditors.
"""
