# Hyper-parameter sweeps with Ray Tune: data → environment → sweep → confirmation → report.
from snakemake.utils import min_version

min_version("9.27")


# A --configfile replaces config/config.yaml. Snakemake would merge the two, and run the sweeps of both.
if not workflow.overwrite_configfiles:

    configfile: "config/config.yaml"


include: "workflow/rules/common.smk"
include: "workflow/rules/data.smk"
include: "workflow/rules/env.smk"
include: "workflow/rules/sweep.smk"
include: "workflow/rules/report.smk"
include: "workflow/rules/plan.smk"
include: "workflow/rules/check.smk"


report: "workflow/report/workflow.rst"


# Make the report of each sweep with all that the report needs, and the comparison of several sweeps.
rule all:
    default_target: not workflow.default_target  # a workflow that has this one as a module may have a default target
    input:
        expand(RESULTS / "{sweep}" / "report.html", sweep=SWEEPS),
        [RESULTS / "comparison.html"] if len(SWEEPS) > 1 else [],
