# in:  the archive or folder that the config names, or no input where the config names another source
# out: resources/data/<dataset>/, which contains arrays that trials memory-map, and a manifest


# Stage a data set once for all trials. The rule runs on this machine, because the nodes of a cluster may have no network. A table is staged, and
# a function is called, in the environment of the trials. A new environment does not stage the data again, but a change of the function's files does.
rule stage_data:
    input:
        env=lambda w: list(map(ancient, PROJECT.environment_for(w.dataset))),
        sources=lambda w: [local(path) for path in PROJECT.data_sources_of(w.dataset)],
    output:
        manifest=DATA / "{dataset}" / "manifest.yaml",
        arrays=expand(DATA / "{{dataset}}" / "{split}" / "{kind}.npy", split=["train", "validation", "test"], kind=["images", "labels"]),
    log:
        LOGS / "stage_data" / "{dataset}.log",
    localrule: True
    params:
        interpreter=PYTHON,
        script=SCRIPTS / "stage_data.py",
        source=lambda w: PROJECT.source_of(w.dataset),
        checksum=lambda w: config["datasets"][w.dataset]["checksum"],
        validation_fraction=lambda w: config["datasets"][w.dataset]["validation_fraction"],
        seed=lambda w: config["datasets"][w.dataset]["seed"],
        downloads_dir=placed(config["resources_dir"]) / "downloads",
        output_dir=subpath(output.manifest, parent=True),
    shell:
        "{params.interpreter:q} {params.script:q}"
        " --name {wildcards.dataset:q}"
        " --source {params.source:q}"
        " --checksum {params.checksum:q}"
        " --validation-fraction {params.validation_fraction:q}"
        " --seed {params.seed:q}"
        " --downloads-dir {params.downloads_dir:q}"
        " --output-dir {params.output_dir:q}"
        " --log {log:q}"
