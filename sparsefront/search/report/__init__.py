"""The report: one self-contained HTML page that answers what a study asked."""

from sparsefront.search.report.numbers import report_numbers
from sparsefront.search.report.page import render_page, write_report
from sparsefront.search.report.search_page import write_search_report

__all__ = ["render_page", "report_numbers", "write_report", "write_search_report"]
