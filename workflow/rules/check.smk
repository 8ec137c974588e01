# in:  the config, the profile, the node environment
# out: a table that is printed and not stored, so each call makes a new table: snakemake check_cluster --executor slurm --profile cluster
import json
import time

CHECK = STATE / ".check"
RESOURCES = ("slurm_account", "slurm_partition", "qos", "constraint")  # the resources that the profile may set for all jobs
# The job that checks the nodes has the size of the largest sweep's job.
ALLOCATIONS = {name: sweep.allocation for name, sweep in CONFIG.sweeps.items()}
LARGEST = max(ALLOCATIONS.values(), key=lambda allocation: (allocation.nodes, allocation.gpus_per_node, allocation.cpus_per_node))
CHECK_MINUTES = min(20, minutes(LARGEST.runtime))  # the start of Ray may take 15 minutes


# Ask Slurm whether the jobs of the sweeps could run. This rule does not submit these jobs.
rule check_login:
    input:
        only_on_slurm,
    output:
        CHECK / "login.json",
    log:
        LOGS / "check_cluster" / "login.log",
    localrule: True
    params:
        interpreter=PYTHON,
        script=SCRIPTS / "check_cluster.py",
        allocations=json.dumps(to_json(ALLOCATIONS)),
        resources=lambda w, resources: json.dumps({key: str(resources[key]) for key in RESOURCES if key in resources.keys()}),
        # The present time is a parameter, so that Snakemake makes the outputs again that an interrupted run has left.
        asked=time.time(),
    shell:
        "{params.interpreter:q} {params.script:q} login"
        " --allocations {params.allocations:q}"
        " --resources {params.resources:q}"
        " --output {output:q}"
        " --log {log:q}"


# Check the nodes of one job, and start a Ray cluster on these nodes.
rule check_nodes:
    input:
        login=rules.check_login.output[0],
        env=ENV / "env.yaml",
    output:
        CHECK / "nodes.json",
    log:
        LOGS / "check_cluster" / "nodes.log",
    threads: LARGEST.cpus_per_node
    resources:
        mpi="",
        nodes=LARGEST.nodes,
        tasks=LARGEST.nodes,
        mem_mb=LARGEST.mem_mb_per_node,
        runtime=CHECK_MINUTES,
        partitions=",".join(LARGEST.partitions),
        slurm_extra=slurm_extra(LARGEST, CHECK_MINUTES),
    params:
        interpreter=PYTHON,
        script=SCRIPTS / "check_cluster.py",
        env_dir=placed(ENV),
        cache_dir=["--cache-dir", config["env"]["cache_dir"]] if config["env"]["cache_dir"] else [],
        tls=config["ray"]["tls"],
    shell:
        "{params.interpreter:q} {params.script:q} nodes"
        " --env-dir {params.env_dir:q}"
        " {params.cache_dir:q}"
        " --tls {params.tls:q}"
        " --output {output:q}"
        " --log {log:q}"


# Print a table of the checks, with the result of each check and with advice for each failed check. Run this rule first on a new cluster.
rule check_cluster:
    input:
        login=rules.check_login.output[0],
        nodes=rules.check_nodes.output[0],
    log:
        LOGS / "check_cluster" / "table.log",
    localrule: True
    params:
        interpreter=PYTHON,
        script=SCRIPTS / "check_cluster.py",
    shell:
        "{params.interpreter:q} {params.script:q} table" " --inputs {input:q}" " --log {log:q}"
