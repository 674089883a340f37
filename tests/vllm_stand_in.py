"""`python vllm_stand_in.py FAULT serve MODEL --uds SOCKET ...`: a small HTTP server that fails as a vLLM may."""

import json
import os
import socketserver
import sys
from http.server import BaseHTTPRequestHandler
from typing import Any

FAULT = sys.argv[1]


def answer(body: dict[str, Any]) -> tuple[int, Any]:
    if "max_tokens" not in body:  # weights to load
        return 200, {}
    if FAULT == "error 500":
        print("(APIServer) WARNING 11-21 this can cause errors like `OSError: Too many open files`")
        print("(Worker) ERROR 11-21 [executor.py:1] RuntimeError: does not use offset", flush=True)
        return 500, {"error": {"message": "EngineCore encountered an issue"}}
    if FAULT == "refuses":
        return 400, {"error": {"message": "no such model"}}
    if FAULT == "dies at work":
        print("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB", flush=True)
        os._exit(1)
    tokens = [7] * body["max_tokens"]
    choice: dict[str, Any] = {"logprobs": {"token_logprobs": [-0.001] * len(tokens)}, "token_ids": tokens}
    if FAULT == "too old":
        del choice["token_ids"]
    if FAULT == "no number":
        choice["logprobs"]["token_logprobs"][0] = None
    given = body["n"] - (FAULT == "one too few")
    return 200, {"choices": [{"index": place, **choice} for place in range(given)]}


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send(200, {})

    def do_POST(self) -> None:
        self.send(*answer(json.loads(self.rfile.read(int(self.headers["content-length"])))))

    def send(self, status: int, document: Any) -> None:
        content = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: a Unix socket has no address to print."""


if __name__ == "__main__":
    if FAULT == "cannot start":
        print("(EngineCore pid=7) ValueError: Head size 8 is not supported.")
        print("(APIServer pid=5) RuntimeError: Engine core initialization failed. See root cause above.")
        sys.exit(1)
    socketserver.ThreadingUnixStreamServer(sys.argv[sys.argv.index("--uds") + 1], Handler).serve_forever()
