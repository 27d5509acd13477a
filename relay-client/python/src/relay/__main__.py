"""`python -m relay …` is `relay …`, also where the scripts' directory is not on the PATH."""

import os
import subprocess
import sys

from relay import ProgramMissing, program

try:
    command = [program(), *sys.argv[1:]]
except ProgramMissing as missing:
    sys.exit(f"relay: {missing}")
if os.name == "nt":
    sys.exit(subprocess.run(command).returncode)
os.execv(command[0], command)
