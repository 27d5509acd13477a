"""Opens N sockets and becomes a program that is told of them as systemd does: activate.py N PROGRAM...

In the program's arguments, {0} is the address of the first socket, {1} that of the second.
"""
import os
import socket
import sys

sockets, addresses = [], []
for number in range(int(sys.argv[1])):
    listener = socket.create_server(("127.0.0.1", 0))
    addresses.append("%s:%d" % listener.getsockname())
    # Not where the first of them has to be.
    sockets.append(os.dup2(listener.detach(), 100 + number))
for number, descriptor in enumerate(sockets):
    os.dup2(descriptor, 3 + number)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(sockets)))
program = [word.format(*addresses) for word in sys.argv[2:]]
os.execv(program[0], program)
