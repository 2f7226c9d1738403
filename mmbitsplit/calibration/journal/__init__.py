"""Solved layers on disk, and what they depend on."""

from mmbitsplit.calibration.journal.journal import Journal, JournalEntry

__all__ = ['Journal', 'JournalEntry']
