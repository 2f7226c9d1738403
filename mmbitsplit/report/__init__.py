"""Tables and pictures of results."""

from mmbitsplit.report.tables import results_rows, results_text, text_table

__all__ = ['results_rows', 'results_text', 'text_table']
