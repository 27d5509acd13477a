"""Opens sockets and becomes a program that is told of them as systemd does: activate.py ADDRESS... -- PROGRAM..."""
import os
import socket
import sys

at = sys.argv.index("--")
sockets = []
for address in sys.argv[1:at]:
    host, port = address.rsplit(":", 1)
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((host, int(port)))
    listener.listen()
    # Not where the first of them has to be.
    sockets.append(os.dup2(listener.detach(), 100 + len(sockets)))
for number, descriptor in enumerate(sockets):
    os.dup2(descriptor, 3 + number)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(sockets)))
program = sys.argv[at + 1 :]
os.execv(program[0], program)
