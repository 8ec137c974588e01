"""Stage a data set. Download, read or generate the data, verify and split the data, and write arrays that the trials map into memory."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from raysweep.common.errors import run_entry_point, set_up_logging
from raysweep.data.manifest import DatasetSpec, Validation
from raysweep.data.stage import stage


def run_in_environment(args: argparse.Namespace) -> int:
    """Run this program in the environment of the trials, with the same options, and return its exit code."""
    from raysweep.environment.commands import process_environment, seen_in_container
    from raysweep.environment.manifest import Environment

    options = [argument for argument in sys.argv[1:] if argument != f"--env-dir={args.env_dir}"]
    folders = [Path.cwd(), Path(args.source).expanduser().absolute().parent, args.output_dir.absolute().parent]
    env = seen_in_container(process_environment() | {"PYTHONPATH": str(Path(__file__).parent)}, folders)
    return subprocess.run(Environment.load(args.env_dir).command([__file__, *options]), env=env, check=False).returncode


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", required=True, help="the data set's name in the config")
    parser.add_argument(
        "--source",
        required=True,
        help="download, synthetic, or the path of CIFAR-10's .tar.gz or folder, of a folder of images, or of arrays",
    )
    parser.add_argument("--checksum", required=True, help="upstream, none, md5:… or sha256:…")
    parser.add_argument(
        "--validation-fraction", required=True, type=float, help="part of the training set to compare trials on, between 0 and 1"
    )
    parser.add_argument("--seed", required=True, type=int, help="seed of that split")
    parser.add_argument("--image-size", type=int, help="pixels along a side to which a folder's images are brought")
    parser.add_argument(
        "--test-fraction", type=float, help="part of the user's own data set aside for the test, where these have no test part"
    )
    parser.add_argument(
        "--task", choices=["classification", "regression"], help="what the targets of arrays are; by default the targets decide"
    )
    parser.add_argument("--target", help="column of a table that the model predicts")
    parser.add_argument("--group", help="column or array; rows with equal values stay in one part")
    parser.add_argument(
        "--split", choices=["random", "time"], default="random", help="time: the rows are in the order of time, and the last are set aside"
    )
    parser.add_argument("--folds", type=int, help="number of folds, in place of the validation fraction")
    parser.add_argument(
        "--env-dir",
        type=Path,
        help="stage in the environment of the trials in this folder, which has the packages that read tables, and those of the user's functions",
    )
    parser.add_argument("--downloads-dir", required=True, type=Path, help="where downloaded archives are kept")
    parser.add_argument("--output-dir", required=True, type=Path)
    parser.add_argument("--log", type=Path)
    args = parser.parse_args()
    if args.env_dir is not None:
        sys.exit(run_in_environment(args))
    set_up_logging(args.log)
    spec = DatasetSpec(
        name=args.name,
        source=args.source,
        checksum=args.checksum,
        validation_fraction=args.validation_fraction,
        seed=args.seed,
        image_size=args.image_size,
        test_fraction=args.test_fraction,
        task=args.task,
        target=args.target,
        group=args.group,
        split=args.split,
        validation=Validation(args.folds) if args.folds else None,
    )
    stage(spec, args.downloads_dir, args.output_dir)


if __name__ == "__main__":
    run_entry_point(main)
