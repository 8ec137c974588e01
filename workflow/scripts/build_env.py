"""Build the environment of the trials, and describe this environment in OUTPUT_DIR/env.yaml. This program runs in the controller's environment."""

from __future__ import annotations

import argparse
from pathlib import Path

from raysweep.common.errors import run_entry_point, set_up_logging
from raysweep.environment.archive import pack
from raysweep.environment.build import build_environment
from raysweep.environment.requirements import EnvironmentSpec


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", default="python3", help="interpreter to build on, looked up after the modules are loaded")
    parser.add_argument("--requirements", type=Path, required=True, help="what is needed, with its lock beside it (node.in, node.txt)")
    parser.add_argument("--wheels", default="download", help="download | site | none | a folder of wheels")
    parser.add_argument("--torch-backend", default="auto", help="auto | cpu | cu130 … | pypi")
    parser.add_argument(
        "--gpu", action="store_true", help="with `auto`: choose a build for nodes with GPUs, whether or not this machine has a GPU"
    )
    parser.add_argument("--modules", nargs="*", default=[], help="modules of the site to load first")
    parser.add_argument("--container", help="Apptainer image whose environment is taken as it is")
    parser.add_argument(
        "--pack", choices=("yes", "no"), default="no", help="whether to pack the environment for the nodes as one file, OUTPUT_DIR/env.tar"
    )
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.add_argument("--log", type=Path, help="file for the details")
    arguments = parser.parse_args()
    set_up_logging(arguments.log)
    build_environment(
        EnvironmentSpec(
            python=arguments.python,
            modules=tuple(arguments.modules),
            requirements=arguments.requirements,
            wheels=arguments.wheels,
            torch_backend=arguments.torch_backend,
            gpu=arguments.gpu,
            container=arguments.container,
        ),
        arguments.output_dir,
    )
    if arguments.pack == "yes":
        pack(arguments.output_dir)


if __name__ == "__main__":
    run_entry_point(main)
