"""Settings of Sphinx for `make docs`. Documents are read where they lie, so what Sphinx is given as sources is the project's folder."""

project = "raysweep"
extensions = ["myst_parser"]
root_doc = "docs/index"
include_patterns = ["*.md", "docs/*.md", "config/*.md", "benchmarks/*.md", "benchmarks/results/*.md"]
# Not even looked into: an environment alone has tens of thousands of files.
exclude_patterns = [".*", "cluster", "examples", "logs", "profiles", "resources", "results", "state", "sweeps", "tests", "workflow"]
myst_heading_anchors = 4  # which links name as GitHub does
smartquotes = False
highlight_language = "text"
html_theme = "furo"
html_title = "raysweep"
html_show_copyright = False
