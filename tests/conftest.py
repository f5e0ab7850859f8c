"""Runs before torch is imported."""
import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")    # idle CPU threads sleep: tests of two suites can share a machine
