"""A WSGI application that answers with the environment it was called with.

WSGI writes `X-Forwarded-For` and `X_Forwarded_For` under one name, so this origin shows what a forged
look-alike of a header does to an application.
"""

import base64
import json


def app(environ, start_response):
    seen = {name: value for name, value in environ.items() if isinstance(value, str)}
    body = environ["wsgi.input"].read()
    answer = json.dumps({"environ": seen, "body_base64": base64.b64encode(body).decode()}).encode()
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(answer)))])
    return [answer]
