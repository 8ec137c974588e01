#!/usr/bin/env bash
# What the wiki's page does from the start of a job to Ray on all its nodes: an environment with pip on each, a fixed port, and a sleep.
# $1: Python, $2: folder of wheels, $3: requirements, $4: where the seconds go
began=$(date +%s.%N)
# Where a token lies in ~/.ray, `ray start` of Ray 2.60 asks all others for it, who do not look there: the page is older than that.
export HEAD_NODE RAY_PORT=34567 ENV=/tmp/recipe-env RAY_AUTH_MODE=disabled
HEAD_NODE=$(hostname)
srun --overlap -N "$SLURM_NNODES" -n "$SLURM_NNODES" bash -c '
  "$1" -m venv "$ENV" && "$ENV/bin/pip" install --quiet --disable-pip-version-check --no-index --find-links "$2" --requirement "$3"' - "$1" "$2" "$3"
"$ENV/bin/ray" start --head --node-ip-address="$(hostname -i)" --port=$RAY_PORT --num-cpus="$SLURM_CPUS_PER_TASK" --block &
sleep 10
export HEAD_IP; HEAD_IP=$(hostname -i)
srun --overlap -N "$SLURM_NNODES" -n "$SLURM_NNODES" bash -c '
  if [ "$SLURM_PROCID" -eq 0 ]; then sleep 1000; else
    "$ENV/bin/ray" start --address "$HEAD_IP:$RAY_PORT" --num-cpus="$SLURM_CPUS_PER_TASK" --block; fi' &
"$ENV/bin/python" - "$began" "$SLURM_NNODES" "$4" <<'PYTHON'
import os, sys, time
import ray
ray.init(address=f"{os.environ['HEAD_IP']}:{os.environ['RAY_PORT']}", _node_ip_address=os.environ["HEAD_IP"])
while sum(node["Alive"] for node in ray.nodes()) < int(sys.argv[2]):
    time.sleep(0.1)
took_s = time.time() - float(sys.argv[1])
with open(sys.argv[3], "w") as stream:
    print(took_s, file=stream)
PYTHON
wait
