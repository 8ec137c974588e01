# in:  the requirements of the nodes with their lock, and the files that sweeps train
# out: resources/env/<key>/: the environment that trials run in, and what is in it


# Built here; it also imports what the sweeps train, so that a mistake shows before a job waits in a queue.
rule build_env:
    input:
        requirements=config["env"]["requirements"],
        lock=Path(config["env"]["requirements"]).with_suffix(".txt"),
        sources=sorted({path for sweep in SWEEPS for path in sources_of(sweep)}),
    output:
        ENV / "env.yaml",
    log:
        LOGS / "build_env.log",
    localrule: True
    params:
        interpreter=PYTHON,
        script=SCRIPTS / "build_env.py",
        python=config["env"]["python"],
        modules=config["env"]["modules"],
        wheels=config["env"]["wheels"],
        torch_backend=config["env"]["torch_backend"],
        targets=sorted({sweep.get("model") or sweep["trainable"] for sweep in SWEEPS.values()}),
        output_dir=subpath(output[0], parent=True),
    shell:
        "{params.interpreter:q} {params.script:q}"
        " --python {params.python:q}"
        " --requirements {input.requirements:q}"
        " --wheels {params.wheels:q}"
        " --torch-backend {params.torch_backend:q}"
        " --modules {params.modules:q}"
        " --check-import {params.targets:q}"
        " --output-dir {params.output_dir:q}"
        " --log {log:q}"
