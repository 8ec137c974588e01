# in:  the staged data, the node environment, the files that define what sweeps train, and the records of the sweeps if records exist
# out: the time, the CPU-hours and the GPU-hours of each sweep, which are printed. Each call makes a new plan: snakemake --cores all plan


# Estimate for each sweep the number of simultaneous trials, the duration, the CPU-hours and the GPU-hours. Say whether the job's time is enough.
rule plan:
    input:
        data=[path for sweep in SWEEPS if "model" in SWEEPS[sweep] for path in staged(sweep, "train", "validation")],
        env=ENV / "env.yaml",
        ready=expand(rules.build_env.output[0], sweep=SWEEPS),
    log:
        LOGS / "plan.log",
    localrule: True
    # The rule uses all CPUs, so that no other rule runs at the same time. Another rule would slow down the measured training steps.
    threads: usable_cpus()
    params:
        interpreter=PYTHON,
        script=SCRIPTS / "plan.py",
        sweeps=list(SWEEPS),
        configs=[config_file(sweep) for sweep in SWEEPS],
        env_dir=placed(ENV),
        # If Snakemake submits jobs to Slurm, the plan is for the Slurm jobs of the sweeps. Otherwise the plan is for this machine.
        allocation=lambda w: Path("slurm" if workflow.non_local_exec else "local"),
    shell:
        "{params.interpreter:q} {params.script:q}"
        " --sweeps {params.sweeps:q}"
        " --configs {params.configs:q}"
        " --env-dir {params.env_dir:q}"
        " --allocation {params.allocation:q}"
        " --threads {threads}"
        " --log {log:q}"
