# in:  the requirements of the nodes, the lock file of the requirements, and the files that define what sweeps train
# out: resources/env/<key>/, which contains the environment of the trials, a manifest, and one file for each sweep whose imports were tried


# Build the environment that all sweeps share.
rule install_env:
    input:
        requirements=local(config["env"]["requirements"]),
        lock=local(str(Path(config["env"]["requirements"]).with_suffix(".txt"))),
    output:
        ENV / "env.yaml",
    log:
        LOGS / "install_env.log",
    localrule: True
    params:
        interpreter=PYTHON,
        script=SCRIPTS / "build_env.py",
        python=config["env"]["python"],
        modules=config["env"]["modules"],
        wheels=config["env"]["wheels"],
        torch_backend=config["env"]["torch_backend"],
        container=["--container", config["env"]["container"]] if config["env"]["container"] else [],
        gpu=["--gpu"] if env_arguments(CONFIG, ROOT).gpu else [],
        # This parameter is a Path, so that a change of the executor does not run this rule and the later rules again. If the environment is not packed
        # yet, a Slurm job packs the environment.
        pack=lambda w: Path("yes" if workflow.non_local_exec else "no"),
        output_dir=subpath(output[0], parent=True),
    shell:
        "{params.interpreter:q} {params.script:q}"
        " --python {params.python:q}"
        " --requirements {input.requirements:q}"
        " --wheels {params.wheels:q}"
        " --torch-backend {params.torch_backend:q}"
        " {params.container:q}"
        " {params.gpu:q}"
        " --pack {params.pack:q}"
        " --modules {params.modules:q}"
        " --output-dir {params.output_dir:q}"
        " --log {log:q}"


# Try the imports of a sweep's driver and trials in the environment. The rule install_env does not do this, because a second run of install_env would run all
# sweeps again, and a change of one sweep's file must not run the other sweeps again. The data is an input of this rule, so that `--until build_env` does
# all the work that needs a network.
rule build_env:
    input:
        env=rules.install_env.output[0],
        sources=lambda w: sources_of(w.sweep),
        data=lambda w: list(map(ancient, staged(w.sweep))),
    output:
        ENV / "ready" / "{sweep}",
    log:
        LOGS / "build_env" / "{sweep}.log",
    localrule: True
    params:
        interpreter=PYTHON,
        script=SCRIPTS / "check_import.py",
        names=lambda w: PROJECT.imports_of(w.sweep),
        env_dir=subpath(input.env, parent=True),
        requirements=Path(config["env"]["requirements"]),
    shell:
        "{params.interpreter:q} {params.script:q}"
        " --names {params.names:q}"
        " --env-dir {params.env_dir:q}"
        " --requirements {params.requirements:q}"
        " --output {output:q}"
        " --log {log:q}"
