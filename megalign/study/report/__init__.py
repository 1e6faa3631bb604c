"""The report of a study: a page, figures and CSV files made from the files of its runs."""

from megalign.study.report.build import build_report
from megalign.study.report.console import console_table
from megalign.study.report.results import Report

__all__ = ["Report", "build_report", "console_table"]
