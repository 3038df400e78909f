"""Commands of tunesmith as real processes that start in milliseconds: see server.py."""

from tests.warm.processes import ROOT, Child, Ended, Warm

__all__ = ["ROOT", "Child", "Ended", "Warm"]
