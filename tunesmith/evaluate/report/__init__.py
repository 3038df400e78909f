"""The report of a run, or of one result: an offline page in two languages, Markdown, or JSON.

write      what goes where             page      HTML, with *.html, *.css, *.js
result     one result as it is told    markdown  the same as Markdown
figures    values with n and interval  content   the same as JSON
rows       every row, and its changes  charts    inline SVG
training   what a run adds: data, cost, settings, how to use it (data, loading, labels)
"""

from tunesmith.evaluate.report.write import write_report

__all__ = ["write_report"]
