"""A command that is killed in the middle of its rounds."""

import signal
import subprocess
import time


def kill_in_round(words, environment, rounds, first):
    """Start a command and send it SIGKILL once its folder of checkpoints holds round `first` or a later one."""
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment)
    deadline = time.monotonic() + 300
    while not (rounds.exists() and any(p.name.isdigit() and int(p.name) >= first for p in rounds.iterdir())):
        assert process.poll() is None, process.stderr.read().decode()[-500:]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
