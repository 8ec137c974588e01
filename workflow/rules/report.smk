# in:  the outputs and the record of a sweep
# out: results/<sweep>/report.html, which is a page that needs no network; results/<sweep>/figures/, which contains the figures of the page as SVG and CSV;
#      results/<sweep>/optuna.journal; and results/comparison.html


# Write the page that shows which configuration is best, and how certain this result is.
rule report:
    input:
        trials=rules.run_sweep.output.trials,
        best=rules.run_sweep.output.best,
        config=rules.run_sweep.output.config,
        confirmed=rules.confirm.output[0],
        data=lambda w: staged(w.sweep),
        env=ENV / "env.yaml",
    output:
        page=report(RESULTS / "{sweep}" / "report.html", category="{sweep}", caption="../report/report.rst"),
        figures=directory(RESULTS / "{sweep}" / "figures"),
        journal=RESULTS / "{sweep}" / "optuna.journal",
    log:
        LOGS / "report" / "{sweep}.log",
    localrule: True
    params:
        interpreter=PYTHON,
        script=SCRIPTS / "report.py",
        record=lambda w: placed(STATE) / w.sweep / "record.jsonl",
        plan=lambda w: placed(STATE) / ".plan" / f"{w.sweep}.yaml",
        data_manifest=lambda w, input: ["--data-manifest", input.data[0]] if input.data else [],
    shell:
        "{params.interpreter:q} {params.script:q}"
        " --sweep {wildcards.sweep:q}"
        " --record {params.record:q}"
        " --best {input.best:q}"
        " --confirmed {input.confirmed:q}"
        " --config {input.config:q}"
        " {params.data_manifest:q}"
        " --plan {params.plan:q}"
        " --env-manifest {input.env:q}"
        " --output {output.page:q}"
        " --figures-dir {output.figures:q}"
        " --journal {output.journal:q}"
        " --log {log:q}"


# Write one page that compares the sweeps, if the config has several sweeps.
rule compare:
    input:
        best=expand(RESULTS / "{sweep}" / "best.yaml", sweep=SWEEPS),
        confirmed=expand(RESULTS / "{sweep}" / "confirmed.yaml", sweep=SWEEPS),
    output:
        report(RESULTS / "comparison.html", caption="../report/comparison.rst"),
    log:
        LOGS / "compare.log",
    localrule: True
    params:
        interpreter=PYTHON,
        script=SCRIPTS / "compare.py",
        sweeps=list(SWEEPS),
        results_dir=placed(RESULTS),
        state_dir=placed(STATE),
    shell:
        "{params.interpreter:q} {params.script:q}"
        " --sweeps {params.sweeps:q}"
        " --results-dir {params.results_dir:q}"
        " --state-dir {params.state_dir:q}"
        " --output {output:q}"
        " --log {log:q}"
