# in:  the staged data, the node environment, the files that define what is trained, and what there is of records
# out: what each sweep will take, printed. Made anew whenever it is asked for: snakemake --cores all plan


# Before a sweep is paid for: how many trials at a time, how long, how many GPU- and CPU-hours, and whether that fits into its allocation.
rule plan:
    input:
        data=[path for sweep in SWEEPS if "model" in SWEEPS[sweep] for path in staged(sweep, "train", "validation")],
        env=ENV / "env.yaml",
        ready=expand(rules.build_env.output[0], sweep=SWEEPS),
    log:
        LOGS / "plan.log",
    localrule: True
    # Alone on this machine: what others run meanwhile would be in the figures.
    threads: usable_cpus()
    params:
        interpreter=PYTHON,
        script=SCRIPTS / "plan.py",
        sweeps=list(SWEEPS),
        configs=[config_file(sweep) for sweep in SWEEPS],
        env_dir=placed(ENV),
        # For the jobs that the sweeps would be where Snakemake submits jobs, else for this machine.
        allocation=lambda w: Path("slurm" if workflow.non_local_exec else "local"),
    shell:
        "{params.interpreter:q} {params.script:q}"
        " --sweeps {params.sweeps:q}"
        " --configs {params.configs:q}"
        " --env-dir {params.env_dir:q}"
        " --allocation {params.allocation:q}"
        " --threads {threads}"
        " --log {log:q}"
