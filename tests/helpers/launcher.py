"""Start processes that talk over gloo, as `accelerate launch` does for users."""

import os
import subprocess
import sys
from pathlib import Path

HELPERS = Path(__file__).parent
# accelerate starts several processes on a CPU under either option.
WAYS = {"whole": ["--multi_gpu"], "sharded": ["--use_fsdp", "--fsdp_version", "2"]}
OPTIONS = ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]


def head(way="whole", count=2):
    """The beginning of a command line, to which ``-m MODULE`` or a script is added; of one process if ``way`` is None."""
    if way is None:
        return [sys.executable]
    return [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", str(count), *OPTIONS, *WAYS[way]]


def environment(**more):
    """The environment of a process that imports what the tests do."""
    paths = os.pathsep.join([str(HELPERS), os.getcwd(), *filter(None, sys.path)])
    return {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "PYTHONPATH": paths, **more}


def start(*arguments, way="whole", **more):
    """Start two processes and return the launcher's; its stdout and stderr are pipes."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([*head(way), *map(str, arguments)], env=environment(), **pipes, **more)


def launch(*arguments, way="whole", timeout=120):
    """Run two processes to their end."""
    with start(*arguments, way=way) as process:
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
    return subprocess.CompletedProcess(arguments, process.returncode, out, err)
