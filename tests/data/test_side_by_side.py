"""Work is shared with forked processes where nothing heavy is loaded; results come in order whatever happens to them."""

import subprocess
import sys

CODE = """
import os, sys, time
from ltune.data import side_by_side
os.sched_getaffinity = lambda _: {0, 1, 2}
if "mac" in sys.argv:
    sys.platform = "darwin"
    del os.sched_getaffinity
this = os.getpid()

def work(number):
    if number == 7 and os.getpid() != this and "die" in sys.argv:
        os._exit(1)
    if number == 11 and "stop" in sys.argv and os.getpid() != this:
        time.sleep(60)
    return number, os.getpid() == this

found = side_by_side.in_order(work, range(30))
results = []
for result in found:
    results.append(result)
    if "stop" in sys.argv and len(results) == 4:
        break
found.close()
print([number for number, _ in results] == list(range(len(results))), len(results), sum(here for _, here in results))
"""


def run(*arguments: str) -> str:
    done = subprocess.run([sys.executable, "-c", CODE, *arguments], capture_output=True, text=True, timeout=20)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.strip()


def test_a_third_is_done_here():
    assert run() == "True 30 10"


def test_what_a_helper_that_died_has_not_done_is_done_here():
    assert run("die") == "True 30 18"  # its third and all after it


def test_helpers_end_with_who_asked():
    assert run("stop") == "True 4 2"


def test_where_forking_is_not_safe_this_process_does_it_all():
    assert run("mac") == "True 30 30"
