"""Prints as many ports of this machine as are asked for, on which nothing listens."""

import socket
import sys

servers = [socket.create_server(("127.0.0.1", 0)) for _ in range(int(sys.argv[1]))]
print(*(server.getsockname()[1] for server in servers))
