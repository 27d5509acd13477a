"""A gRPC service with one method of each kind, and a client that calls them all.

    grpc_echo.py serve                                              plaintext HTTP/2, prints its address
    grpc_echo.py call --address HOST:PORT                           calls it in plaintext
    grpc_echo.py call --address HOST:PORT --ca FILE --authority N   calls it over TLS, as N

Messages are plain bytes: what a tunnel can break is the framing, the streaming and the trailers, and those
are the same whatever a message means. The client prints what it saw as one JSON object.
"""

import argparse
import concurrent.futures
import json
import queue

import grpc

SERVICE = "relay.test.Echo"
# What a google.rpc.Status travels in: binary, so base64 on the wire, and only in trailers.
DETAILS = "grpc-status-details-bin"
WHY = bytes(range(256))
LIMIT = [("grpc.max_receive_message_length", 64 << 20), ("grpc.max_send_message_length", 64 << 20)]


def echo(message, context):
    sent = dict(context.invocation_metadata())
    context.send_initial_metadata([("initial", sent.get("ask", ""))])
    context.set_trailing_metadata([("trailing", sent.get("ask", "")), ("trailing-bin", WHY)])
    return message


def count(message, _context):
    for number in range(int(message)):
        yield b"%d" % number


def join(messages, _context):
    return b",".join(messages)


def chat(messages, _context):
    yield from messages


def fail(_message, context):
    context.set_trailing_metadata([(DETAILS, WHY)])
    context.abort(grpc.StatusCode.FAILED_PRECONDITION, "not today: 100 % ä")


def serve():
    server = grpc.server(concurrent.futures.ThreadPoolExecutor(max_workers=16), options=LIMIT)
    methods = {
        "Echo": grpc.unary_unary_rpc_method_handler(echo),
        "Count": grpc.unary_stream_rpc_method_handler(count),
        "Join": grpc.stream_unary_rpc_method_handler(join),
        "Chat": grpc.stream_stream_rpc_method_handler(chat),
        "Fail": grpc.unary_unary_rpc_method_handler(fail),
    }
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(SERVICE, methods)])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(f"listening on http://127.0.0.1:{port}", flush=True)
    server.wait_for_termination()


def call(address, ca, authority):
    options = list(LIMIT)
    if authority:
        name = authority.split(":")[0]  # certificates know no ports
        options += [("grpc.ssl_target_name_override", name), ("grpc.default_authority", authority)]
    if ca:
        with open(ca, "rb") as pem:
            channel = grpc.secure_channel(address, grpc.ssl_channel_credentials(pem.read()), options)
    else:
        channel = grpc.insecure_channel(address, options)
    with channel:
        print(json.dumps(observe(channel)))


def observe(channel):
    def path(method):
        return f"/{SERVICE}/{method}"

    wait = {"timeout": 30}
    large = bytes(range(256)) * (1 << 14)  # 4 MiB: many frames, and more than a first window
    answer, unary = channel.unary_unary(path("Echo")).with_call(large, metadata=[("ask", "me")], **wait)
    trailers = dict(unary.trailing_metadata())
    try:
        channel.unary_unary(path("Fail"))(b"", **wait)
        failure = None
    except grpc.RpcError as error:
        details = dict(error.trailing_metadata()).get(DETAILS)
        failure = {"code": error.code().name, "message": error.details(), "details_intact": details == WHY}
    return {
        "unary_intact": answer == large,
        "initial": dict(unary.initial_metadata()).get("initial"),
        "trailing": trailers.get("trailing"),
        "trailing_binary_intact": trailers.get("trailing-bin") == WHY,
        "count": [int(number) for number in channel.unary_stream(path("Count"))(b"100", **wait)],
        "join": channel.stream_unary(path("Join"))(iter([b"a", b"b", b"c"]), **wait).decode(),
        "chat": converse(channel.stream_stream(path("Chat")), wait),
        "failure": failure,
    }


def converse(method, wait):
    """Says the next word only after the last was answered: a tunnel that holds back either side hangs here."""
    words = queue.Queue()
    answers = method(iter(words.get, None), **wait)
    heard = []
    for word in [b"one", b"two", b"three"]:
        words.put(word)
        heard.append(next(answers).decode())
    words.put(None)
    return heard + [answer.decode() for answer in answers]


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("serve")
    caller = commands.add_parser("call")
    caller.add_argument("--address", required=True)
    caller.add_argument("--ca")
    caller.add_argument("--authority")
    given = parser.parse_args()
    if given.command == "serve":
        serve()
    else:
        call(given.address, given.ca, given.authority)
