"""Tables and pages of results; ``run_page`` and the like need plotly and Pillow."""

from mmbitsplit.report.tables import results_rows, results_text, text_table

__all__ = ['results_rows', 'results_text', 'text_table']
