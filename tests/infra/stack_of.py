"""A stack of a copy's own code, without Airflow: `python stack_of.py <home> <process that it ends with>`, run there."""

import sys
from pathlib import Path

from infra.local.stack import Stack

if __name__ == "__main__":
    Stack(Path(sys.argv[1])).start(("postgres", "s3", "mlflow", "torchserve", "gateway"), owner=int(sys.argv[2]))
