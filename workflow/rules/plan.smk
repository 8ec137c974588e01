# in:  the staged data, the node environment, the files that define what is trained, and the records, if there are any
# out: the time and the hours that each sweep will take, printed. Each call makes the plan again: snakemake --cores all plan


# Estimate the trials at a time, the duration, and the GPU- and CPU-hours of each sweep, and whether the sweep fits into its allocation.
rule plan:
    input:
        data=[path for sweep in SWEEPS if "model" in SWEEPS[sweep] for path in staged(sweep, "train", "validation")],
        env=ENV / "env.yaml",
        ready=expand(rules.build_env.output[0], sweep=SWEEPS),
    log:
        LOGS / "plan.log",
    localrule: True
    # All CPUs, so that no other rule runs at the same time: another rule would slow down the measured steps.
    threads: usable_cpus()
    params:
        interpreter=PYTHON,
        script=SCRIPTS / "plan.py",
        sweeps=list(SWEEPS),
        configs=[config_file(sweep) for sweep in SWEEPS],
        env_dir=placed(ENV),
        # The plan is for the jobs of the sweeps where Snakemake submits jobs, else for this machine.
        allocation=lambda w: Path("slurm" if workflow.non_local_exec else "local"),
    shell:
        "{params.interpreter:q} {params.script:q}"
        " --sweeps {params.sweeps:q}"
        " --configs {params.configs:q}"
        " --env-dir {params.env_dir:q}"
        " --allocation {params.allocation:q}"
        " --threads {threads}"
        " --log {log:q}"
