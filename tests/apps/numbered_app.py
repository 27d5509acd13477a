"""An application that notes each request that it has read, in a line of a file, before it answers. It fails now and then.

numbered_app.py FILE [PORT]
"""

import os
import random
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Numbers(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if body.decode() != self.path:
            # Cut off, because somebody was killed. It was not taken.
            self.close_connection = True
            return
        status = 500 if random.random() < 0.1 else 200
        # One write, which lasts even if this is killed at once.
        os.write(notes, f"{self.path} {status}\n".encode())
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


notes = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[2]) if len(sys.argv) > 2 else 0), Numbers)
print(f"http://127.0.0.1:{server.server_port}", flush=True)
server.serve_forever()
