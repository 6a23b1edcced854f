"""The report of a run: report.json, report.html, the plots, and the tables for a terminal."""
