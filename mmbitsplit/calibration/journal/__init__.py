"""Solved layers on disk, and what they depend on."""

from mmbitsplit.calibration.journal.entries import Entry, JournalEntry, ProductEntry
from mmbitsplit.calibration.journal.journal import Journal
from mmbitsplit.calibration.journal.width_files import WidthFiles

__all__ = ['Entry', 'Journal', 'JournalEntry', 'ProductEntry', 'WidthFiles']
