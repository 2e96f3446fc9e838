"""A run folder turned into one self-contained page: `dgpo.report.page.write_report`."""
