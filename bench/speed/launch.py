"""Run a command and print what it took, as JSON: seconds, peak bytes, exit code.

    python -I -S launch.py LOG RLIMIT_DATA COMMAND...

The kernel counts to a process's peak what the process that forked it had resident. This one, with
nothing imported, has 10 MB; below that nothing is measured. Of a command with children the peak is
that of the largest process, and the CPU time that of all. RLIMIT_DATA: bytes, 0 for no limit.
"""

import json
import os
import resource
import sys
import time


def main() -> None:
    log, limit, command = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
    start = time.perf_counter()
    pid = os.fork()
    if pid == 0:
        become(command, log, limit)
    _, status, used = os.wait4(pid, 0)
    measured = {
        "wall": time.perf_counter() - start,
        "user": used.ru_utime,
        "system": used.ru_stime,
        "peak": used.ru_maxrss * (1 if sys.platform == "darwin" else 1024),
        "code": os.waitstatus_to_exitcode(status),
    }
    print(json.dumps(measured))


def become(command: list, log: str, limit: int) -> None:
    """Be the command, with all that it prints going to the log."""
    try:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        if limit:
            resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
        os.execvp(command[0], command)
    except OSError as error:
        os.write(2, f"{command[0]}: {error}\n".encode())
    finally:
        os._exit(127)


main()
