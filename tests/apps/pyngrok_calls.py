"""Opens, lists and closes tunnels with pyngrok, at an agent API that is there already: no ngrok is installed or started.

    pyngrok_calls.py API_URL UPSTREAM

Prints what it saw as JSON.
"""

import json
import sys
import tempfile
from types import SimpleNamespace

from pyngrok import ngrok, process
from pyngrok.conf import PyngrokConfig
from pyngrok.exception import PyngrokNgrokHTTPError

api_url, upstream = sys.argv[1:]
# All that the module asks of the process is whether it runs, and where its API is.
process.is_process_running = lambda path: True
ngrok.get_ngrok_process = lambda config=None: SimpleNamespace(api_url=api_url)


def config(version, home):
    return PyngrokConfig(config_version=version, config_path=f"{home}/ngrok.yml", request_timeout=20)


def urls(config):
    return sorted(tunnel.public_url for tunnel in ngrok.get_tunnels(config))


with tempfile.TemporaryDirectory() as home:
    seen = {"before": urls(config("2", home))}
    requests = ngrok.api_request(f"{api_url}/api/requests/http", params={"limit": 5})["requests"]
    seen["requests"] = [request["request"]["uri"] for request in requests]
    for version in ["2", "3"]:
        settings = config(version, home)
        tunnel = ngrok.connect(upstream, pyngrok_config=settings)
        tunnel.refresh_metrics()
        seen[version] = {
            "public_url": tunnel.public_url,
            "upstream": tunnel.upstream,
            "count": tunnel.metrics["http"]["count"],
            "listed": tunnel.public_url in urls(settings),
        }
        ngrok.disconnect(tunnel.public_url, settings)
    try:
        ngrok.connect(upstream, "tcp", pyngrok_config=config("2", home))
    except PyngrokNgrokHTTPError as error:
        seen["refused"] = error.status_code
    seen["after"] = urls(config("2", home))
print(json.dumps(seen))
