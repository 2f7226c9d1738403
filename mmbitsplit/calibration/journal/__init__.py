"""Solved layers on disk, and what they depend on."""

from mmbitsplit.calibration.journal.journal import Journal, JournalEntry
from mmbitsplit.calibration.journal.width_files import WidthFiles

__all__ = ['Journal', 'JournalEntry', 'WidthFiles']
