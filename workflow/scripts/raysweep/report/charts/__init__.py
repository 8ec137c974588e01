"""The figures of the report as Vega-Lite specifications: plain dicts, because the page and the files on disk both take JSON."""
