"""Processes that start at the same time on a new machine agree on the system user."""

import os
import subprocess
import sys

import pytest

#: Eight processes ask for the system user together. Prints the answers and the id of the user.
EIGHT_PROCESSES = """
import multiprocessing, pwd
from foldlog.infrastructure.embedded.account import system_user

def ask(start, answers):
    start.wait()
    answers.put(system_user().pw_uid)

start, answers = multiprocessing.Barrier(8), multiprocessing.Queue()
fork = multiprocessing.get_context("fork")
for _ in range(8):
    fork.Process(target=ask, args=(start, answers)).start()
print({answers.get() for _ in range(8)}, {pwd.getpwnam("foldlog").pw_uid}, sep="|")
"""
#: Gives a command its own copy of /etc, so that the machine keeps its users.
OWN_USERS = """
set -e
cp -a /etc "$0/etc"
mount --bind "$0/etc" /etc
sed -i /^foldlog:/d /etc/passwd /etc/shadow /etc/group /etc/gshadow
exec "$@"
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root creates users")
def test_processes_that_start_together_get_the_same_system_user(tmp_path):
    namespace = ["unshare", "--mount", "bash", "-c", OWN_USERS, str(tmp_path)]
    if subprocess.run([*namespace, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine has no mount namespaces")
    subprocess.run(["rm", "-r", str(tmp_path / "etc")], check=True)
    done = subprocess.run(
        [*namespace, sys.executable, "-c", EIGHT_PROCESSES],
        capture_output=True,
        text=True,
        check=True,
    )
    answers, user = done.stdout.splitlines()[-1].split("|")
    assert answers == user
