"""The code of a commit in a folder of its own, and what it is run with: no address and no secret of production."""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

_KEPT = ("PATH", "LANG", "TMPDIR", "CUDA_VISIBLE_DEVICES", "LD_LIBRARY_PATH")


def resolve_commit(repository: Path, ref: str) -> str:
    """The commit that a branch, tag or abbreviation means.

    Raises:
        ValueError: there is none of that name here.
    """
    done = _git(repository, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{ref}^{{commit}}")
    if done.returncode != 0:
        raise ValueError(f"no commit {ref!r} in this checkout: fetch its branch first (git fetch origin {ref})")
    return done.stdout.strip()


@contextmanager
def checked_out(repository: Path, commit: str, folder: Path) -> Iterator[Path]:
    """A worktree of a commit, which is gone afterwards."""
    _git(repository, "worktree", "prune")  # of one that was killed
    done = _git(repository, "worktree", "add", "--detach", "--force", str(folder), commit)
    if done.returncode != 0:
        raise ValueError(f"commit {commit} cannot be checked out: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        _git(repository, "worktree", "remove", "--force", str(folder))


def run_module(worktree: Path, module: str, *arguments: str) -> None:
    """Run a module of the code in a worktree, by this Python and its packages.

    Raises:
        ValueError: it ended otherwise than well; with the end of what it said.
    """
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(
        command, cwd=worktree, env=bare_environment(worktree), capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        said = [line for line in done.stderr.strip().splitlines() if line][-5:]
        if f"No module named {module}" in done.stderr:
            said = ["it is older than `make backtest`: rebase the branch"]
        raise ValueError("\n".join([f"the code of {worktree.name} ended with {done.returncode}:", *said]))


def bare_environment(worktree: Path, environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """What a process needs to run the worktree's own code, and nothing that opens a door."""
    kept = {name: environment[name] for name in _KEPT if name in environment}
    return kept | {"PYTHONPATH": str(worktree), "HOME": str(worktree)}  # what lies in a person's is not handed on


def describe_changes(repository: Path) -> str | None:
    """What of a checkout differs from its commit, in words; None: nothing."""
    changed = _git(repository, "status", "--porcelain", "--untracked-files=no").stdout.splitlines()
    return f"{len(changed)} files differ from the commit that is checked out, and are not tried" if changed else None


def _git(repository: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(["git", "-C", str(repository), *arguments], capture_output=True, text=True, check=False)
