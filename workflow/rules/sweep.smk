# in:  the staged data, the node environment, and the files that define what sweeps train
# out: in results/<sweep>/, the rule run_sweep writes trials.csv, best.yaml, model/ and config.yaml, and the rule confirm writes confirmed.yaml
# The record and the checkpoints are in state/<sweep>/ and are not outputs of a rule, because Snakemake deletes the outputs of a failed job.


# Run the trials of a sweep on one Ray cluster. For Snakemake this is one job. For Slurm this is `allocation.jobs` jobs, which join when they start.
rule run_sweep:
    input:
        data=lambda w: staged(w.sweep, "train", "validation"),
        env=ENV / "env.yaml",
        ready=rules.build_env.output[0],
        sources=lambda w: sources_of(w.sweep),
    output:
        trials=report(RESULTS / "{sweep}" / "trials.csv", category="{sweep}", caption="../report/trials.rst"),
        best=report(RESULTS / "{sweep}" / "best.yaml", category="{sweep}", caption="../report/best.rst"),
        model=report(
            directory(RESULTS / "{sweep}" / "model"),
            patterns=["{name}.safetensors"],
            category="{sweep}",
            caption="../report/model.rst",
        ),
        config=RESULTS / "{sweep}" / "config.yaml",
    log:
        LOGS / "run_sweep" / "{sweep}.log",
    threads: lambda w: SWEEPS[w.sweep]["allocation"]["cpus_per_node"]
    # The job has one task on each node for the agents. The resource `mpi` prevents the plugin from starting the rule with `srun`, because the `srun` of
    # this workflow does not work inside of another `srun`.
    resources:
        mpi="",
        jobs=lambda w: SWEEPS[w.sweep]["allocation"]["jobs"],
        nodes=lambda w: SWEEPS[w.sweep]["allocation"]["nodes"],
        tasks=lambda w: SWEEPS[w.sweep]["allocation"]["nodes"],
        mem_mb=lambda w: SWEEPS[w.sweep]["allocation"]["mem_mb_per_node"],
        runtime=lambda w: minutes(SWEEPS[w.sweep]["allocation"]["runtime"]),
        partitions=lambda w: ",".join(SWEEPS[w.sweep]["allocation"]["partitions"]),
        slurm_extra=lambda w: slurm_extra_of_sweep(CONFIG.sweeps[w.sweep].allocation),
    params:
        interpreter=PYTHON,
        script=SCRIPTS / "run_sweep.py",
        # A change of one of these values runs the sweep again. The sweep goes on from its record, or starts anew where its identity has changed.
        trigger=lambda w: rerun_triggers(SWEEPS[w.sweep]),
        config=lambda w: config_file(w.sweep),
        env_dir=placed(ENV),
        allocation=ALLOCATION,
    shell:
        "{params.interpreter:q} {params.script:q}"
        " --sweep {wildcards.sweep:q}"
        " --config {params.config:q}"
        " --env-dir {params.env_dir:q}"
        " --allocation {params.allocation:q}"
        " --threads {threads}"
        " --log {log:q}"


# Train the best configuration anew with new seeds, and evaluate the trained models. No other rule opens the test set.
rule confirm:
    input:
        data=lambda w: staged(w.sweep, "train", "validation", "test"),
        env=ENV / "env.yaml",
        best=rules.run_sweep.output.best,
        # The modification time of model/ does not count, because every run of the sweep writes model/ again. If the model changes, best.yaml changes too.
        model=ancient(rules.run_sweep.output.model),
    output:
        report(RESULTS / "{sweep}" / "confirmed.yaml", category="{sweep}", caption="../report/confirmed.rst"),
    log:
        LOGS / "confirm" / "{sweep}.log",
    threads: lambda w: SWEEPS[w.sweep]["allocation"]["cpus_per_node"]
    resources:
        mpi="",
        nodes=lambda w: CONFIG.sweeps[w.sweep].confirm_nodes,
        tasks=lambda w: CONFIG.sweeps[w.sweep].confirm_nodes,
        mem_mb=lambda w: SWEEPS[w.sweep]["allocation"]["mem_mb_per_node"],
        runtime=lambda w: minutes(SWEEPS[w.sweep]["confirm"]["runtime"]),
        partitions=lambda w: ",".join(SWEEPS[w.sweep]["allocation"]["partitions"]),
        slurm_extra=lambda w: slurm_extra(CONFIG.sweeps[w.sweep].allocation, CONFIG.sweeps[w.sweep].confirm.runtime),
    params:
        interpreter=PYTHON,
        script=SCRIPTS / "confirm.py",
        trigger=lambda w: confirmation_triggers(SWEEPS[w.sweep]),
        config=lambda w: config_file(w.sweep),
        env_dir=placed(ENV),
        allocation=ALLOCATION,
    shell:
        "{params.interpreter:q} {params.script:q}"
        " --sweep {wildcards.sweep:q}"
        " --config {params.config:q}"
        " --env-dir {params.env_dir:q}"
        " --allocation {params.allocation:q}"
        " --threads {threads}"
        " --log {log:q}"
