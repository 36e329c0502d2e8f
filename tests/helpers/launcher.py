"""Start two processes that talk over gloo, as `accelerate launch` does for users."""

import os
import subprocess
import sys
from pathlib import Path

HELPERS = Path(__file__).parent
ACCELERATE = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"]
ACCELERATE += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]


def environment(**more):
    """The environment of a process that imports what the tests do."""
    paths = os.pathsep.join([str(HELPERS), os.getcwd(), *filter(None, sys.path)])
    return {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "PYTHONPATH": paths, **more}


def start(*arguments, **more):
    """Start two processes and return the launcher's; its stdout and stderr are pipes."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([*ACCELERATE, *map(str, arguments)], env=environment(), **pipes, **more)


def launch(*arguments, timeout=120):
    """Run two processes to their end."""
    with start(*arguments) as process:
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
    return subprocess.CompletedProcess(arguments, process.returncode, out, err)
