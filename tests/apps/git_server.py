"""Serves the bare repositories below a directory over git's smart HTTP: `git_server.py DIRECTORY`.

All the work is done by `git http-backend` (git-http-backend(1)); this is the web server that calls it as
CGI (RFC 3875). Bodies stream both ways, because git sends a large push in chunks of unknown total length.
"""

import http.server
import os
import subprocess
import sys
import threading

PIECE = 64 * 1024


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        path, _, query = self.path.partition("?")
        meta = {
            "GIT_PROJECT_ROOT": self.server.root,
            "GIT_HTTP_EXPORT_ALL": "1",
            "GIT_PROTOCOL": self.headers.get("Git-Protocol", ""),
            "REMOTE_USER": "somebody",  # http-backend lets nobody push without a name
            "REMOTE_ADDR": self.client_address[0],
            "REQUEST_METHOD": self.command,
            "PATH_INFO": path,
            "QUERY_STRING": query,
            "CONTENT_TYPE": self.headers.get("Content-Type", ""),
            # With these two it inflates a gzip body, and reads one without a length to its end.
            "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""),
            "CONTENT_LENGTH": self.headers.get("Content-Length", ""),
        }
        env = dict(os.environ, **{name: value for name, value in meta.items() if value})
        with subprocess.Popen(["git", "http-backend"], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as git:
            # It may answer before it has read everything, so each direction has its own thread.
            feeder = threading.Thread(target=self.feed, args=(git.stdin,))
            feeder.start()
            self.answer(git.stdout)
            feeder.join()

    do_POST = do_GET

    def feed(self, stdin):
        try:
            for piece in self.body():
                if not stdin.closed:
                    try:
                        stdin.write(piece)
                    except BrokenPipeError:
                        pass  # it has heard enough; the rest is read so that the connection can be used again
        finally:
            try:
                stdin.close()
            except BrokenPipeError:
                pass

    def body(self):
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            yield from self.pieces(int(self.headers.get("Content-Length", 0)))
            return
        while size := int(self.rfile.readline().split(b";")[0], 16):
            yield from self.pieces(size)
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass  # trailers

    def pieces(self, left):
        while left > 0 and (piece := self.rfile.read(min(left, PIECE))):
            left -= len(piece)
            yield piece

    def answer(self, stdout):
        headers = {}
        while line := stdout.readline().decode("latin-1").strip():
            name, _, value = line.partition(":")
            headers[name] = value.strip()
        self.send_response(int(headers.pop("Status", "200").split()[0]))
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        while piece := stdout.read1(PIECE):
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        self.wfile.write(b"0\r\n\r\n")


if __name__ == "__main__":
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.root = os.path.abspath(sys.argv[1])
    print(f"listening on http://127.0.0.1:{server.server_port}", flush=True)
    server.serve_forever()
